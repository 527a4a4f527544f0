"""One worker's life in a run: join, take the state, step after step, report, checkpoint, evaluate, finish.

When an exchange fails the worker goes back to the meeting with the state it has, and on with whoever else comes; its
process is not restarted. All decisions below depend on the plan, the step and what an exchange has brought, so every
worker makes the same ones. Whatever follows a commit changes the record in one statement at its end, so it can be
begun again when it is cut off.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from pydantic import JsonValue

from .checkpoints import Checkpoints, Record, Saved, identity_of, restore
from .data import TrainingData
from .engine import Engine, StepReport
from .errors import Dismissed, ExchangeError, WorkerLate
from .evaluate import evaluate
from .exchange import Exchange
from .faults import Saboteur
from .membership import Seat
from .pairs import View
from .plan import Plan
from .reports import Reporter
from .storage import Storage, StorageError, insistently
from .task import load_task
from .words import Place

_TRANSFER = "transfer of the state"
_PASSED_ON_S = 30.0  # after which what was told has certainly reached the runner
_HOLD_S = 0.02  # between two looks, while a planned fault waits for a complete crew


class Worker:
    """One worker of a run.

    Args:
        plan: What to do.
        seat: Its place among the others.
        storage: Where checkpoints and the model go.
        reporter: Takes its reports.
        device: Where it computes.
        faults: What is to go wrong on purpose.
        hold_at: Epochs after which the run stops with a checkpoint, to be gone on with.
    """

    def __init__(
        self,
        plan: Plan,
        seat: Seat,
        storage: Storage,
        reporter: Reporter,
        device: torch.device,
        faults: Saboteur | None = None,
        hold_at: float | None = None,
    ) -> None:
        self._plan, self._seat, self._storage, self._reporter, self._faults = plan, seat, storage, reporter, faults
        self._device = device
        self._engine, self._record = self._new_engine(), Record()
        self._per_epoch = self._engine.data.batches.per_epoch
        self._hold_step = None if hold_at is None else round(hold_at * self._per_epoch)
        identity = identity_of(plan, self._engine.flat.names())
        self._checkpoints = Checkpoints(storage, identity, plan.checkpoint.keep, seat.member.name)
        self._has_state = False
        self._has_parts = False  # of another worker's state, written over its own
        self._in_flight = False
        self._failure: ExchangeError | None = None  # why the last generation ended for this worker
        self._first_step: int | None = None  # where this generation began, until its first commit
        self._went_on_at: float | None = None  # when the last step and what follows it were done
        self._pause_s: float | None = None  # from then to the beginning of this generation
        if faults is not None:
            self._checkpoints.probe = lambda step: self._strike("checkpointing", step - 1)

    def _new_engine(self) -> Engine:
        """Return an engine that stands where a run begins."""
        plan, task = self._plan, load_task(self._plan)
        task.model.to(self._device)
        data = TrainingData(task.train, task.augment, plan)
        engine = Engine(plan, task, data, plan.steps or (plan.epochs or 0) * data.batches.per_epoch)
        engine.probe = lambda phase: self._strike(phase, self._engine.state.step)
        return engine

    def run(self) -> dict[str, Any] | None:
        """Train to the end; return what the run came to, the same on every worker, or None if dismissed before.

        Raises:
            TaskError, NotFinite, CheckpointError: What a retry won't mend.
            StorageError: If the storage is away when nothing can go on without it.
        """
        if self._plan.compile:
            self._engine.warm_up()  # compiles; the next one tells how long a step takes
        began = time.monotonic()
        self._engine.warm_up()
        self._seat.expect((time.monotonic() - began) * 2 * self._plan.width)  # of one worker that does all halves
        try:
            while True:
                try:
                    exchange = self._seat.exchange or self._enter()
                    result = self._go_on(exchange)
                except ExchangeError as error:
                    print(error)
                    self._failure = error
                    self._seat.leave()
                    continue
                if result is not None:
                    return result
        except Dismissed as farewell:
            self._checkpoints.settle()
            if farewell.save:
                self._save_last()
            self._reporter.settle()
            return None
        finally:
            self._seat.close()

    def _go_on(self, exchange: Exchange) -> dict[str, Any] | None:
        """Do what follows the last commit, and one step more; or finish the run and return its result."""
        engine = self._engine
        if self._holds():
            self._seat.leave()  # somebody has come: the crew may be complete now
            return None
        if not engine.state.settled:
            self._settle(exchange)
        if engine.state.step == engine.steps:
            return self._finish(exchange)
        if engine.state.step == self._hold_step:
            return self._hold(exchange)
        began = time.perf_counter()
        self._in_flight = True
        done = engine.advance(exchange, asked=self._seat.asked)
        self._in_flight = False
        self._committed(done, time.perf_counter() - began, exchange.hosts.workers)
        if done.change:
            self._seat.leave()
        return None

    # Coming to a generation

    def _enter(self) -> Exchange:
        """Join the next generation, and stand where it begins."""
        state, failure = self._engine.state, self._failure
        place = Place(state.step, state.settled) if self._has_state else None
        in_flight, self._failure, self._in_flight = self._in_flight, None, False
        late = failure.worker if isinstance(failure, WorkerLate) else None
        exchange = self._seat.enter(place, in_flight=in_flight, failure=str(failure or ""), late=late)
        view = self._seat.view
        assert view is not None
        if view.source is None or view.behind:
            with self._seat.patient():
                if view.source is None:
                    self._begin(exchange)
                else:
                    self._hand_over(exchange, view)
                exchange.meet(_TRANSFER, self._engine.state.step)
        self._engine.regain(exchange.hosts, exchange.rank)
        if exchange.rank == 0:
            if view.save:
                self._save()
            if view.generation > 1:  # the one who was to pass these on may be gone
                self._tell_again()
        now = time.monotonic()
        self._pause_s = None if self._went_on_at is None else now - self._went_on_at
        self._first_step, self._went_on_at = self._engine.state.step, now
        return exchange

    def _begin(self, exchange: Exchange) -> None:
        """Nobody has a state: begin at the newest checkpoint, which the first member passes on, or anew."""
        if self._has_parts:
            self._engine, self._record, self._has_parts = self._new_engine(), Record(), False
        engine, state = self._engine, self._engine.state
        header: dict[str, Any] = {"found": False}
        if exchange.rank == 0:
            insistently(lambda: self._checkpoints.sweep(()))
            content = insistently(self._checkpoints.load_newest)
            if content is not None:
                self._has_parts = True
                engine.make_room(state, carried=content["carries"])
                self._record = restore(state, content)
                header = {"found": True} | self._header()
        header = exchange.tell(_TRANSFER, 0, header)
        if header["found"]:
            self._has_parts = True
            if exchange.rank:
                engine.make_room(state, carried=header["carries"])
            exchange.spread(_TRANSFER, header["step"], state.tensors(), 0)
            self._stand_at(header)
        self._has_state, self._has_parts = True, False
        if exchange.rank == 0:
            self._tell_again()
            if engine.state.step:
                self._reporter.report("checkpoint", asdict(self._checkpoints.describe(engine.state.step)))

    def _hand_over(self, exchange: Exchange, view: View) -> None:
        """Pass the state from the source to those who are behind."""
        engine, source, behind = self._engine, view.source, view.behind
        assert source is not None
        if exchange.rank == source:
            exchange.tell(_TRANSFER, engine.state.step, self._header(), source, behind)
            exchange.spread(_TRANSFER, engine.state.step, engine.state.tensors(), source, behind)
        elif exchange.rank in behind:
            header = exchange.tell(_TRANSFER, engine.state.step, None, source, behind)
            # what this worker has stays whole until all has come, in case the source is lost meanwhile
            state = engine.blank_state() if self._has_state else engine.state
            self._has_parts = not self._has_state
            engine.make_room(state, carried=header["carries"])
            exchange.spread(_TRANSFER, header["step"], state.tensors(), source, behind)
            engine.state = state
            self._stand_at(header)
            self._has_state, self._has_parts = True, False

    def _header(self) -> dict[str, Any]:
        state = self._engine.state
        return {
            "step": state.step,
            "settled": state.settled,
            "carries": state.carried is not None,
            "origin": None if state.origin is None else state.origin.tell(),
            "record": asdict(self._record),
        }

    def _stand_at(self, header: dict[str, Any]) -> None:
        state = self._engine.state
        state.step, state.settled, self._record = header["step"], header["settled"], Record(**header["record"])
        if state.origin is not None:
            state.origin.heed(header["origin"])

    def _tell_again(self) -> None:
        """Report what is trained, and what others may not have passed on."""
        engine = self._engine
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
        for kind, data, _ in self._record.told:
            self._reporter.report(kind, data)

    # Steps, and what follows them

    def _committed(self, done: StepReport, seconds: float, workers: int) -> None:
        """Take note of a step."""
        step, record = self._engine.state.step, self._record
        record.seconds += seconds
        record.worker_seconds += seconds * workers
        if done.loss is None:
            print(f"step {done.step} is skipped: a gradient was too large for float16; the scale of the loss is halved")
        else:
            record.window.append(done.loss)
        record.last = {
            "perturbed_loss": done.perturbed_loss,
            "gradient_norm": done.gradient_norm,
            "lr": done.lr,
            "rho": done.rho,
            "seconds": {phase: round(value, 6) for phase, value in done.seconds.items()},
        }
        self._seat.committed(step, seconds)
        if self._first_step is not None:
            self._seat.resumed(self._first_step, self._pause_s)
            self._first_step = None
        self._went_on_at = time.monotonic()

    def _settle(self, exchange: Exchange) -> None:
        """Do what follows the last commit."""
        plan, state, record = self._plan, self._engine.state, self._record.copy()
        step, last = state.step, state.step == self._engine.steps
        if step == 0:
            self._engine.start(exchange)
        elif step % plan.report.every_steps == 0 or step == 1 or last:
            self._report_metrics(record, exchange)
        every = plan.evaluate.every_epochs
        if step and (last or (every and step % (every * self._per_epoch) == 0)):
            self._evaluate(record, exchange)
        saves = step and step % plan.checkpoint.every_steps == 0 and not last
        if saves:
            before_last = step - plan.checkpoint.every_steps
            old = time.time() - _PASSED_ON_S
            record.told = [entry for entry in record.told if entry[1]["step"] > before_last or entry[2] > old]
        self._record, state.settled = record, True
        if saves and exchange.rank == 0:
            self._save()
        elif saves and self._faults is not None:
            self._strike("checkpointing", step - 1)
        self._went_on_at = time.monotonic()

    def _report_metrics(self, record: Record, exchange: Exchange) -> None:
        step, window, record.window = self._engine.state.step, record.window, []
        data: dict[str, JsonValue] = {
            "step": step,
            "epoch": round(step / self._per_epoch, 4),
            "loss": sum(window) / len(window) if window else None,
            **record.last,
            **self._engine.scaling_report(),
            "seconds_per_step": round(record.seconds / step, 6),
            "worker_seconds": round(record.worker_seconds, 3),
        }
        self._tell(record, "metrics", data, exchange, at_once=step == 1)

    def _evaluate(self, record: Record, exchange: Exchange) -> None:
        step = self._engine.state.step
        for split, data in self._engine.task.evaluations().items():
            began = time.perf_counter()
            with self._seat.patient():
                measured = evaluate(self._engine, exchange, data)
            record.worker_seconds += (time.perf_counter() - began) * exchange.hosts.workers
            entry: dict[str, JsonValue] = {"step": step, "epoch": round(step / self._per_epoch, 4), "split": split}
            entry |= measured
            record.evaluations.append(entry)
            self._tell(record, "evaluation", entry, exchange)

    def _tell(
        self, record: Record, kind: str, data: dict[str, JsonValue], exchange: Exchange, *, at_once: bool = False
    ) -> None:
        record.told.append((kind, data, time.time()))
        if exchange.rank == 0:
            self._reporter.report(kind, data, at_once=at_once)

    def _save(self, *, last: bool = False) -> None:
        """Write a checkpoint in the background."""
        view = self._seat.view
        writing = {member.name for member in view.members} if view else {self._seat.member.name}

        def done(saved: Saved) -> None:
            self._reporter.report("checkpoint", asdict(saved), at_once=True)
            self._checkpoints.sweep(writing)

        self._checkpoints.save(self._engine.state, self._record, done, last=last)

    def _save_last(self) -> None:
        """Write a checkpoint, and say so once it is durable: the run stops here."""
        self._save(last=True)
        self._checkpoints.settle()
        self._reporter.settle()
        self._seat.saved(self._engine.state.step)

    # Faults on purpose

    def _holds(self) -> bool:
        """Wait while a planned fault needs a complete crew; say whether a change of members is asked for meanwhile."""
        asked = False
        while self._faults is not None and not asked and self._faults.waits(self._engine.state.step):
            time.sleep(_HOLD_S)
            asked = self._seat.asked
            self._went_on_at = time.monotonic()
        return asked

    def _strike(self, phase: str, step: int) -> None:
        exchange = self._seat.exchange
        if self._faults is not None and exchange is not None:
            self._faults.strike(phase, step, exchange.rank)

    # The end

    def _hold(self, exchange: Exchange) -> dict[str, Any]:
        """Write a checkpoint, and return where the run stands."""
        step = self._engine.state.step
        self._checkpoints.settle()
        if exchange.rank == 0:
            self._save(last=True)
            self._checkpoints.settle()
        self._reporter.settle()
        with self._seat.patient():
            exchange.meet("hold of the run", step)
        self._seat.leave()
        return {"held_at": step}

    def _finish(self, exchange: Exchange) -> dict[str, Any]:
        """Write the model, see that everyone's reports and files are complete, and return the run's result."""
        engine = self._engine
        if exchange.rank == 0:
            self._write_model()
        self._checkpoints.settle()
        self._reporter.settle()
        with self._seat.patient():
            exchange.meet("end of the run", engine.state.step)
        if exchange.rank == 0:
            with suppress(StorageError):
                self._checkpoints.sweep(())
        self._seat.leave()
        evaluations = self._record.evaluations
        last = {entry["split"]: entry for entry in evaluations}
        return {
            "steps": engine.state.step,
            "epochs": round(engine.state.step / self._per_epoch, 4),
            "metrics": {"final": last, "best": _best(evaluations)},
            "parameters": engine.flat.count(),
            "seconds": round(self._record.seconds, 3),
            "worker_seconds": round(self._record.worker_seconds, 3),
            "steps_per_second": round(engine.state.step / max(self._record.seconds, 1e-9), 3),
        }

    def _write_model(self) -> None:
        self._engine.stand_on_weights()
        tensors = {name: t.detach().cpu().clone() for name, t in self._engine.task.model.state_dict().items()}
        content = safetensors.torch.save(tensors)
        insistently(lambda: self._storage.write("model.safetensors", content))


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
