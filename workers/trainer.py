"""All workers of a run, on Ray Train: the only module that knows Ray Train.

Each worker is a Ray Train run of its own with one worker: Ray Train places it, sets up its device, watches it and gives
it storage. So each can be started, lost and let go by itself, while the others go on; how many there are is the
crew's business, and who is in is the coordinator's.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
from pydantic import JsonValue
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .coordinator import Coordinator, News
from .crew import Crew
from .errors import Interrupted, RunError
from .faults import Fault
from .ledger import Ledger
from .pairs import Member, View
from .plan import Plan
from .reports import Report
from .words import Word

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # Ray Train's would report what is printed twice
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor for each run; the trainer looks itself
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon the room of a lost worker is free again
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")  # the room was there a moment ago

MAX_SETBACKS = 10  # workers lost in a row, with no step committed in between, before a run gives up
_SETTLE_S = 10.0  # seconds that a finished run's actors get to end by themselves
_ANSWER_S = 60.0  # seconds in which the coordinator answers, or its node is lost
_ROOM_S = 10.0  # seconds after which a run that waits for room says so
_THREAD = "ray-train"  # how the names of the threads begin in which Ray Train's runs are waited for
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
    """

    succeeded: bool
    reason: str
    result: dict[str, JsonValue]
    stopped: bool = False


def train(
    plan: Plan,
    directory: Path,
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
        directory: The run's own, on storage that all workers share; ``checkpoints`` lies below.
        on_reports: Called from this thread with the reports as they come.
        orders: Asked about once a second what is wanted of the run.
        attempt: Number of this attempt at the run.
        reached: The last step that earlier attempts are known to have committed.
        past: Data of the elastic events of earlier attempts, for the result.
        faults: What is to go wrong on purpose.

    Raises:
        Interrupted, ray.exceptions.RayError: If the infrastructure failed; call again to resume.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    run = _Run(plan, directory, f"{directory.name}-{attempt}-{uuid4().hex[:8]}", reached, faults)
    ledger = Ledger(past)
    outcome = None
    try:
        while (news := run.look(orders())).outcome is None:
            _pass_on(news.reports, ledger, on_reports)
        _pass_on(news.reports, ledger, on_reports)
        outcome = news.outcome
    finally:
        run.close(ended=outcome is not None)
    if not outcome["succeeded"]:
        return Outcome(False, outcome["reason"], {}, stopped=outcome.get("stopped", False))
    spec = plan.model_dump(mode="json", by_alias=True)
    result = {
        "state": "SUCCEEDED",
        **outcome["result"],
        "attempt": attempt,
        **ledger.totals(),
        "elastic": ledger.events,
        "spec": spec,
    }
    _write(directory / "result.json", json.dumps(result, indent=2) + "\n")
    return Outcome(True, "", result)


def settle(wait_s: float = 40.0) -> None:
    """Wait until what a run was still starting when it ended is over; to be called before ``ray.shutdown``.

    ``train`` doesn't wait for it. A thread of Ray Train's that waits in a Ray which is shut down aborts the process
    when the next one starts (seen with Ray 2.60.0). A worker that starts finds its run over within seconds.
    """
    deadline = time.monotonic() + wait_s
    for thread in threading.enumerate():
        if thread.name.startswith(_THREAD):
            thread.join(max(0.0, deadline - time.monotonic()))


def _pass_on(reports: Sequence[Report], ledger: Ledger, on_reports: Callable[[Sequence[Report]], None]) -> None:
    for report in reports:
        if report.kind == "elastic":
            ledger.add(report.data)
    if reports:
        on_reports(reports)


class _Run:
    """A run as its driver sees it: its coordinator, its crew, and what is wanted of both."""

    def __init__(self, plan: Plan, directory: Path, name: str, reached: int, faults: Sequence[Fault]) -> None:
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
            lambda *where: _TrainRun(plan, resources, directory, config, *where), resources, plan.workers.min
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
        news: News = ray.get(self._coordinator.news.remote(_LOOK_S / 2), timeout=_ANSWER_S)
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
            ray.get(self._coordinator.want.remote(wanted), timeout=_ANSWER_S)
        if orders.stop and not self._stop:
            self._stop = orders.stop
            ray.get(self._coordinator.stop.remote(orders.stop), timeout=_ANSWER_S)

    def _look_after(self) -> None:
        self._looked_at = time.monotonic()
        draining = set(ray._private.state.state.get_draining_nodes())  # what Ray Train's own watcher asks
        if draining != self._draining:
            self._draining = draining
            ray.get(self._coordinator.drain.remote([*draining]), timeout=_ANSWER_S)
        if not self._stop:
            dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
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
        ray.get(self._coordinator.report.remote([report]), timeout=_ANSWER_S)


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Without what would start more actors for each run: Ray Data's manager, for data sets that we don't have, and the
    cleaner of placement groups, which end with the runner's job anyway. Each costs two seconds of a processor."""

    def _create_default_callbacks(self) -> list[Any]:
        without = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, without)]


class _TrainRun:
    """Ray Train's run of one worker, in a thread, and the error it ended with."""

    def __init__(
        self, plan: Plan, resources: dict[str, float], directory: Path, config: dict[str, Any], name: str, node: str
    ) -> None:
        self.name, self.node = name, node
        self.error: BaseException | None = None
        self._trainer = _Trainer(
            _work,
            train_loop_config=config | {"name": name},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=plan.workers.gpus > 0,
                resources_per_worker=resources,
                label_selector={"ray.io/node-id": node},
            ),
            run_config=ray.train.RunConfig(
                name=directory.name,
                storage_path=str(directory.parent),
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name=f"{_THREAD} {name}", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has ended, and holds nothing any more."""
        return not self._thread.is_alive()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error


def _work(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    import torch

    from .faults import Saboteur
    from .loop import Storage, Worker
    from .membership import Seat
    from .pairs import Hosts
    from .reports import Reporter

    plan, coordinator, name = config["plan"], config["coordinator"], config["name"]
    torch.set_num_threads(plan.workers.threads)
    device = torch.device("cuda", 0) if plan.workers.gpus else torch.device("cpu")
    meeting = RemoteMeeting(coordinator)
    reporter = Reporter(coordinator.report.remote, partial(ray.get, timeout=_ANSWER_S))
    outcome: dict[str, Any] | None = None
    with reporter.capturing_output(name):
        try:
            seat = Seat(
                meeting,
                run=config["run"],
                name=name,
                node=ray.get_runtime_context().get_node_id(),
                host=ray.util.get_node_ip_address(),
                device=device,
                deadline_s=plan.workers.deadline_s,
                hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
            )
            storage = ray.train.get_context().get_storage()
            place = Storage(storage.storage_filesystem, storage.experiment_fs_path)
            faults = Saboteur(config["faults"], meeting.claim, meeting.due) if config["faults"] else None
            result = Worker(plan, seat, place, reporter, device, faults).run()
            outcome = None if result is None else {"succeeded": True, "result": result}
        except RunError as error:
            outcome = {"succeeded": False, "reason": str(error)}
        except ray.exceptions.RayError:
            return  # the coordinator is gone, and the run with it
        except Exception as error:
            traceback.print_exc()
            reason = f"{name} failed with {type(error).__name__}: {error}; see the log"
            outcome = {"succeeded": False, "retry": True, "reason": reason}
    if outcome is not None:
        reporter.settle()
        ray.get(coordinator.finish.remote(name, outcome), timeout=_ANSWER_S)


class RemoteMeeting:
    """The coordinator actor, called blockingly. See ``Coordinator`` for what each call says."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._handle = ray.get_runtime_context().current_actor

    def join(self, member: Member, word: Word) -> View:
        """Wait for the next generation; raises as ``Coordinator.join``, or a RayError if the actor is gone."""
        try:
            return ray.get(self._coordinator.join.remote(member, word, self._handle))  # type: ignore[no-any-return]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def watch(self, name: str, generation: int, step: int, patience_s: float, wait_s: float) -> bool:
        asked = self._coordinator.watch.remote(name, generation, step, patience_s, wait_s)
        return bool(ray.get(asked, timeout=_ANSWER_S))

    def resumed(self, generation: int, step: int, pause_s: float | None) -> None:
        self._coordinator.resumed.remote(generation, step, pause_s)

    def saved(self, name: str, step: int) -> None:
        ray.get(self._coordinator.saved.remote(name, step), timeout=_ANSWER_S)

    def claim(self, number: int) -> bool:
        return bool(ray.get(self._coordinator.claim.remote(number), timeout=_ANSWER_S))

    def due(self, numbers: Sequence[int]) -> bool:
        return bool(ray.get(self._coordinator.due.remote([*numbers]), timeout=_ANSWER_S))


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    aside.write_text(text)
    aside.replace(path)
