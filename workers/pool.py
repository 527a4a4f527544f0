"""A pool: warm workers that take part in one run after the other, and the runs that share them.

A run that begins finds Python started, torch loaded and its workers' modules imported; it starts no actor. Workers that
have nothing to do go to the runs that can use them, and leave again at a step boundary when others need them: the
numbers of a run don't depend on it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .coordinator import ANSWER_S, News
from .crew import Crew
from .errors import Dismissed, Interrupted
from .ledger import Ledger
from .lobby import Assignment, Line, Lobby
from .plan import Plan
from .reports import Report
from .sharing import Need, share
from .storage import Storage
from .train_runs import TrainRun, given_storage
from .trainer import MAX_SETBACKS, Outcome, conclude, nodes_to_leave

RUN_SETBACKS = 3  # times that a run loses workers in a row, with no step committed in between: then it is its fault
_SPARE_S = 0.5  # seconds that a worker has had nothing to do, before it joins a run that could go on without it
_RELEASE_S = 5.0  # the same, before it is let go
_AHEAD = 2  # workers that are asked for at a time, or as many as are there already
_WAIT_S = 30.0  # of a worker for work, before it asks again
_ROOM_S = 10.0  # seconds after which to say so, where there is no room for a worker
_LOOK_S = 0.25  # seconds between two looks at nodes and room
_SETTLE_S = 10.0  # seconds that the actors get to end by themselves
_COME_BACK_S = 60.0  # in which a worker comes back from a run that is over, or its process is ended


@dataclass
class _Run:
    """A run as the pool knows it."""

    plan: Plan
    storage: Storage
    attempt: int
    hold_at: float | None
    name: str
    ledger: Ledger
    wanted: int
    reached: int
    workers: dict[str, str] = field(default_factory=dict)  # of the pool: their names in the run
    joined: int = 0  # how many names were given out
    setbacks: int = 0
    shaken: set[str] = field(default_factory=set)  # its workers that were in at a setback: they are lost with it or not
    trouble: str = ""  # the last that was said of a worker that was lost
    stopping: bool = False
    over_at: float | None = None  # on the monotonic clock

    @property
    def need(self) -> Need:
        """One that has begun goes on with what it has left, as a job does."""
        least = self.plan.workers.min
        return Need(min(least, len(self.workers)) or least, self.plan.max_workers)


@dataclass(frozen=True)
class Heard:
    """What has happened in a run since the last look.

    Attributes:
        reports: Its reports, in order.
        outcome: How it ended, or None: then it goes on.
    """

    reports: list[Report]
    outcome: Outcome | None


class Pool:
    """Workers with the same resources, and the runs that share them; for one thread.

    Args:
        resources: Of each worker.
        storage: Which Ray Train may use, and all workers share; the runs' own are on the same file system.
        most: How many workers there are at most, or None: as many as are of use and have room.
    """

    def __init__(self, resources: dict[str, float], storage: Storage, most: int | None = None) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._lobby = ray.remote(Lobby).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
        config = {"lobby": self._lobby}
        storage.make()
        self._crew = Crew(lambda *where: TrainRun(_serve, config, resources, storage, *where), resources, 1)
        self._most = most
        self._runs: dict[str, _Run] = {}  # by the caller's key
        self._over: list[_Run] = []  # whose workers have not all come back
        self._idle: dict[str, float] = {}  # workers that have nothing to do, and since when
        self._proven: set[str] = set()  # workers that have taken part in a run
        self._leaving: set[str] = set()  # nodes
        self._looked_at, self._worked_at = 0.0, time.monotonic()
        self._closed = False

    @property
    def workers(self) -> int:
        """How many workers there are, at work or not."""
        return len(self._idle) + sum(len(run.workers) for run in self._all())

    def knows(self, key: str) -> bool:
        """Say whether a run has been opened and its outcome has not come yet."""
        return key in self._runs

    def busy(self, key: str) -> int:
        """Return how many workers are at work on a run; 0 if it isn't known."""
        return len(self._runs[key].workers) if key in self._runs else 0

    def open(
        self,
        key: str,
        plan: Plan,
        storage: Storage,
        *,
        attempt: int = 1,
        reached: int = 0,
        past: Iterable[Mapping[str, Any]] = (),
        hold_at: float | None = None,
    ) -> None:
        """Let a run begin, or go on from its newest checkpoint, as soon as its turn comes; see ``trainer.train``.

        Args:
            key: Of the run, among those of the pool.
            plan: What to do.
            storage: The run's own.
            attempt: Number of this attempt at the run.
            reached: The last step that earlier attempts are known to have committed.
            past: Data of the elastic events of earlier attempts.
            hold_at: Epochs after which it stops with a checkpoint, to be opened again.
        """
        storage.make()
        if not self._runs:
            self._worked_at = time.monotonic()
        least = plan.workers.min
        run = _Run(plan, storage, attempt, hold_at, f"{key}-{uuid4().hex[:8]}", Ledger(past), least, reached)
        self._tell("open", run.name, least, least, plan.batch_size, reached)
        self._runs[key] = run

    def drop(self, key: str) -> None:
        """End a run as it stands; nothing more is heard of it."""
        run = self._runs.pop(key)
        self._ask(run, "dismiss", "not needed any more")
        self._is_over(run)

    def stop(self, key: str, why: str) -> None:
        """End a run at its next step, with a checkpoint; then its outcome comes."""
        run = self._runs[key]
        if not run.stopping:
            run.stopping = True
            self._ask(run, "stop", why)

    def look(self, turns: Sequence[str], yielding: Collection[str] = (), wait_s: float = 0.5) -> dict[str, Heard]:
        """Give the workers to the runs whose turn it is, and return what has happened, by key.

        Args:
            turns: Keys of open runs, in the order in which they get workers that are free.
            yielding: Those of them that are stopped with a checkpoint where others wait for their workers.
            wait_s: How long to wait for something to happen, in seconds.

        Raises:
            Interrupted: If no worker can be started.
        """
        if time.monotonic() - self._looked_at >= _LOOK_S:
            self._look_after()
        going = [key for key in turns if not self._runs[key].stopping]
        going.sort(key=lambda key: (key in yielding, not self._runs[key].workers))  # stable: else as they were given
        self._share_out(going)
        told, waiting = self._tell("news", wait_s)
        self._free(waiting)
        if any(run.workers for run in self._all()):
            self._worked_at = time.monotonic()
        heard = {key: self._hear(key, told[run.name]) for key, run in [*self._runs.items()] if run.name in told}
        return {key: one for key, one in heard.items() if one.reports or one.outcome}

    def waits_for_room(self) -> bool:
        """Say whether runs have had no worker at all for some time, with none on the way: there is no room for as many
        as the next one needs to start."""
        waited = bool(self._runs) and time.monotonic() - self._worked_at > _ROOM_S
        return waited and not self._on_the_way

    def close(self) -> None:
        """Let everything end, as it stands; closing it again changes nothing."""
        if self._closed:
            return
        self._closed = True
        for key in [*self._runs]:
            self.drop(key)
        names = [run.name for run in self._crew.runs]
        for name in names:
            self._tell("release", name)
        self._crew.close(names, _SETTLE_S)
        ray.kill(self._lobby)

    # Workers

    def _look_after(self) -> None:
        self._looked_at = time.monotonic()
        draining, dead = nodes_to_leave()
        if draining != self._leaving:
            self._leaving = draining
            for run in self._runs.values():
                self._ask(run, "drain", [*draining])
        for name, why in self._crew.keep(self._to_start(), draining | dead, self._proven):
            for run in self._runs.values():
                if name in run.workers:
                    run.trouble = f"{run.workers[name]} ended: {why}"
        nodes = {one.name: one.node for one in self._crew.runs}
        self._idle = {name: since for name, since in self._idle.items() if name in nodes}
        for run in self._all():
            run.workers = {name: alias for name, alias in run.workers.items() if name in nodes}
        self._let_go(nodes)
        self._bring_back()
        if self._crew.setbacks > MAX_SETBACKS:
            raise Interrupted(f"{self._crew.setbacks} workers in a row were lost, or could not be started")

    def _of_use(self) -> int:
        wanted = sum(run.need.most for run in self._runs.values())
        return wanted if self._most is None else min(wanted, self._most)

    @property
    def _alive(self) -> int:
        return sum(not one.over for one in self._crew.runs)

    @property
    def _on_the_way(self) -> bool:
        """Whether a worker has been started that has not asked for work yet."""
        return self._alive > self.workers

    def _to_start(self) -> int:
        """Return how many workers to have: no more are started while some are on their way, whose room, which they
        have been promised, others would take."""
        more = 0 if self._on_the_way else max(_AHEAD, self.workers)
        return min(self._of_use(), self._alive + more)

    def _let_go(self, nodes: Mapping[str, str]) -> None:
        """Release workers on nodes that go, and those beyond what is of use."""
        now, spare = time.monotonic(), self.workers - self._of_use()
        for name, since in sorted(self._idle.items(), key=lambda one: one[1]):
            too_many = spare > 0 and now - since > _RELEASE_S
            if nodes[name] in self._leaving or too_many:
                self._tell("release", name)
                del self._idle[name]
                spare -= 1

    def _bring_back(self) -> None:
        """Let go of the runs whose workers have all come back; end the processes of those that don't come."""
        now = time.monotonic()
        for run in [*self._over]:
            if run.workers and now - (run.over_at or now) > _COME_BACK_S:
                for name in run.workers:
                    self._tell("end", name)
                run.workers = {}
            if not run.workers:
                self._tell("close", run.name)
                self._over.remove(run)

    def _free(self, waiting: Sequence[str]) -> None:
        """Take note of who has nothing to do."""
        now = time.monotonic()
        for run in self._all():
            for name in run.workers.keys() & set(waiting):
                del run.workers[name]
        self._idle = {name: self._idle.get(name, now) for name in waiting}

    # Runs

    def _share_out(self, turns: Sequence[str]) -> None:
        runs = [self._runs[key] for key in turns]
        now = time.monotonic()
        rested = bool(self._idle) and all(now - since > _SPARE_S for since in self._idle.values())
        spare = rested or any(len(run.workers) > run.plan.workers.min for run in runs)
        free = len(self._idle) + sum(len(run.workers) for run in runs)
        for key, run, number in zip(turns, runs, share([run.need for run in runs], free, spare), strict=True):
            if not number:
                if run.workers:
                    self.stop(key, "its workers are needed elsewhere")
                continue
            if number != run.wanted:
                run.wanted = number
                self._ask(run, "want", number)
            while number > len(run.workers) and self._idle:
                self._assign(run)

    def _assign(self, run: _Run) -> None:
        worker, _ = self._idle.popitem()
        alias = f"worker {run.joined}"
        plan = run.plan.training_part()
        work = Assignment(run.name, plan, f"{run.name}-{run.attempt}", alias, run.storage.directory, run.hold_at)
        if self._tell("assign", worker, work):
            run.workers[worker] = alias
            run.joined += 1
            self._proven.add(worker)

    def _hear(self, key: str, news: News) -> Heard:
        run = self._runs[key]
        for report in news.reports:
            if report.kind == "elastic":
                run.ledger.add(report.data)
            elif report.kind == "log" and report.data.get("worker") in news.lost:
                run.trouble = str(report.data.get("line"))
        if news.reached > run.reached:
            run.reached, run.setbacks, run.shaken = news.reached, 0, set()
            self._crew.progressed()
        if set(news.lost) - run.shaken:  # a node takes all workers with it that it has, in one setback
            run.setbacks += 1
            run.shaken |= {*news.lost, *run.workers.values()}
        outcome = self._outcome(run, news)
        if outcome is not None:
            del self._runs[key]
            self._is_over(run)
        return Heard(news.reports, outcome)

    def _outcome(self, run: _Run, news: News) -> Outcome | None:
        if news.outcome is not None:
            return conclude(news.outcome, run.plan, run.storage, run.attempt, run.ledger)
        if run.setbacks < RUN_SETBACKS:
            return None
        self._ask(run, "dismiss", "its workers fail")
        said = f": {run.trouble}" if run.trouble else ", and nothing is known of why"
        lost = f"workers were lost {run.setbacks} times in a row after step {run.reached}, with no step committed since"
        return Outcome(False, lost + said, {})

    def _is_over(self, run: _Run) -> None:
        run.over_at = time.monotonic()
        self._over.append(run)

    def _all(self) -> list[_Run]:
        return [*self._runs.values(), *self._over]

    def _ask(self, run: _Run, method: str, *args: Any) -> None:
        self._tell("ask", run.name, method, *args)

    def _tell(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self._lobby, method).remote(*args), timeout=ANSWER_S)


def _serve(config: dict[str, Any]) -> None:
    """What each worker of a pool does: one run after the other, until it is released or the lobby is gone."""
    from .part import take_part

    lobby, worker = config["lobby"], config["name"]
    here = ray.get_runtime_context().current_actor
    where = given_storage()
    try:
        while True:
            work: Assignment | None = ray.get(lobby.next.remote(worker, here, _WAIT_S), timeout=_WAIT_S + ANSWER_S)
            if work is not None:
                _take_part(take_part, lobby, work, replace(where, directory=work.directory))
                gc.collect()  # the model and its group, whose connections tell others that this worker is there
    except (Dismissed, ray.exceptions.RayError):
        return


def _take_part(take_part: Callable[..., None], lobby: Any, work: Assignment, storage: Storage) -> None:
    with suppress(Dismissed, ray.exceptions.RayTaskError):  # the run was over before its last word came
        line = Line(lobby, work.key)
        take_part(work.plan, line, run=work.run, name=work.name, storage=storage, hold_at=work.hold_at)
