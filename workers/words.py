"""The words of the meeting: what a worker says when it comes, and what ``generations`` decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .pairs import View


class Place(NamedTuple):
    """Where a worker stands; of two, the higher is ahead.

    Attributes:
        step: Steps committed.
        settled: Whether what follows that commit is done.
    """

    step: int
    settled: bool


@dataclass(frozen=True)
class Word:
    """What a worker says when it comes to the meeting.

    Attributes:
        place: Where it stands, or None if it has no state.
        in_flight: Whether it gives up work on the step after ``place``.
        failure: Why its last generation ended for it; empty at a boundary it was asked to come to.
        late: Name of the member that it found late.
        patience_s: How long it may be silent itself before it counts as late.
    """

    place: Place | None = None
    in_flight: bool = False
    failure: str = ""
    late: str | None = None
    patience_s: float = 10.0


@dataclass(frozen=True)
class Admit:
    """A generation has formed: each of its members is given the view."""

    view: View


@dataclass(frozen=True)
class Farewell:
    """This worker is not needed any more; with ``save``, it writes a checkpoint first and says so."""

    name: str
    save: bool = False


@dataclass(frozen=True)
class Change:
    """The members of this generation are to come to a boundary."""

    generation: int


@dataclass(frozen=True)
class CutOff:
    """This worker was late: its process is to be ended."""

    name: str
    why: str


@dataclass(frozen=True)
class Lost:
    """This worker is gone, cut off or not."""

    name: str


@dataclass(frozen=True)
class Happened:
    """An entry of the elastic ledger is complete."""

    data: dict[str, Any]


@dataclass(frozen=True)
class Stopped:
    """The run is over before its last step; ``step`` was saved, or None if nobody had anything to save."""

    step: int | None
    why: str


Effect = Admit | Farewell | Change | CutOff | Lost | Happened | Stopped
