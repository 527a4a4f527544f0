"""The study: what a sweep tries, stops and copies, as a pure function of its spec and of its trials' results.

Results are taken in a *virtual order* that no clock has a part in. Think of ``parallel`` places that trials take one
after the other, all training equally fast, an epoch in a unit of time: a result of epoch ``e`` of a trial that came to
its place at time ``s`` is taken at ``s + e``, of two at the same time the lower number first. Really, trials run ahead
of this order or behind it as workers come and go, and results wait here until their turn has come. So the searcher and
the scheduler see the same history in every run of the sweep, and after kill -9 it is enough to give the results again.

Where neither the search nor a scheduler looks at results there is nothing to put in order: all trials begin at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from .schedule import Exploit, Schedule, schedule_of
from .search import Search, search_of
from .space import Values
from .spec import Part, SweepSpec


@dataclass(frozen=True)
class Point:
    """One evaluation of a trial.

    Attributes:
        epoch: After which it was made.
        score: The metric; not a number where the task reports none, which counts as worse than any.
        gradients: Gradients of a whole batch that the trial has taken until then.
    """

    epoch: float
    score: float
    gradients: float = 0.0


@dataclass(frozen=True)
class Begin:
    """A trial is to be trained, from the beginning or from where it is, and held after ``hold_at`` epochs."""

    part: Part
    hold_at: float | None


@dataclass(frozen=True)
class Stop:
    """A trial ends early, with what it had reached after ``epoch`` epochs."""

    number: int
    epoch: float


@dataclass(frozen=True)
class Done:
    """All that a trial has come to is taken into account."""

    number: int


@dataclass(frozen=True)
class GoOn:
    """A trial that was held goes on; with ``source``, from that trial's state and with other values."""

    part: Part
    epoch: float
    hold_at: float | None
    source: int | None = None


Effect: TypeAlias = Begin | Stop | Done | GoOn


@dataclass
class _Trial:
    part: Part
    start: float  # in virtual time
    hold_at: float | None
    waiting: deque[Point] = field(default_factory=deque)
    seen: float = 0.0  # epoch of the newest point, taken or waiting
    last: Point | None = None  # taken
    ended: bool = False
    failed: bool = False
    held: bool = False

    @property
    def due(self) -> float:
        """When its next point, or its end, is to be taken."""
        reached = self.last.epoch if self.last else 0.0
        return self.start + (self.waiting[0].epoch if self.waiting else reached)

    @property
    def has_news(self) -> bool:
        return bool(self.waiting) or self.ended


class Study:
    """The state machine.

    Args:
        spec: Of the sweep.
        stored: The values of configurations' trials that there are already, by number. They stay what they are, also
            if the searcher should suggest others now: a failed trial was tried again, or a library has changed.
        kept: Numbers of trials that were trained to their end before, so that they aren't stopped now.
    """

    def __init__(self, spec: SweepSpec, stored: Mapping[int, Values] | None = None, kept: frozenset[int] = frozenset()):
        self._spec, self._stored, self._kept = spec, dict(stored or {}), kept
        self._search: Search = search_of(spec)
        self._schedule: Schedule | None = schedule_of(spec)
        self._ordered = self._search.adaptive or self._schedule is not None
        self._rounds = self._schedule.rounds(spec.length_epochs or 0) if self._schedule else []
        self._live: dict[int, _Trial] = {}
        self._next, self._now = 0, 0.0
        self._values: Values = {}  # of the newest configuration
        self._scores: dict[int, list[float]] = {}  # by configuration
        self._closed: dict[int, int] = {}  # how many of its trials are over, by configuration
        self._others: dict[int, Values] = {}  # values of configurations that are not as suggested
        self.gradients = 0.0
        self.halted = ""

    # What has happened

    def measured(self, number: int, point: Point) -> None:
        """Take an evaluation; one that has come before is left out."""
        trial = self._live.get(number)
        if trial is not None and point.epoch > trial.seen:
            trial.seen = point.epoch
            trial.waiting.append(point)

    def ended(self, number: int, *, failed: bool) -> None:
        """Take the end of a trial: it has trained to its last step, or it failed."""
        trial = self._live.get(number)
        if trial is not None:
            trial.ended, trial.failed = True, failed

    def halt(self, why: str) -> None:
        """Let no more trials begin."""
        self.halted = self.halted or why

    # What is to be done

    def advance(self) -> list[Effect]:
        """Take what is due, in order, until something follows from it, and return that; to be called until it is empty.

        Whoever begins again gives the results of a trial that has some at its Begin.
        """
        effects: list[Effect] = []
        while not effects:
            effects += self._fill()
            trial = None if effects else self._due()
            if trial is not None:
                effects += self._take(trial)
            elif not effects:
                effects += self._end_round()
                break
        return effects

    @property
    def over(self) -> bool:
        """Whether all trials are done."""
        return not self._live and not self._more()

    def awaits(self, number: int) -> bool:
        """Say whether a trial has reached something about which is still to be decided, since others are behind."""
        trial, schedule = self._live.get(number), self._schedule
        if trial is None or schedule is None or trial.part.configuration is None:
            return False
        return any(schedule.decides(point.epoch) for point in trial.waiting)

    # How

    def _more(self) -> bool:
        return self._next < self._spec.trial_count and not self.halted

    def _fill(self) -> list[Effect]:
        """Let trials begin while there are places."""
        begun: list[Effect] = []
        while self._more() and len(self._live) < self._places:
            part = self._suggest(self._next)
            trial = self._live[part.number] = _Trial(part, self._now, None)
            if self._schedule and part.configuration is not None:
                trial.hold_at = next(iter(self._rounds), None)
                self._schedule.started(part.number, part.values)
            begun.append(Begin(part, trial.hold_at))
            self._next += 1
        return begun

    @property
    def _places(self) -> float:
        return self._spec.parallel if self._ordered and not self._rounds else math.inf

    def _suggest(self, number: int) -> Part:
        part = self._spec.part(number, {})
        if part.configuration is None:
            return part
        if part.number == self._spec.numbers_of(part.configuration)[0]:
            suggested = self._search.suggest(part.configuration)
            self._values = self._stored.get(number, suggested)
            if self._values != suggested:
                self._others[part.configuration] = self._values
        return replace(part, values=self._values)

    def _due(self) -> _Trial | None:
        moving = [trial for trial in self._live.values() if not trial.held]
        if self._ordered and not all(trial.has_news for trial in moving):
            return None
        ready = [trial for trial in moving if trial.has_news]
        return min(ready, key=lambda trial: (trial.due, trial.part.number), default=None)

    def _take(self, trial: _Trial) -> list[Effect]:
        self._now = max(self._now, trial.due)
        if not trial.waiting:
            self._close(trial)
            return [Done(trial.part.number)]
        point = trial.waiting.popleft()
        self.gradients += point.gradients - (trial.last.gradients if trial.last else 0.0)
        trial.last = point
        limit = self._spec.budget.gradients
        if limit is not None and self.gradients >= limit:
            self.halt(f"the budget of {limit} gradients is used up")
        number, schedule = trial.part.number, self._schedule
        at_its_end = point.epoch >= (self._spec.length_epochs or math.inf)
        if schedule is None or trial.part.configuration is None or at_its_end:
            return []
        go_on = schedule.result(number, point.epoch, point.score)
        if not go_on and number not in self._kept:
            self._close(trial)
            return [Stop(number, point.epoch)]
        trial.held = trial.hold_at is not None and point.epoch >= trial.hold_at
        return []

    def _close(self, trial: _Trial) -> None:
        """Let a trial leave its place."""
        part, score = trial.part, trial.last.score if trial.last and not trial.failed else None
        del self._live[part.number]
        if part.configuration is not None:
            if self._schedule:
                self._schedule.ended(part.number, trial.last.epoch if trial.last else 0.0, score)
            self._tell(part.configuration, score)

    def _tell(self, configuration: int, score: float | None) -> None:
        """Tell the searcher of a configuration once all of its trials are over: the mean of those that didn't fail."""
        scores = self._scores.setdefault(configuration, [])
        scores += [] if score is None else [score]
        self._closed[configuration] = self._closed.get(configuration, 0) + 1
        if self._closed[configuration] < self._spec.seeds:
            return
        mean = sum(scores) / len(scores) if scores else None
        other = self._others.pop(configuration, None)
        if other is None:
            self._search.tell(configuration, mean)
        else:
            self._search.tell(configuration, None)
            self._search.tell_other(other, mean)

    def _end_round(self) -> list[Effect]:
        """Let a population go on, once all of it is held."""
        held = [trial for trial in self._live.values() if trial.held]
        if not held or any(not t.held for t in self._live.values() if t.part.configuration is not None):
            return []
        assert self._schedule is not None
        copies = {copy.target: copy for copy in self._schedule.exploits()}
        return list(self._released(held, copies))

    def _released(self, held: list[_Trial], copies: Mapping[int, Exploit]) -> Iterator[Effect]:
        for trial in held:
            assert trial.last is not None
            epoch = trial.last.epoch
            trial.held, trial.hold_at = False, next((one for one in self._rounds if one > epoch), None)
            copy = copies.get(trial.part.number)
            if copy is not None:
                trial.part = replace(trial.part, values=copy.values)
            yield GoOn(trial.part, epoch, trial.hold_at, copy.source if copy is not None else None)
