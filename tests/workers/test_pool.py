"""Runs that share warm workers on a real Ray: the same numbers as alone, and nothing left behind."""

import os
import re
import signal
import time

import pytest
from sampa.workers.pool import Pool
from sampa.workers.storage import Storage

from .aftermath import alive, assert_calm
from .serial import plan_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
DEADLINE_S = 120.0


def plan(rho=0.1, task="telling", steps=24, **params):
    return plan_of(
        task={"entrypoint": f"tests.workers.tasks:{task}", "params": params},
        method={"name": "sampa", "rho": rho, "lambda": 0.2},
        batch_size=32,
        steps=steps,
        checkpoint={"every_steps": 5},
        report={"every_steps": 1},
    )


class Play:
    """A pool, and what its runs have said."""

    def __init__(self, pool, directory):
        self.pool, self.directory = pool, directory
        self.plans, self.outcomes, self.reports, self.turns, self.yielding = {}, {}, {}, [], []

    def open(self, key, plan, **how):
        self.plans[key] = plan
        self.outcomes.pop(key, None)
        self.reports.setdefault(key, [])
        self.turns = [*self.turns, key] if key not in self.turns else self.turns
        self.pool.open(key, plan, Storage.at(self.directory / key), **how)

    def until(self, fits):
        deadline = time.monotonic() + DEADLINE_S
        while not fits():
            assert time.monotonic() < deadline, (self.outcomes, {k: r[-5:] for k, r in self.reports.items()})
            turns = [key for key in self.turns if self.pool.knows(key)]
            for key, heard in self.pool.look(turns, self.yielding).items():
                self.reports[key] += heard.reports
                if heard.outcome is not None:
                    self.outcomes[key] = heard.outcome

    def until_ended(self):
        self.until(lambda: self.outcomes.keys() == self.plans.keys())

    def steps(self, key):
        return max((one.data["step"] for one in self.reports[key] if one.kind == "metrics"), default=0)

    def lines(self, key):
        return [str(one.data["line"]) for one in self.reports[key] if one.kind == "log"]

    def processes(self):
        said = [re.search(r"built in process (\d+)", line) for key in self.reports for line in self.lines(key)]
        return {int(match[1]) for match in said if match}

    def assert_calm(self, *keys):
        for key in keys or self.plans:
            assert self.outcomes[key].succeeded, self.outcomes[key].reason
            assert_calm(self.plans[key], self.directory / key)


@pytest.fixture
def play(ray_cluster, tmp_path):
    pool = Pool({"CPU": 1.0}, Storage.at(tmp_path / "pool"), most=2)
    yield Play(pool, tmp_path)
    pool.close()


def test_many_runs_train_on_two_warm_workers_with_the_numbers_of_runs_alone(play):
    for number in range(5):
        play.open(f"run {number}", plan(rho=0.02 * (number + 1)))
    play.until_ended()
    play.assert_calm()
    reads = [line for key in play.reports for line in play.lines(key) if line.startswith("read in process")]
    assert len(play.processes()) <= 2
    assert len(reads) == len({*reads}) >= 1, "a process has read its data again"
    play.pool.close()
    assert alive() == ([], 0)


@pytest.mark.long
def test_a_worker_with_nothing_to_do_joins_the_run_that_is_left_and_makes_room_for_another(play):
    play.open("long", plan(pace_s=0.02, steps=300))
    play.until(lambda: any(one.data["workers_after"] == 2 for one in play.reports["long"] if one.kind == "elastic"))
    play.open("short", plan(rho=0.05))
    play.until_ended()
    play.assert_calm()
    causes = [one.data["cause"] for one in play.reports["long"] if one.kind == "elastic"]
    assert causes[:3] == ["start", "join", "leave"]


@pytest.mark.long
def test_a_run_that_gives_way_goes_on_from_where_it_was(play):
    play.open("first", plan(pace_s=0.02, steps=200))
    play.open("second", plan(rho=0.05, pace_s=0.02, steps=200))
    play.until(lambda: play.steps("first") > 3 and play.steps("second") > 3)
    play.yielding = ["first"]
    play.open("third", plan(rho=0.03))
    play.until(lambda: "first" in play.outcomes)
    assert play.outcomes["first"].stopped
    reached, play.yielding = play.steps("first"), []
    play.open("first", play.plans["first"], attempt=2, reached=reached)
    play.until_ended()
    play.assert_calm()
    resumed = [one.data["step"] for one in play.reports["first"] if one.kind == "elastic"]
    assert resumed[-1] >= reached - 1


@pytest.mark.long
def test_a_run_that_kills_its_workers_fails_and_the_others_go_on(play):
    play.open("bad", plan(task="fatal"))
    play.open("good", plan(pace_s=0.01, steps=100))
    play.until_ended()
    play.assert_calm("good")
    assert not play.outcomes["bad"].succeeded
    assert "workers were lost 3 times in a row" in play.outcomes["bad"].reason


@pytest.mark.long
def test_a_killed_worker_is_replaced(play):
    play.open("run", plan(pace_s=0.02, steps=200))
    play.until(lambda: play.steps("run") > 10)
    os.kill(play.processes().pop(), signal.SIGKILL)
    play.until_ended()
    play.assert_calm()
    assert len(play.processes()) > 1


@pytest.mark.long
def test_a_dropped_run_makes_room_at_once(play):
    play.open("long", plan(pace_s=0.05, steps=5000))
    play.until(lambda: play.steps("long") > 3)
    play.pool.drop("long")
    del play.plans["long"]
    began = time.monotonic()
    play.open("next", plan(rho=0.05))
    play.until_ended()
    assert time.monotonic() - began < 30
    play.assert_calm()


@pytest.mark.long
def test_a_held_run_stops_where_it_was_to_and_goes_on_with_the_same_numbers(play):
    play.open("run", plan(), hold_at=3)
    play.until_ended()
    held = play.outcomes["run"]
    assert (held.stopped, held.held, held.reason) == (True, True, "held at step 12")
    play.open("run", play.plans["run"], attempt=2, reached=12)
    play.until_ended()
    play.assert_calm()
