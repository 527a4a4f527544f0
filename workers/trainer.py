"""All workers of a run, on Ray Train: the only module that knows Ray Train.

Ray Train places the worker actors, sets up their devices, watches them and replaces those that fail. The
backend config declares every worker a replica group of its own, so that a failed one is replaced while the
others go on running; what they do meanwhile is the loop's and the coordinator's business.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
from pydantic import JsonValue
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .coordinator import JOIN_S, Coordinator
from .errors import Interrupted, RunError, RunOver
from .pairs import Member, View
from .plan import Plan
from .reports import Report

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # Ray Train's would report what is printed twice

MAX_FAILURES = 20  # of workers in one run; each costs the steps since the newest checkpoint
_SETTLE_S = 10.0  # seconds that a finished run's actors get to end by themselves
_ANSWER_S = 60.0  # seconds in which the coordinator answers, or its node is lost


class _ReplicaGroups(Backend):  # type: ignore[misc]
    has_replica_groups = True


class _SampaConfig(BackendConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[Backend]:
        return _ReplicaGroups


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        succeeded: Whether it trained to its last step.
        reason: Why not, in a sentence; empty if it did.
        result: The content of result.json; empty if it did not.
    """

    succeeded: bool
    reason: str
    result: dict[str, JsonValue]


def train(
    plan: Plan, directory: Path, *, on_reports: Callable[[Sequence[Report]], None], attempt: int = 1, reached: int = 0
) -> Outcome:
    """Train to the end on the Ray cluster that this process is connected to; resume if there is a checkpoint.

    Writes ``model.safetensors`` and ``result.json`` into ``directory`` on success.

    Args:
        plan: What to do; more fields than a plan's, such as a job's name, go into the result as they are.
        directory: The run's own, on storage that all workers share; ``checkpoints`` lies below.
        on_reports: Called from this thread with the reports as they come.
        attempt: Number of this attempt at the run.
        reached: The last step that earlier attempts are known to have committed.

    Raises:
        Interrupted, ray.exceptions.RayError: If the infrastructure failed; call again to resume.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    size = workers_for(plan)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    coordinator = (
        ray.remote(Coordinator).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote(size)
    )
    config = {
        "plan": plan.training_part(),
        "coordinator": coordinator,
        "run": f"{directory.name}-{attempt}-{uuid4().hex[:8]}",
        "reached": reached,
    }
    run = _Run(_trainer(plan, size, directory, config))
    ledger = _Ledger()
    try:
        outcome = None
        while outcome is None:
            reports, outcome = _news(coordinator, run)
            ledger.add(reports)
            if reports:
                on_reports(reports)
        run.thread.join(_SETTLE_S)
    finally:
        ray.kill(coordinator)
    if not outcome["succeeded"]:
        return Outcome(False, outcome["reason"], {})
    spec = plan.model_dump(mode="json", by_alias=True)
    result = {"state": "SUCCEEDED", **outcome["result"], "attempt": attempt, **ledger.totals(), "spec": spec}
    _write(directory / "result.json", json.dumps(result, indent=2) + "\n")
    return Outcome(True, "", result)


def workers_for(plan: Plan) -> int:
    """Return how many workers the cluster has room for, between the plan's limits."""
    room: dict[str, float] = ray.cluster_resources()
    fits = [math.floor(room.get("CPU", 0) / plan.workers.cpus)]
    if plan.workers.gpus:
        fits.append(math.floor(room.get("GPU", 0) / plan.workers.gpus))
    return max(plan.workers.min, min(plan.max_workers, *fits))


class _Run:
    """Ray Train's run in a thread, and the error it ended with."""

    def __init__(self, trainer: DataParallelTrainer) -> None:
        self._trainer = trainer
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error


class _Ledger:
    """Adds up what a run's elastic events cost."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def add(self, reports: Sequence[Report]) -> None:
        self._events += [report.data for report in reports if report.kind == "elastic"]

    def totals(self) -> dict[str, int]:
        lost = sum(int(event["steps_lost"]) for event in self._events)
        return {"restarts": sum(event["cause"] != "start" for event in self._events), "steps_lost": lost}


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Without what would start more actors for each run: Ray Data's manager, for data sets that we don't have, and the
    cleaner of placement groups, which end with the runner's job anyway. Each costs two seconds of a processor."""

    def _create_default_callbacks(self) -> list[Any]:
        without = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, without)]


def _trainer(plan: Plan, size: int, directory: Path, config: dict[str, Any]) -> DataParallelTrainer:
    resources = {"CPU": plan.workers.cpus} | ({"GPU": plan.workers.gpus} if plan.workers.gpus else {})
    return _Trainer(
        _work,
        train_loop_config=config,
        backend_config=_SampaConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=size,
            use_gpu=plan.workers.gpus > 0,
            resources_per_worker=resources,
            placement_strategy="PACK",
        ),
        run_config=ray.train.RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def _news(coordinator: Any, run: _Run) -> tuple[list[Report], dict[str, Any] | None]:
    over = not run.thread.is_alive()
    reports, outcome = ray.get(coordinator.news.remote(0.0 if over else 1.0), timeout=_ANSWER_S)
    if over and outcome is None and not reports:
        why = str(run.error or "Ray Train ended it, but no worker said how").strip().splitlines()[0]
        raise Interrupted(why) from run.error
    return reports, outcome


def _work(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    import torch

    from .loop import Storage, Worker
    from .membership import Seat
    from .pairs import Hosts
    from .reports import Reporter

    plan, coordinator = config["plan"], config["coordinator"]
    torch.set_num_threads(plan.workers.threads)
    context = ray.train.get_context()
    device = torch.device("cuda", 0) if plan.workers.gpus else torch.device("cpu")
    name = f"worker {context.get_world_rank()}"
    reporter = Reporter(coordinator.report.remote, partial(ray.get, timeout=_ANSWER_S))
    outcome: dict[str, Any]
    with reporter.capturing_output(name):
        try:
            seat = Seat(
                RemoteMeeting(coordinator),
                context.get_world_rank(),
                run=config["run"],
                name=name,
                node=ray.get_runtime_context().get_node_id(),
                host=ray.util.get_node_ip_address(),
                device=device,
                deadline_s=plan.workers.deadline_s,
                hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
            )
            storage = context.get_storage()
            place = Storage(storage.storage_filesystem, storage.experiment_fs_path)
            result = Worker(plan, seat, place, reporter, device, config["reached"]).run()
            outcome = {"succeeded": True, "result": result}
        except RunOver:
            return
        except RunError as error:
            outcome = {"succeeded": False, "reason": str(error)}
        except ray.exceptions.RayError:
            raise  # the infrastructure's fault: Ray Train decides whether to try again
        except Exception as error:
            traceback.print_exc()
            outcome = {"succeeded": False, "reason": f"{name} failed with {type(error).__name__}: {error}; see the log"}
    reporter.settle()
    ray.get(coordinator.finish.remote(outcome), timeout=_ANSWER_S)


class RemoteMeeting:
    """The coordinator actor, called blockingly."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def join(self, seat: int, member: Member) -> View:
        """Wait for the next generation; raises as ``Coordinator.join``, or a RayError if the actor is gone."""
        try:
            return ray.get(self._coordinator.join.remote(seat, member), timeout=JOIN_S + 60)  # type: ignore[no-any-return]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    aside.write_text(text)
    aside.replace(path)
