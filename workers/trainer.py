"""All workers of a run: started, replaced and let go until it has ended, and what it came to.

How many there are is the crew's business, who is in is the coordinator's, and how each is hosted is Ray Train's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from pydantic import JsonValue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .coordinator import ANSWER_S, Coordinator, News
from .crew import Crew
from .errors import Interrupted
from .faults import Fault
from .ledger import Ledger
from .plan import Plan
from .reports import Report
from .storage import Storage, insistently
from .train_runs import TrainRun, given_storage

MAX_SETBACKS = 10  # workers lost in a row, with no step committed in between, before a run gives up
_SETTLE_S = 10.0  # seconds that a finished run's actors get to end by themselves
_ROOM_S = 10.0  # seconds after which a run that waits for room says so
_LOOK_S = 1.0  # seconds between two looks at orders, nodes and room


@dataclass(frozen=True)
class Orders:
    """What whoever started a run wants of it while it goes.

    Attributes:
        workers: The most that are to be in, or None: as the plan says.
        stop: Why the run is to stop at the next boundary, with a checkpoint; empty: it is not.
    """

    workers: int | None = None
    stop: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        succeeded: Whether it trained to its last step.
        reason: Why not, in a sentence; empty if it did.
        result: The content of result.json; empty if it did not.
        stopped: Whether it was stopped, and goes on from its newest checkpoint when it is started again.
        held: Whether that was where it was to be held.
        diverged: Whether a loss or an update was no finite number any more, which another attempt would not change.
    """

    succeeded: bool
    reason: str
    result: dict[str, JsonValue]
    stopped: bool = False
    held: bool = False
    diverged: bool = False


def train(
    plan: Plan,
    directory: str | Path | Storage,
    *,
    on_reports: Callable[[Sequence[Report]], None],
    orders: Callable[[], Orders] = Orders,
    attempt: int = 1,
    reached: int = 0,
    past: Iterable[Mapping[str, Any]] = (),
    faults: Sequence[Fault] = (),
) -> Outcome:
    """Train to the end on the Ray cluster that this process is connected to; resume if there is a checkpoint.

    Writes ``model.safetensors`` and ``result.json`` into ``directory`` on success.

    Args:
        plan: What to do; more fields than a plan's, such as a job's name, go into the result as they are.
        directory: The run's own: a path, an address such as ``s3://bucket/run``, or the storage, which all workers
            share; ``checkpoints`` lies below.
        on_reports: Called from this thread with the reports as they come.
        orders: Asked about once a second what is wanted of the run.
        attempt: Number of this attempt at the run.
        reached: The last step that earlier attempts are known to have committed.
        past: Data of the elastic events of earlier attempts, for the result.
        faults: What is to go wrong on purpose.

    Raises:
        Interrupted, ray.exceptions.RayError, StorageError: If the infrastructure failed; call again to resume.
    """
    storage = Storage.at(directory)
    storage.make()
    run = _Run(plan, storage, f"{storage.name}-{attempt}-{uuid4().hex[:8]}", reached, faults)
    ledger = Ledger(past)
    outcome = None
    try:
        while (news := run.look(orders())).outcome is None:
            _pass_on(news.reports, ledger, on_reports)
        _pass_on(news.reports, ledger, on_reports)
        outcome = news.outcome
    finally:
        run.close(ended=outcome is not None)
    return conclude(outcome, plan, storage, attempt, ledger)


def conclude(outcome: Mapping[str, Any], plan: Plan, storage: Storage, attempt: int, ledger: Ledger) -> Outcome:
    """Return how a run ended, from what its coordinator says; write ``result.json`` if it has trained to its end."""
    if not outcome["succeeded"]:
        how = {name: outcome.get(name, False) for name in ("stopped", "diverged")}
        return Outcome(False, outcome["reason"], {}, **how)
    if "held_at" in outcome["result"]:
        return Outcome(False, f"held at step {outcome['result']['held_at']}", {}, stopped=True, held=True)
    result = {
        "state": "SUCCEEDED",
        **outcome["result"],
        "attempt": attempt,
        **ledger.totals(),
        "elastic": ledger.events,
        "spec": plan.model_dump(mode="json", by_alias=True),
    }
    content = (json.dumps(result, indent=2) + "\n").encode()
    insistently(lambda: storage.write("result.json", content))
    return Outcome(True, "", result)


def nodes_to_leave() -> tuple[set[str], set[str]]:
    """Return the ids of the nodes that are about to go, and of those that are gone."""
    draining = set(ray._private.state.state.get_draining_nodes())  # what Ray Train's own watcher asks
    return draining, {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _pass_on(reports: Sequence[Report], ledger: Ledger, on_reports: Callable[[Sequence[Report]], None]) -> None:
    for report in reports:
        if report.kind == "elastic":
            ledger.add(report.data)
    if reports:
        on_reports(reports)


class _Run:
    """A run as its driver sees it: its coordinator, its crew, and what is wanted of both."""

    def __init__(self, plan: Plan, storage: Storage, name: str, reached: int, faults: Sequence[Fault]) -> None:
        self._plan, self._wanted, self._stop = plan, plan.max_workers, ""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
        self._coordinator = (
            ray.remote(Coordinator)
            .options(**options)
            .remote(self._wanted, plan.workers.min, batch_size=plan.batch_size, reached=reached)
        )
        config = {"plan": plan.training_part(), "coordinator": self._coordinator, "run": name, "faults": [*faults]}
        resources = {"CPU": plan.workers.cpus} | ({"GPU": plan.workers.gpus} if plan.workers.gpus else {})
        self._crew = Crew(
            lambda *where: TrainRun(_work, config, resources, storage, *where), resources, plan.workers.min
        )
        self._draining: set[str] = set()
        self._reached = reached
        self._looked_at = 0.0
        self._members: set[str] = set()
        self._began_at, self._waiting_told = time.monotonic(), False

    def look(self, orders: Orders) -> News:
        """Pass on what is wanted, keep the crew complete, and return what has happened, within about a second."""
        self._obey(orders)
        if time.monotonic() - self._looked_at >= _LOOK_S / 4:
            self._look_after()
        news: News = ray.get(self._coordinator.news.remote(_LOOK_S / 2), timeout=ANSWER_S)
        self._members = set(news.present)
        if news.reached > self._reached:
            self._reached = news.reached
            self._crew.progressed()
        if news.lost:
            self._crew.set_back(news.lost)
            self._look_after()
        if self._crew.setbacks > MAX_SETBACKS and news.outcome is None:
            raise Interrupted(
                f"{self._crew.setbacks} workers were lost in a row and no step was committed in between; the log says "
                f"what is known of each"
            )
        return news

    def close(self, *, ended: bool) -> None:
        """Let everything end with the coordinator; where the run has ended, members end by themselves before."""
        self._crew.close(self._members, _SETTLE_S if ended else 0.0)
        ray.kill(self._coordinator)

    def _obey(self, orders: Orders) -> None:
        wanted = orders.workers or self._plan.max_workers
        if wanted != self._wanted:
            self._wanted = wanted
            ray.get(self._coordinator.want.remote(wanted), timeout=ANSWER_S)
        if orders.stop and not self._stop:
            self._stop = orders.stop
            ray.get(self._coordinator.stop.remote(orders.stop), timeout=ANSWER_S)

    def _look_after(self) -> None:
        self._looked_at = time.monotonic()
        draining, dead = nodes_to_leave()
        if draining != self._draining:
            self._draining = draining
            ray.get(self._coordinator.drain.remote([*draining]), timeout=ANSWER_S)
        if not self._stop:
            failed = self._crew.keep(self._wanted, draining | dead)
            for name, why in failed:
                self._tell(f"{name} did not start: {why}")
        waited = time.monotonic() - self._began_at > _ROOM_S
        if waited and self._crew.waits_for_room() and not self._waiting_told:
            self._waiting_told = True
            self._tell(
                f"waiting for room: the cluster has none for {self._plan.workers.min} workers with "
                f"{self._plan.workers.cpus:g} CPUs and {self._plan.workers.gpus:g} GPUs each"
            )

    def _tell(self, line: str) -> None:
        report = Report("log", {"worker": "runner", "line": line})
        ray.get(self._coordinator.report.remote([report]), timeout=ANSWER_S)


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    from .part import take_part

    take_part(
        config["plan"],
        config["coordinator"],
        run=config["run"],
        name=config["name"],
        storage=given_storage(),
        faults=config["faults"],
    )
