"""One step: place the model at a half's point, take its gradient, exchange, update. One worker's part of it.

The engine walks a method's rounds. All that may fail comes before the update; the update is the commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .data import TrainingData, move
from .errors import NotFinite, TaskError
from .exchange import Exchange, Means
from .flat import FlatModel, Vectors
from .methods.base import Answer, Gradients, Half, Kind, Moment, Round, norm
from .plan import Plan
from .task import Task

T = TypeVar("T")


@dataclass
class State:
    """What a run is at the boundary between two steps; a checkpoint holds all of it.

    Attributes:
        step: Steps committed.
        weights: Parameters and floating buffers, shape ``(size,)``.
        optimizer: Vectors of the base optimizer by name, each of shape ``(parameters,)``.
        carried: Plain gradients of the step before, each of shape ``(parameters,)``, or None; single shards' own
            only where their perturbed half is hosted.
        others: Buffers that can't be averaged; those of shard 0's plain half.
    """

    step: int
    weights: Tensor
    optimizer: dict[str, Tensor]
    carried: Gradients | None = None
    others: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class StepReport:
    """What one committed step was like.

    Attributes:
        step: Its index.
        lr: Learning rate.
        rho: Radius of the perturbation.
        loss: Mean loss of the plain halves.
        perturbed_loss: Mean loss of the perturbed halves, or None for methods without.
        gradient_norm: L2 norm of the direction of the update.
        seconds: How long it took, by ``compute``, ``exchange`` (waiting included) and ``update``.
    """

    step: int
    lr: float
    rho: float
    loss: float
    perturbed_loss: float | None
    gradient_norm: float
    seconds: dict[str, float]


class Engine:
    """One worker's model, state and stock of vectors.

    Args:
        plan: What to do.
        task: What is trained; its model becomes views into the engine's vectors.
        data: The shards of every batch.
        steps: Length of the whole run, for the schedules.
    """

    def __init__(self, plan: Plan, task: Task, data: TrainingData, steps: int) -> None:
        self.plan, self.task, self.data, self.steps = plan, task, data, steps
        self.flat = FlatModel(task.model)
        self.vectors = Vectors(self.flat)
        weights = self.flat.vector().copy_(self.flat.point)
        optimizer = {name: torch.zeros_like(weights[: self.flat.parameters]) for name in plan.optimizer.state_names}
        self.state = State(0, weights, optimizer, others=[other.clone() for other in self.flat.others])
        self._others = [other.clone() for other in self.flat.others]  # of this step's plain half of shard 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.plan.optimizer.lr * self.plan.schedule.factor(self.state.step, self.steps)

    @property
    def rho(self) -> float:
        """Radius of the next step."""
        return self.plan.method.radius(self.state.step, self.steps)

    def start(self, exchange: Exchange) -> None:
        """Do the rounds that come before step 0, if the method has any and they aren't done.

        Raises:
            ExchangeError, NotFinite, TaskError: As in ``advance``.
        """
        if self.state.step or self.state.carried is not None:
            return
        carried, means = self._walk(self.plan.method.start(self._moment()), exchange, _Clock())
        self._losses(means)
        self._commit(carried, means)

    def advance(self, exchange: Exchange) -> StepReport:
        """Make one step and commit it.

        Raises:
            ExchangeError: If a peer is late or lost; the state is the one before the step.
            NotFinite: If a loss or the update is not finite; likewise.
            TaskError: If the task's loss can't be used.
        """
        clock, state, lr, rho = _Clock(), self.state, self.lr, self.rho
        update, means = self._walk(self.plan.method.step(self._moment()), exchange, clock)
        losses = self._losses(means)
        size = self._finite("norm of the update", norm(update.direction))
        with clock.of("update"):
            weights = state.weights[: self.flat.parameters]
            self.plan.optimizer.step(weights, update.direction, state.optimizer, lr=lr, steps=state.step)
            self._commit(update.carried, means)
            state.step += 1
        return StepReport(
            state.step - 1, lr, rho, losses["plain"], losses.get("perturbed"), size, seconds=clock.seconds
        )

    def stand_on_weights(self) -> None:
        """Place the model at the committed weights and buffers."""
        with torch.no_grad():
            self.flat.point[: self.flat.parameters].copy_(self.state.weights[: self.flat.parameters])
            self._place_buffers()

    def _place_buffers(self) -> None:
        flat, state = self.flat, self.state
        flat.point[flat.parameters : flat.state].copy_(state.weights[flat.parameters : flat.state])
        for other, committed in zip(flat.others, state.others, strict=True):
            other.copy_(committed)

    def _moment(self) -> Moment:
        state, lr = self.state, self.lr
        weights = state.weights[: self.flat.parameters]

        def look_ahead(gradient: Tensor, out: Tensor) -> None:
            self.plan.optimizer.look_ahead(weights, gradient, state.optimizer, out, lr=lr, steps=state.step)

        return Moment(state.step, weights, state.carried, self.rho, look_ahead)

    def _walk(
        self, rounds: Generator[Round, Answer, T], exchange: Exchange, clock: _Clock
    ) -> tuple[T, dict[Kind, Tensor]]:
        """Answer a method's rounds until it ends; return its result and the mean vector of each kind of half."""
        self.vectors.keep_only(_tensors_of(self.state.carried))
        answer: Any = None
        seen: dict[Kind, Tensor] = {}
        while True:
            try:
                with clock.of("update"):
                    halves = rounds.send(answer)
            except StopIteration as end:
                return end.value, seen
            means = self._round(halves, exchange, clock)
            seen |= means.mean
            length = self.flat.parameters
            own = {shard: vector[:length] for shard, vector in means.own.items()}
            answer = {kind: Gradients(mean[:length], own) for kind, mean in means.mean.items()}

    def _round(self, halves: Round, exchange: Exchange, clock: _Clock) -> Means:
        hosts = exchange.hosts
        vectors: dict[tuple[Kind, int], Tensor] = {}
        with clock.of("compute"):
            for half in halves:
                for shard in hosts.shards(half.kind, exchange.rank):
                    vectors[half.kind, shard] = self._gradient(half, shard)
        step, kinds = self.state.step, [half.kind for half in halves]
        with clock.of("exchange"):
            by_shard = self.plan.method.perturbs_by_shard
            means = exchange.means(step, kinds, vectors, self.vectors.take, by_shard=by_shard)
            if self._others and "plain" in kinds:
                exchange.spread("exchange of counters", step, self._others, hosts.of("plain", 0))
        return means

    def _gradient(self, half: Half, shard: int) -> Tensor:
        """Return gradient, new buffers and loss of one half, as one vector of shape ``(size,)``."""
        flat = self.flat
        vector = self.vectors.take()
        with torch.no_grad():
            half.place(flat.point[: flat.parameters], shard)
            self._place_buffers()
        flat.gather_into(vector)
        batch = move(self.data.shard(half.batch, shard), flat.dtype, flat.device)
        loss = self._backward(batch)
        vector[flat.parameters : flat.state].copy_(flat.point[flat.parameters : flat.state])
        flat.loss_of(vector).copy_(loss)
        if half.kind == "plain" and shard == 0:
            for kept, other in zip(self._others, flat.others, strict=True):
                kept.copy_(other)
        return vector

    def _backward(self, batch: Any) -> Tensor:
        """Let the model's gradients be those of the mean loss of ``batch``; return that loss, shape ``()``."""
        task, where, rows = self.task, self.plan.task.entrypoint, self.plan.batch_size // self.plan.width
        task.model.train()
        try:
            losses = task.loss_of_samples(task.model, batch)
        except Exception as error:
            raise TaskError(f"the loss of task {where} raised {type(error).__name__}: {error}") from error
        if not isinstance(losses, Tensor) or losses.shape != (rows,):
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise TaskError(
                f"the loss of task {where} must return one value per sample, shape ({rows},), but returned {got}; "
                f"use reduction='none'"
            )
        loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _losses(self, means: dict[Kind, Tensor]) -> dict[str, float]:
        return {kind: self._finite(f"loss of the {kind} half", self.flat.loss_of(mean)) for kind, mean in means.items()}

    def _finite(self, what: str, value: Tensor) -> float:
        number = float(value)
        if not math.isfinite(number):
            raise NotFinite(what, number, self.state.step, self.plan.describe_method())
        return number

    def _commit(self, carried: Gradients | None, means: dict[Kind, Tensor]) -> None:
        state, buffers = self.state, slice(self.flat.parameters, self.flat.state)
        if "plain" in means:
            state.weights[buffers].copy_(means["plain"][buffers])
            for committed, new in zip(state.others, self._others, strict=True):
                committed.copy_(new)
        state.carried = carried


class _Clock:
    """Adds up where the time of a step goes."""

    def __init__(self) -> None:
        self.seconds = {"compute": 0.0, "exchange": 0.0, "update": 0.0}

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began


def _tensors_of(gradients: Gradients | None) -> Iterator[Tensor]:
    if gradients is not None:
        yield gradients.mean
        yield from gradients.own.values()
