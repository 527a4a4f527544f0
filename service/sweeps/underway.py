"""A trial that the study has begun, as its sweep's runner knows it until the study is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from ...workers.trainer import Outcome
from ..records import Job
from ..runner import Journal
from ..specs import JobSpec
from ..states import State
from .results import Measured
from .spec import Part
from .study import Point

Changes = tuple[tuple[float, Mapping[str, JsonValue]], ...]


@dataclass
class Underway:
    """What has become of one trial.

    Attributes:
        job: Its record, as it was last read.
        spec: What it trains now.
        hold_at: Epochs after which it is held, or None.
        journal: By which its present attempt is written down; None while it waits.
        outcome: How its training has ended, while the study may not have come to that.
        held: Whether it has come to ``hold_at``, with a checkpoint.
        at_hold: What the study is told once it is held there.
        validates: Whether it is evaluated on a validation set.
        points: Its evaluations, in order.
        steps: The step of each point, by its epoch.
        exploits: With which values it has gone on from another's state, by the epoch.
        changes: What its state was trained with, see ``Measured``; empty if it has always been the same.
    """

    job: Job
    spec: JobSpec
    hold_at: float | None
    journal: Journal | None = None
    outcome: Outcome | None = None
    held: bool = False
    at_hold: Point | None = None
    validates: bool = False
    points: list[Point] = field(default_factory=list)
    steps: dict[float, int] = field(default_factory=dict)
    exploits: dict[float, Mapping[str, JsonValue]] = field(default_factory=dict)
    changes: Changes = ()

    @property
    def key(self) -> str:
        return self.job.id

    @property
    def part(self) -> Part:
        assert self.job.part is not None
        return self.job.part

    @property
    def attempt(self) -> int:
        """By whose number it is written of."""
        return self.journal.attempt if self.journal else self.job.attempt

    @property
    def values(self) -> Mapping[str, JsonValue]:
        """The searched fields as they were suggested, or as a population has changed them since."""
        return next(reversed(self.exploits.values()), self.part.values)

    @property
    def history(self) -> Changes:
        """What its state was trained with, from the beginning."""
        return self.changes or ((0.0, self.part.values),)

    @property
    def diverged(self) -> bool:
        return self.outcome is not None and self.outcome.diverged

    def measured(self, state: State, reason: str) -> Measured:
        """Return it as a report needs it, ended in this state."""
        part = self.part
        return Measured(
            number=part.number,
            configuration=part.configuration,
            baseline=part.baseline,
            values=self.values,
            seed=part.seed,
            state=state,
            reason=reason,
            curve=tuple((point.epoch, point.score) for point in self.points),
            full=state is State.SUCCEEDED,
            seconds=round(self._seconds, 3),
            gradients=round(self.points[-1].gradients) if self.points else 0,
            diverged=self.diverged,
            changes=self.changes,
        )

    @property
    def _seconds(self) -> float:
        """Those of all its workers together, or what is known of them."""
        progress = self.journal.progress if self.journal else self.job.progress
        ended = (self.outcome.result if self.outcome else self.job.result) or {}
        told = ended.get("worker_seconds") or progress.get("worker_seconds")
        if isinstance(told, (int, float)):
            return float(told)
        return float((progress.get("step") or 0) * (progress.get("seconds_per_step") or 0.0))
