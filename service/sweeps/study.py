"""The study: what a sweep tries, stops and copies, as a pure function of its spec and of its trials' results.

Results are taken in a *virtual order* that no clock has a part in. Think of ``parallel`` places that trials take one
after the other, all training equally fast, an epoch in a unit of time: a result of epoch ``e`` of a trial that came to
its place at time ``s`` is taken at ``s + e``, of two at the same time the lower number first. Really, trials run ahead
of this order or behind it as workers come and go, and results wait here until their turn has come. So the searcher and
the scheduler see the same history in every run of the sweep, and after kill -9 it is enough to give the results again.

Schedulers judge configurations: a trial that comes to an evaluation stays there, in the virtual order, until all seeds
of its configuration have come as far; they are stopped together or go on together. There are at least as many places
as a configuration has seeds and trials take them in turn, so the seeds of the oldest one all have a place.

Where neither the search nor a scheduler looks at results there is nothing to put in order: trials begin as they find
room.
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
    diverged: bool = False
    held: bool = False  # until the rest of its population has come as far
    waits: bool = False  # until the other seeds of its configuration have

    @property
    def score(self) -> float:
        """What it has come to, as far as that is taken."""
        return self.last.score if self.last else math.nan

    @property
    def final(self) -> float | None:
        """What it has come to once it is over; NaN where it fell apart, None where nothing is known of its values."""
        if self.failed:
            return math.nan if self.diverged else None
        return self.last.score if self.last else None

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
        stored: The values of trials that there are already, by number; empty for a baseline's. They stay what they
            are, also if the searcher should suggest others now: a failed trial was tried again, or a library changed.
        kept: Numbers of trials that were trained to their end before, so that their configurations aren't stopped now.

    Attributes:
        room: How many new trials may be begun at once where nothing is put in order.
        gradients: Gradients of a whole batch that have been taken into account.
        halted: Why the sweep stops before all is done; empty: it doesn't. Then nothing more follows from anything.
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
        self._over: dict[int, dict[int, float | None]] = {}  # scores of trials that are over, by configuration
        self._others: dict[int, Values] = {}  # values of configurations that are not as suggested
        self.room = math.inf
        self.gradients = 0.0
        self.halted = ""

    # What has happened

    def measured(self, number: int, point: Point) -> None:
        """Take an evaluation of a trial that was begun.

        Evaluations of a trial come in the order of their epochs. One of an epoch that has come before is left out, as
        are those of trials that are over or were never begun: a trial may go on after it was stopped, until it hears.
        """
        trial = self._live.get(number)
        if trial is not None and point.epoch > trial.seen:
            trial.seen = point.epoch
            trial.waiting.append(point)

    def ended(self, number: int, *, failed: bool, diverged: bool = False) -> None:
        """Take the end of a trial, after its last evaluation; without effect if it is over or was never begun.

        Args:
            number: Of the trial.
            failed: It did not train to its last step. To a scheduler it is worse than any other, and so is its
                configuration; a searcher hears of the configuration's other seeds.
            diverged: It failed since its loss was no number any more: that is worse than any other to a searcher too.
        """
        trial = self._live.get(number)
        if trial is not None:
            trial.ended, trial.failed, trial.diverged = True, failed, diverged

    def halt(self, why: str) -> None:
        """Let nothing more follow: no trial begins, is stopped or done. What was begun is left as it stands."""
        self.halted = self.halted or why

    # What is to be done

    def advance(self) -> list[Effect]:
        """Take what is due, in order, until something follows from it, and return that; to be called until it is empty.

        Empty means that nothing is due before more is measured or ends, or that all is over, or that it was halted.
        Effects are to be carried out in their order. Whoever begins again gives the results of a trial that has some at
        its Begin, before this is called the next time.
        """
        effects: list[Effect] = []
        while not effects and not self._halts():
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
        return not self._live and self._next >= self._spec.trial_count

    def awaits(self, number: int) -> bool:
        """Say whether a trial has reached something about which is still to be decided, since others are behind."""
        trial, schedule = self._live.get(number), self._schedule
        if trial is None or schedule is None or trial.part.configuration is None:
            return False
        reached = [*trial.waiting, *([trial.last] if trial.waits and trial.last else [])]
        return any(schedule.decides(point.epoch) for point in reached if not self._at_its_end(point))

    # How

    def _halts(self) -> bool:
        """Say whether it was halted; what is left, if anything is, is halted where the budget is used up."""
        limit, total = self._spec.budget.gradients, self._spec.trial_count
        if not self.halted and limit is not None and self.gradients >= limit:
            begun = self._next >= total
            if not begun or not all(trial.last and self._at_its_end(trial.last) for trial in self._live.values()):
                self.halt(f"the budget of {limit} gradients is used up")
        return bool(self.halted)

    def _at_its_end(self, point: Point) -> bool:
        return point.epoch >= (self._spec.length_epochs or math.inf)

    def _fill(self) -> list[Effect]:
        """Let trials begin while there are places; those that there are already need none where the order is free."""
        begun: list[Effect] = []
        while self._next < self._spec.trial_count and (
            len(self._live) < self._places or (not self._ordered and self._next in self._stored)
        ):
            part = self._suggest(self._next)
            trial = self._live[part.number] = _Trial(part, self._now, None)
            if self._schedule and part.configuration is not None:
                trial.hold_at = next(iter(self._rounds), None)
                if part.number == self._spec.numbers_of(part.configuration)[0]:
                    self._schedule.started(part.configuration, part.values)
            begun.append(Begin(part, trial.hold_at))
            self._next += 1
        return begun

    @property
    def _places(self) -> float:
        if self._rounds:
            return math.inf  # a population is whole
        return max(self._spec.parallel, self._spec.seeds) if self._ordered else self.room

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
        if not self._ordered:
            return next((trial for trial in self._live.values() if trial.has_news), None)
        moving = [trial for trial in self._live.values() if not trial.held and not trial.waits]
        if not all(trial.has_news for trial in moving):
            return None
        return min(moving, key=lambda trial: (trial.due, trial.part.number), default=None)

    def _take(self, trial: _Trial) -> list[Effect]:
        self._now = max(self._now, trial.due)
        configuration = trial.part.configuration
        if not trial.waiting:
            self._close(trial, trial.final)
            return [Done(trial.part.number), *self._decided(configuration)]
        point = trial.waiting.popleft()
        self.gradients += point.gradients - (trial.last.gradients if trial.last else 0.0)
        trial.last = point
        trial.waits = self._schedule is not None and configuration is not None and not self._at_its_end(point)
        return self._decided(configuration) if trial.waits else []

    def _decided(self, configuration: int | None) -> list[Effect]:
        """Stop the trials of a configuration or let them go on, once each has come to its evaluation or is over."""
        if self._schedule is None or configuration is None:
            return []
        numbers = self._spec.numbers_of(configuration)
        live = [self._live[number] for number in numbers if number in self._live]
        if not live or self._next <= numbers[-1] or not all(trial.waits for trial in live):
            return []
        reached = {trial.part.number: trial.last.epoch for trial in live if trial.last}
        go_on = self._schedule.result(configuration, min(reached.values()), self._mean(configuration))
        if not go_on and self._kept.isdisjoint(numbers):
            for trial in live:
                self._close(trial, trial.score)
            return [Stop(number, epoch) for number, epoch in reached.items()]
        for trial in live:
            epoch = reached[trial.part.number]
            trial.start = max(trial.start, self._now - epoch)
            trial.waits, trial.held = False, trial.hold_at is not None and epoch >= trial.hold_at
        return []

    def _mean(self, configuration: int) -> float:
        """Return the mean of what a configuration's trials have come to; NaN, the worst, if one has failed."""
        over = self._over.get(configuration, {})
        numbers = self._spec.numbers_of(configuration)
        scores = [over[number] if number in over else self._live[number].score for number in numbers]
        return sum(math.nan if score is None else score for score in scores) / len(scores)

    def _close(self, trial: _Trial, score: float | None) -> None:
        """Let a trial leave its place with a score, and with its last one a configuration."""
        number, configuration = trial.part.number, trial.part.configuration
        del self._live[number]
        if configuration is None:
            return
        over = self._over.setdefault(configuration, {})
        over[number] = score
        if len(over) < self._spec.seeds:
            return
        scores = [one for _, one in sorted(over.items()) if one is not None]
        if self._schedule:
            epoch = trial.last.epoch if trial.last else 0.0
            self._schedule.ended(configuration, epoch, self._mean(configuration) if scores else None)
        self._tell(configuration, sum(scores) / len(scores) if scores else None)

    def _tell(self, configuration: int, mean: float | None) -> None:
        """Tell the searcher of a configuration that is over."""
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
        """Yield how each goes on; a population has one trial of each configuration."""
        for trial in held:
            assert trial.last is not None
            epoch = trial.last.epoch
            trial.held, trial.hold_at = False, next((one for one in self._rounds if one > epoch), None)
            copy = copies.get(trial.part.configuration) if trial.part.configuration is not None else None
            if copy is not None:
                trial.part = replace(trial.part, values=copy.values)
            source = self._spec.numbers_of(copy.source)[0] if copy is not None else None
            yield GoOn(trial.part, epoch, trial.hold_at, source)
