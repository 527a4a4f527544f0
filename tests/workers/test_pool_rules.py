"""The pool without Ray, on a made-up cluster whose workers live in the lobby's event loop: whose fault is what."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from sampa.workers import crew, pool
from sampa.workers.errors import Dismissed, Interrupted
from sampa.workers.lobby import Lobby
from sampa.workers.storage import Storage

from .made_up_cluster import Cluster
from .serial import plan_of

DEADLINE_S = 20.0
CALM = {"succeeded": False, "reason": "well done"}


class Remote:
    """A handle: each call is made at once, and its answer taken by ``Stage.get``."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._actor, name))


class Stage:
    """Stands for Ray where the pool uses it; what workers do is ``life(worker, lobby)``, a coroutine."""

    exceptions = pool.ray.exceptions

    def __init__(self, life, **cpus):
        self.life, self.cluster = life, Cluster(**cpus)
        self.loop, self.lobby, self.living = asyncio.new_event_loop(), None, set()

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "1" * 56)

    def remote(self, kind):
        assert kind is Lobby
        self.lobby = Lobby()
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: Remote(self.lobby)))

    def get(self, answer, timeout):
        return self.loop.run_until_complete(asyncio.wait_for(answer, timeout))

    def kill(self, handle):
        pass

    def start(self, work, config, resources, storage, name, node):
        run = self.cluster.start(name, node)
        task = self.loop.create_task(self._live(run))
        self.living.add(task)
        return run

    async def _live(self, run):
        run.holds = True
        try:
            await self.life(run, self.lobby)
        except Dismissed:
            pass
        except RuntimeError as error:
            run.error = error
        run.over = True

    def close(self):
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _end(self):
        for task in self.living:
            task.cancel()
        await asyncio.gather(*self.living, return_exceptions=True)


@pytest.fixture
def staged(monkeypatch, tmp_path):
    stages = []

    def make(life, **cpus):
        stage = Stage(life, **cpus)
        stages.append(stage)
        stage.cluster.stand_in(monkeypatch, crew)
        monkeypatch.setattr(pool, "ray", stage)
        monkeypatch.setattr(pool, "TrainRun", stage.start)
        monkeypatch.setattr(pool, "nodes_to_leave", lambda: (set(), set()))
        monkeypatch.setattr(pool, "_LOOK_S", 0.0)
        return stage, pool.Pool({"CPU": 1.0}, Storage(str(tmp_path / "pool")))

    yield make
    for stage in stages:
        stage.close()


def open_runs(pool, tmp_path, *keys, least=1):
    for key in keys:
        workers = {"min": least, "max": least}
        plan = plan_of(method={"name": "sampa", "rho": 0.1}, workers=workers, pairs=(least + 1) // 2)
        pool.open(key, plan, Storage(str(tmp_path / key)))


def until(pool, fits, keys):
    """Look until it is so; return the outcomes that came meanwhile."""
    outcomes, deadline = {}, time.monotonic() + DEADLINE_S
    while not fits(outcomes):
        assert time.monotonic() < deadline, outcomes
        heard = pool.look([key for key in keys if pool.knows(key)], wait_s=0.01)
        outcomes |= {key: one.outcome for key, one in heard.items() if one.outcome}
    return outcomes


async def work_until_a_bad_run_comes(run, lobby):
    """Do what a run asks; one that is called bad ends the process."""
    while True:
        work = await lobby.next(run.name, None, 1.0)
        if work is not None:
            bad = work.key.startswith("bad")
            end = {"succeeded": False, "retry": True, "reason": "it crashed"} if bad else CALM
            await lobby.ask(work.key, "finish", work.name, end)
            if bad:
                raise RuntimeError("killed by signal 11")


def test_runs_that_kill_their_workers_fail_one_by_one_and_the_others_go_on_at_once(staged, tmp_path):
    _, pool = staged(work_until_a_bad_run_comes, n1=2)
    keys = [*(f"bad {number}" for number in range(6)), "good"]
    open_runs(pool, tmp_path, *keys)
    outcomes = until(pool, lambda outcomes: len(outcomes) == len(keys), keys)
    assert outcomes.pop("good").reason == CALM["reason"]
    assert all("workers were lost 3 times in a row" in one.reason for one in outcomes.values())


def test_a_run_outlives_the_loss_of_all_its_workers_at_once(staged, tmp_path):
    here, ended = [], []

    async def die_together_once(run, lobby):
        work = await lobby.next(run.name, None, DEADLINE_S)
        here.append(run.name)
        while len(here) < 4:
            await asyncio.sleep(0)
        reborn = len(here) > 4
        end = CALM if reborn else {"succeeded": False, "retry": True, "reason": "its node is gone"}
        await lobby.ask(work.key, "finish", work.name, end)
        if not reborn:
            ended.append(run.name)
            raise RuntimeError("its node is gone")

    _, pool = staged(die_together_once, n1=4)
    open_runs(pool, tmp_path, "wide", least=4)
    outcomes = until(pool, lambda outcomes: outcomes, ["wide"])
    assert (outcomes["wide"].reason, len(ended)) == (CALM["reason"], 4)


def test_workers_that_end_before_they_can_work_are_nobodys_fault_and_interrupt_all(staged, tmp_path, monkeypatch):
    async def end(run, lobby):
        raise RuntimeError("torch can't be imported")

    monkeypatch.setattr(crew, "BACK_OFF_S", (0.0,))
    _, pool = staged(end, n1=2)
    open_runs(pool, tmp_path, "run")
    with pytest.raises(Interrupted, match="workers in a row were lost, or could not be started"):
        until(pool, lambda outcomes: outcomes, ["run"])


async def work_for_ever(run, lobby):
    while await lobby.next(run.name, None, 1.0) is None:
        pass
    await asyncio.sleep(DEADLINE_S)


def test_runs_wait_for_room_while_there_are_fewer_workers_than_one_needs(staged, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_ROOM_S", 0.1)
    stage, made = staged(work_for_ever, n1=1)
    open_runs(made, tmp_path, "wide", least=2)
    assert not made.waits_for_room()
    until(made, lambda _: made.waits_for_room(), ["wide"])
    assert made.workers == 1
    stage.cluster.cpus["n2"] = 1
    until(made, lambda _: made.busy("wide") == 2, ["wide"])
    made.look(["wide"], wait_s=0.01)
    assert not made.waits_for_room()


def test_runs_wait_for_room_where_there_is_none_and_not_for_a_worker_that_starts(staged, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_ROOM_S", 0.1)
    ready = asyncio.Event()

    async def start_slowly(run, lobby):
        await ready.wait()
        await work_for_ever(run, lobby)

    stage, made = staged(start_slowly, n1=0)
    assert not made.waits_for_room()
    open_runs(made, tmp_path, "run")
    until(made, lambda _: made.waits_for_room(), ["run"])
    stage.cluster.cpus["n1"] = 1
    until(made, lambda _: not made.waits_for_room(), ["run"])
    assert made.workers == 0
    ready.set()
    until(made, lambda _: made.busy("run") == 1, ["run"])
    assert not made.waits_for_room()
