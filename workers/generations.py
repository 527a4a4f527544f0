"""Who is in: the protocol by which a run's workers come together, without clock, network or Ray.

Members of a *generation* walk in step. Each says at every meeting where it stands: its *place*, the last step it has
committed and whether what follows a commit (reports, evaluation, checkpoint) is done. ::

                   enough are waiting              a change is wanted
       GATHERING --------------------->  RUNNING  --------------------->  CHANGING
           ^                              ^ |  ^                            |  |
           |                all accounted | |  |   all are at a boundary    |  |
           |                     for      | |  +----------------------------+  |
           |                              | | a member fails                   | a member fails
           |                              | v                                  |
           +---------------------------  BROKEN  <-----------------------------+
                nobody is left, here or
                in RUNNING and CHANGING

    at a boundary -- told to stop --> SAVING -- a member has written the newest state --> OVER
    anywhere -- told to stop while nobody has a state, or the last step is done --> OVER

*Commit.* A step is committed by whoever has all of its exchange. An exchange that breaks may leave some members a
step ahead; none can be two ahead, since the next exchange needs everyone. The state after a step depends on the state
before it alone, so whoever commits it later, in whatever generation, commits the same.

*Source.* A generation begins at the highest place among those who come to it. One who stands there hands the state to
those who don't; whoever has nothing yet, a newcomer, receives it all. If nobody has a state, the first member
begins from the newest durable checkpoint.

*Loss.* When a member fails, the survivors come at once. The next generation forms when every member of the last one has
come, is gone, or is cut off for being late: it gave no sign of life for its patience, or did not come within its
patience and a grace after the first who came, or within that grace after a peer said that it was late. The grace is
there since the accused may itself be waiting for a third. Who is gone or cut off is answered no more, should it awake.

*Change.* Newcomers, members asked to leave and a stop need a boundary between two steps. The members are told, agree in
the exchange of their next step that they will all come after it, and nobody's work is thrown away.

Every input takes the time, in seconds of any one clock; ``tick`` must be called now and then. What is to be done is
collected in ``effects``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .entries import Entries
from .pairs import Member, View, order
from .words import Admit, Change, CutOff, Effect, Farewell, Happened, Lost, Stopped, Word

SETTLE_S = 0.25  # seconds that the first generation waits for one more, once enough are there
GRACE = 0.2  # of the patience: the most by which two well members begin the same exchange apart


class Phase(StrEnum):
    """Where the protocol is; see the module's diagram."""

    GATHERING = "gathering"
    RUNNING = "running"
    CHANGING = "changing"
    BROKEN = "broken"
    SAVING = "saving"
    OVER = "over"


@dataclass(frozen=True)
class _Guest:
    """A worker that waits at the meeting."""

    member: Member
    word: Word
    since: float


@dataclass
class _Beat:
    """The last sign of life of a member, and how long it may stay the last."""

    at: float
    patience_s: float


class Generations:
    """The state machine.

    Args:
        wanted: The most workers that are to be in.
        least: How many make the first generation.
        batch_size: Rows of a step, for the ledger.
        reached: The last step that earlier attempts are known to have committed.
    """

    def __init__(self, wanted: int, least: int = 1, *, batch_size: int = 1, reached: int = 0) -> None:
        self.wanted, self.least, self.reached = wanted, least, reached
        self.effects: list[Effect] = []
        self.view: View | None = None
        self.over = False
        self._resumes = reached > 0
        self._entries = Entries(batch_size, reached)
        self._generation = 0
        self._waiting: dict[str, _Guest] = {}
        self._beats: dict[str, _Beat] = {}
        self._gone: set[str] = set()  # of the view's members
        self._out: set[str] = set()  # gone or cut off, in any generation: answered no more
        self._found_late: dict[str, float] = {}
        self._why: dict[str, str] = {}
        self._draining: set[str] = set()
        self._saved_for: set[str] = set()  # draining nodes for which a checkpoint was ordered
        self._save = False
        self._asked = False
        self._stopping: str | None = None
        self._saver: str | None = None
        self._before = 0  # members of the last view
        self._lost_at: float | None = None  # since nobody is left
        self._lost_why = ""

    @property
    def phase(self) -> Phase:
        """Where the protocol is."""
        if self.over:
            return Phase.OVER
        if self._saver is not None:
            return Phase.SAVING
        if self.view is None:
            return Phase.GATHERING
        here = self._here()
        if any(guest.word.failure for guest in here) or (here and self._gone):
            return Phase.BROKEN
        return Phase.CHANGING if here or self._asked else Phase.RUNNING

    # Inputs

    def join(self, member: Member, word: Word, now: float) -> None:
        """A worker has come: a newcomer, or a member whose generation has ended for it."""
        if self.over or member.name in self._out:
            self.effects.append(Farewell(member.name))
            return
        self._waiting[member.name] = _Guest(member, word, now)
        if word.place is not None:
            self._reach(word.place.step)
        if word.late is not None:
            self._found_late.setdefault(word.late, now)
            self._why.setdefault(word.late, word.failure)
        self._consider(now)

    def gone(self, name: str, now: float) -> None:
        """A worker's process has ended, or can't be reached any more: it is answered no more, should it come again."""
        if self.over or name in self._out:
            return
        self._out.add(name)
        if name in self._names() or name in self._waiting:
            self._drop(name)
            self._consider(now)

    def beat(self, name: str, step: int, patience_s: float, now: float) -> None:
        """A member is alive, has committed ``step`` steps, and may be silent for ``patience_s`` seconds."""
        if name in self._beats:
            self._beats[name] = _Beat(now, patience_s)
            self._reach(step)

    def resumed(self, generation: int, step: int, pause_s: float | None, now: float) -> None:
        """A member has made the first commit of its generation, which began at ``step``.

        Args:
            generation: Which one.
            step: Steps committed when it began.
            pause_s: Seconds that the member stood still, beyond an ordinary step; None if it is new.
            now: The time.
        """
        if self.view is not None and self.view.generation == generation:
            self._happened(self._entries.resumed(step, pause_s, now))
            self._reach(step + 1)

    def want(self, workers: int, now: float) -> None:
        """From now on, at most this many workers are to be in."""
        self.wanted = workers
        self._consider(now)

    def drain(self, nodes: Iterable[str], now: float) -> None:
        """These nodes, and no others, are about to go."""
        self._draining = set(nodes)
        self._saved_for &= self._draining
        self._consider(now)

    def stop(self, why: str, now: float) -> None:
        """End the run at the next boundary, with a checkpoint."""
        self._stopping = self._stopping or why
        self._consider(now)

    def saved(self, name: str, step: int, now: float) -> None:
        """The member that was asked to has written its checkpoint."""
        if name == self._saver and not self.over:
            self._end(step, now)

    def finish(self, now: float) -> None:
        """The run has ended by itself."""
        self._happened(self._entries.close(now))
        self.over = True
        self.effects += [Farewell(name) for name in self._waiting]
        self._waiting = {}

    def tick(self, now: float) -> None:
        """Time has passed: cut off who is late, and form what has waited long enough."""
        if self.over:
            return
        for name in self._missing():
            if (why := self._lateness(name, now)) is not None:
                self._out.add(name)
                self._why[name] = why
                self.effects.append(CutOff(name, why))
                self._drop(name)
        self._consider(now)

    # Decisions

    def _consider(self, now: float) -> None:
        """Do what the present state calls for."""
        if self.over or self._saver is not None:
            return
        if self.view is not None and not self._missing():
            if self._here():
                self._at_boundary(now)
                return
            self._nobody_left(now)
        if self.view is None:
            self._gather(now)
        elif not self._here():
            self._turn_away()
            self._save = self._save or self._is_cornered()
            if not self._asked and self._wants_change():
                self._asked = True
                self.effects.append(Change(self.view.generation))

    def _at_boundary(self, now: float) -> None:
        if self._stopping is None:
            self._form(now)
            return
        holders = self._holders()
        if not holders:
            self._end(None, now)
            return
        self._saver = holders[0].member.name
        self._beats[self._saver] = _Beat(now, holders[0].word.patience_s)
        del self._waiting[self._saver]
        self.effects.append(Farewell(self._saver, save=True))

    def _gather(self, now: float) -> None:
        if self._stopping is not None:
            self._end(None, now)
            return
        there = len(self._waiting)
        newest = max((guest.since for guest in self._waiting.values()), default=now)
        if there >= self.wanted or (there >= min(self.least, self.wanted) and now - newest >= SETTLE_S):
            self._form(now)

    def _nobody_left(self, now: float) -> None:
        """All members are gone: what they had committed since the last checkpoint is lost."""
        assert self.view is not None
        self._happened(self._entries.close(now))
        self._lost_at, self._before, self._lost_why = now, len(self.view.members), self._reason()
        self.view, self._gone, self._beats = None, set(), {}

    def _turn_away(self) -> None:
        """Say farewell to newcomers for whom there is no place, or whose node is about to go."""
        free = self.wanted - len(self._staying())
        for guest in sorted(self._waiting.values(), key=lambda guest: guest.since):
            if free <= 0 or guest.member.node in self._draining:
                self._dismiss(guest.member.name)
            else:
                free -= 1

    def _drained(self) -> set[str]:
        """Return the draining nodes on which members are."""
        return {member.node for member in self.view.members} & self._draining if self.view else set()

    def _staying(self) -> list[Member]:
        """Return the members that are not gone, nor about to go with their node."""
        members = self.view.members if self.view else ()
        return [member for member in members if member.name not in self._gone and member.node not in self._draining]

    def _can_move(self) -> bool:
        """Say whether those who are about to go have somebody to hand over to."""
        return bool(self._waiting or self._staying())

    def _is_cornered(self) -> bool:
        """Say whether all members are about to go with nobody to hand over to, and nothing was saved for that."""
        return not self._can_move() and not self._drained() <= self._saved_for

    def _wants_change(self) -> bool:
        assert self.view is not None
        return bool(
            self._stopping is not None
            or self._waiting
            or len(self.view.members) > self.wanted
            or (self._drained() and self._can_move())
            or self._save
        )

    def _form(self, now: float) -> None:
        """Make the next generation of those who wait."""
        chosen = self._choose()
        view = self._view_of(chosen)
        rest = [guest for guest in self._waiting.values() if guest not in chosen]
        self._open_entry(view, rest, now)
        for guest in rest:
            self._dismiss(guest.member.name)
        if view.save:
            self._saved_for |= {member.node for member in view.members} & self._draining
        self.view, self._generation = view, view.generation
        self._save, self._asked, self._lost_at = False, False, None
        self._beats = {guest.member.name: _Beat(now, guest.word.patience_s) for guest in chosen}
        self._waiting, self._gone, self._found_late, self._why = {}, set(), {}, {}
        self.effects.append(Admit(view))
        self._consider(now)

    def _choose(self) -> list[_Guest]:
        """Return who is to be in: members before newcomers, nobody on a draining node if there is another choice."""
        holders, old = self._holders(), self._here()
        guests = sorted(self._waiting.values(), key=lambda guest: (guest not in holders, guest not in old, guest.since))
        chosen = [guest for guest in guests if guest.member.node not in self._draining][: self.wanted]
        chosen = chosen or guests[: self.wanted]
        if holders and not any(guest in chosen for guest in holders):
            chosen.append(holders[0])  # to hand over what it has; it leaves at the next boundary
        return chosen

    def _view_of(self, chosen: Sequence[_Guest]) -> View:
        members = order([guest.member for guest in chosen])
        places = [self._waiting[member.name].word.place for member in members]
        newest = max((place for place in places if place is not None), default=None)
        source = None if newest is None else places.index(newest)
        behind = tuple(rank for rank, place in enumerate(places) if place != newest)
        return View(self._generation + 1, members, source, behind, self._save)

    def _holders(self) -> list[_Guest]:
        """Return those who stand at the highest place; empty if nobody has a state."""
        places = [guest.word.place for guest in self._waiting.values() if guest.word.place is not None]
        return [guest for guest in self._waiting.values() if guest.word.place == max(places)] if places else []

    def _lateness(self, name: str, now: float) -> str | None:
        """Return why this missing member is late, or None while it is not."""
        beat, here = self._beats[name], [] if name == self._saver else self._here()
        found_at = None if name == self._saver else self._found_late.get(name)
        if found_at is not None and now >= found_at + GRACE * beat.patience_s:
            return self._why[name]
        if here and now >= min(guest.since for guest in here) + (1 + GRACE) * beat.patience_s:
            return f"{name} did not come to the meeting within {(1 + GRACE) * beat.patience_s:.3g} s"
        if now >= beat.at + beat.patience_s:
            return f"{name} gave no sign of life for {beat.patience_s:.3g} s"
        return None

    # Small changes

    def _reach(self, step: int) -> None:
        self.reached = max(self.reached, step)
        self._entries.reached(step)

    def _drop(self, name: str) -> None:
        self._waiting.pop(name, None)
        self.effects.append(Lost(name))
        if name in self._names():
            self._gone.add(name)
        if name == self._saver:
            self._saver = None

    def _dismiss(self, name: str) -> None:
        self._waiting.pop(name, None)
        self.effects.append(Farewell(name))

    def _end(self, step: int | None, now: float) -> None:
        assert self._stopping is not None
        self._saver = None
        self.finish(now)
        self.effects.append(Stopped(step, self._stopping))

    def _names(self) -> list[str]:
        return [member.name for member in self.view.members] if self.view else []

    def _here(self) -> list[_Guest]:
        """Return the members of the view that wait."""
        return [self._waiting[name] for name in self._names() if name in self._waiting]

    def _missing(self) -> list[str]:
        """Return the members of the view that neither wait nor are gone."""
        return [name for name in self._names() if name not in self._waiting and name not in self._gone]

    # The ledger

    def _open_entry(self, view: View, rest: Sequence[_Guest], now: float) -> None:
        """Begin the entry of a generation that forms; the rest of those who wait is not in."""
        old = self._here()
        began_at = self._lost_at if self._lost_at is not None else min((guest.since for guest in old), default=now)
        place = None if view.source is None else self._waiting[view.members[view.source].name].word.place
        step = None if place is None else place.step
        in_flight = any(guest.word.in_flight and guest.word.place == place for guest in old)
        data = {
            "cause": self._cause(view, [guest for guest in old if guest in rest]),
            "generation": view.generation,
            "workers_before": len(self._names()) or self._before,
            "workers_after": len(view.members),
            "detail": self._reason() if self._lost_at is None else self._lost_why,
        }
        self._happened(self._entries.close(began_at, step))
        self._entries.open(began_at, step, in_flight, data)

    def _cause(self, view: View, left: Sequence[_Guest]) -> str:
        if view.generation == 1:
            return "resume" if self._resumes else "start"
        if self._gone or self._lost_at is not None or any(guest.word.failure for guest in self._here()):
            return "loss"
        if any(guest.member.node in self._draining for guest in left):
            return "preemption"
        if left:
            return "leave"
        if {member.name for member in view.members} - set(self._names()):
            return "join"
        return "checkpoint" if view.save else "change"  # which was not wanted any more at the boundary

    def _reason(self) -> str:
        """Return what is known about why the view ended."""
        known = [self._why[name] for name in sorted(self._gone) if self._why.get(name)]
        told = [guest.word.failure for guest in self._here() if guest.word.failure]
        about = [text for text in told if any(f"{name} " in text for name in self._gone)]
        nothing = f"{', '.join(sorted(self._gone))} ended" if self._gone else ""
        return (known or about or told or [nothing])[0]

    def _happened(self, entry: dict[str, Any] | None) -> None:
        if entry is not None:
            self.effects.append(Happened(entry))
