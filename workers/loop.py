"""One worker's life in a run: join, take the state, step after step, report, checkpoint, evaluate, finish.

When an exchange fails the worker leaves the generation, joins the next one, and goes on from the newest
checkpoint; its process is not restarted. All decisions below depend on the plan and the step alone, so every
worker makes the same ones.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import safetensors.torch
import torch
from pyarrow import fs
from pydantic import JsonValue

from .checkpoints import Checkpoints, Record, restore
from .data import TrainingData
from .engine import Engine, StepReport
from .errors import ExchangeError
from .evaluate import evaluate
from .exchange import Exchange
from .membership import Seat
from .methods.base import Gradients
from .plan import Plan
from .reports import Reporter
from .task import load_task


@dataclass(frozen=True)
class Storage:
    """Where a run's files lie: a file system, and the run's directory on it."""

    filesystem: fs.FileSystem
    directory: str


@dataclass(frozen=True)
class _Loss:
    """A generation that ended: when (monotonic seconds), after which step, and why."""

    at: float | None
    step: int
    reason: str


class Worker:
    """One worker of a run.

    Args:
        plan: What to do.
        seat: Its place among the others.
        storage: Where checkpoints and the model go.
        reporter: Takes its reports.
        device: Where it computes.
        reached: The last step that an earlier run of the same plan is known to have committed.
    """

    def __init__(
        self, plan: Plan, seat: Seat, storage: Storage, reporter: Reporter, device: torch.device, reached: int = 0
    ) -> None:
        self._plan, self._seat, self._storage, self._reporter, self._device = plan, seat, storage, reporter, device
        self._reached_before = reached
        self._lost: _Loss | None = None
        self._build()

    def run(self) -> dict[str, Any]:
        """Train to the end; return what the run came to, the same on every worker.

        Raises:
            TaskError, NotFinite, CheckpointError: What a retry won't mend.
            MembershipError: If the other workers don't come.
            RunOver: If the run ended without this worker.
        """
        while True:
            try:
                return self._run_in_one_generation()
            except ExchangeError as error:
                print(error)
                self._seat.leave()
                self._lost = _Loss(time.monotonic(), self._engine.state.step, str(error))
                self._build()

    def _build(self) -> None:
        plan = self._plan
        task = load_task(plan)
        task.model.to(self._device)
        data = TrainingData(task.train, task.augment, plan)
        self._per_epoch = data.batches.per_epoch
        self._engine = Engine(plan, task, data, plan.steps or (plan.epochs or 0) * self._per_epoch)
        self._record = Record()
        idle = {"workers", "checkpoint", "report"}  # fields that don't shape the trajectory
        identity = plan.model_dump(mode="json", by_alias=True, exclude=idle) | {"layout": self._engine.flat.names()}
        self._checkpoints = Checkpoints(
            self._storage.filesystem, self._storage.directory, identity, plan.checkpoint.keep
        )

    def _run_in_one_generation(self) -> dict[str, Any]:
        engine = self._engine
        exchange = self._seat.exchange(engine.state.step)
        self._take_state(exchange)
        self._announce(exchange)
        engine.start(exchange)
        while engine.state.step < engine.steps:
            exchange = self._seat.exchange(engine.state.step)
            began = time.perf_counter()
            done = engine.advance(exchange)
            self._record.seconds += time.perf_counter() - began
            self._record.window.append(done.loss)
            self._after_step(done, exchange)
        return self._finish(exchange)

    def _after_step(self, done: StepReport, exchange: Exchange) -> None:
        plan, step, last = self._plan, done.step + 1, done.step + 1 == self._engine.steps
        if step % plan.report.every_steps == 0 or done.step == 0 or last:
            self._report_metrics(done, exchange)
        every = plan.evaluate.every_epochs
        if last or (every and step % (every * self._per_epoch) == 0):
            self._evaluate(exchange)
        if step % plan.checkpoint.every_steps == 0 and not last:
            self._save(exchange)

    def _report_metrics(self, done: StepReport, exchange: Exchange) -> None:
        window, self._record.window = self._record.window, []
        data: dict[str, JsonValue] = {
            "step": done.step + 1,
            "epoch": round((done.step + 1) / self._per_epoch, 4),
            "loss": sum(window) / len(window),
            "perturbed_loss": done.perturbed_loss,
            "gradient_norm": done.gradient_norm,
            "lr": done.lr,
            "rho": done.rho,
            "seconds_per_step": round(self._record.seconds / (done.step + 1), 6),
            "seconds": {phase: round(value, 6) for phase, value in done.seconds.items()},
        }
        self._tell("metrics", data, exchange, at_once=done.step == 0)

    def _evaluate(self, exchange: Exchange) -> None:
        step = self._engine.state.step
        for split, data in self._engine.task.evaluations().items():
            measured = evaluate(self._engine, exchange, data)
            entry: dict[str, JsonValue] = {"step": step, "epoch": round(step / self._per_epoch, 4), "split": split}
            entry |= measured
            self._record.evaluations.append(entry)
            self._tell("evaluation", entry, exchange)

    def _tell(self, kind: str, data: dict[str, JsonValue], exchange: Exchange, *, at_once: bool = False) -> None:
        self._record.told.append((kind, data))
        if exchange.rank == 0:
            self._reporter.report(kind, data, at_once=at_once)

    def _save(self, exchange: Exchange) -> None:
        state, record = self._engine.state, self._record
        own = {}
        if state.carried is not None and self._plan.method.perturbs_by_shard:
            own = exchange.collect("checkpoint", state.step, state.carried.own, state.carried.mean)
        if exchange.rank == 0:
            saved = self._checkpoints.save(state, own, record)
            self._reporter.report("checkpoint", asdict(saved), at_once=True)
        before_last = state.step - self._plan.checkpoint.every_steps
        record.told = [(kind, data) for kind, data in record.told if int(str(data["step"])) > before_last]

    def _take_state(self, exchange: Exchange) -> None:
        """Begin at the newest checkpoint: the first member reads it and passes it on to the others."""
        engine, state, operation = self._engine, self._engine.state, "transfer of the state"
        own: dict[int, torch.Tensor] = {}
        header: dict[str, Any] = {}
        if exchange.rank == 0:
            content = self._checkpoints.load_newest()
            if content is not None:
                own, self._record = restore(state, content, engine.vectors.take)
            header = {"step": state.step, "carries": state.carried is not None, "record": asdict(self._record)}
        header = exchange.tell(operation, header)
        state.step, self._record = header["step"], Record(**header["record"])
        if not state.step:
            return
        carried = []
        if header["carries"]:
            mean = state.carried.mean if state.carried else engine.vectors.take()[: engine.flat.parameters]
            carried = [mean]
        tensors = [state.weights, *state.optimizer.values(), *state.others, *carried]
        exchange.spread(operation, state.step, tensors, 0)
        if carried:
            by_shard = self._plan.method.perturbs_by_shard
            mine = exchange.deal(operation, state.step, own, mean) if by_shard else {}
            state.carried = Gradients(mean, mine)

    def _announce(self, exchange: Exchange) -> None:
        """Report how this generation came about, and at what cost."""
        plan, step, view = self._plan, self._engine.state.step, self._seat.view
        assert view is not None
        lost = self._lost or _Loss(None, self._reached_before, "")
        reached = exchange.highest("transfer of the state", max(lost.step, step))
        seconds = exchange.highest("transfer of the state", time.monotonic() - lost.at if lost.at else 0.0)
        survivor = int(exchange.highest("transfer of the state", exchange.rank + 1.0 if self._lost else 0.0)) - 1
        reason = exchange.tell("transfer of the state", lost.reason, max(survivor, 0))  # rank 0 may be the newcomer
        if exchange.rank:
            return
        cause = "loss" if view.generation > 1 else "resume" if step or self._reached_before else "start"
        engine, size = self._engine, exchange.hosts.workers
        self._reporter.report(
            "task",
            {
                "steps": engine.steps,
                "steps_per_epoch": self._per_epoch,
                "parameters": engine.flat.count(),
                "training_rows": engine.data.batches.rows,
                "dtype": str(engine.flat.dtype).removeprefix("torch."),
            },
        )
        if step:
            for kind, data in self._record.told:
                self._reporter.report(kind, data)
            self._reporter.report("checkpoint", asdict(self._checkpoints.describe(step)))
        self._reporter.report(
            "elastic",
            {
                "cause": cause,
                "generation": view.generation,
                "step": step,
                "steps_lost": int(reached) - step,
                "samples_replayed": (int(reached) - step) * plan.batch_size,
                "recovery_seconds": round(seconds, 3),
                "workers_before": 0 if view.generation == 1 else size,
                "workers_after": size,
                "detail": reason,
            },
            at_once=True,
        )

    def _finish(self, exchange: Exchange) -> dict[str, Any]:
        """Write the model, see that everyone's reports have arrived, leave, and return the run's result."""
        engine = self._engine
        if exchange.rank == 0:
            self._write_model()
        self._reporter.settle()
        exchange.highest("end of the run", 0.0)
        self._seat.leave()
        evaluations = self._record.evaluations
        last = {entry["split"]: entry for entry in evaluations}
        return {
            "steps": engine.state.step,
            "epochs": round(engine.state.step / self._per_epoch, 4),
            "metrics": {"final": last, "best": _best(evaluations)},
            "parameters": engine.flat.count(),
            "seconds": round(self._record.seconds, 3),
            "steps_per_second": round(engine.state.step / max(self._record.seconds, 1e-9), 3),
        }

    def _write_model(self) -> None:
        self._engine.stand_on_weights()
        tensors = {name: t.detach().cpu().clone() for name, t in self._engine.task.model.state_dict().items()}
        where = PurePosixPath(self._storage.directory) / "model.safetensors"
        aside = str(where.with_name(f".{where.name}.aside"))
        with self._storage.filesystem.open_output_stream(aside) as file:
            file.write(safetensors.torch.save(tensors))
        self._storage.filesystem.move(aside, str(where))


def _best(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the best evaluation: by accuracy if measured, else by loss; on validation data if there are any."""
    splits = {entry["split"] for entry in evaluations}
    split = "validation" if "validation" in splits else "test"
    rated = [entry for entry in evaluations if entry["split"] == split]
    if not rated:
        return None
    if "accuracy" in rated[0]:
        return max(rated, key=lambda entry: float(entry["accuracy"]))
    return min(rated, key=lambda entry: float(entry.get("loss", 0.0)))
