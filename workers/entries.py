"""The entries of the elastic ledger: one for each generation, complete once its first step has told what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class _Open:
    """An entry that lacks what only the first step of its generation can tell."""

    at: float  # since when nobody trained
    reached: int  # steps that were committed by then
    data: dict[str, Any]


class Entries:
    """Keeps the entry of the newest generation until it is complete.

    Args:
        batch_size: Rows of a step.
        reached: The last step that earlier attempts are known to have committed.
    """

    def __init__(self, batch_size: int, reached: int) -> None:
        self._batch_size = batch_size
        self._reached = reached  # by members, since the last loss that is accounted for
        self._open: _Open | None = None

    def reached(self, step: int) -> None:
        """A member has committed ``step`` steps."""
        self._reached = max(self._reached, step)

    def open(self, at: float, step: int | None, in_flight: bool, data: dict[str, Any]) -> None:
        """Begin the entry of a generation that forms.

        Args:
            at: Since when nobody trains.
            step: Steps committed where it begins; None if it begins from a checkpoint, and is to tell.
            in_flight: Whether work on the step after that was given up.
            data: What is known already: cause, generation, workers before and after, detail.
        """
        self._open = _Open(at, self._reached, data | {"step": step})
        self._reached = 0
        if step is not None:
            self._begins(self._open, step, least=int(in_flight))

    def resumed(self, step: int, pause_s: float | None, now: float) -> dict[str, Any] | None:
        """Take the news of the generation's first commit, as in ``Generations``; return its entry if it is complete."""
        entry = self._open
        if entry is None:
            return None
        if entry.data["step"] is not None:
            return None if pause_s is None else self._complete(entry, pause_s)
        if entry.data["cause"] == "start" and step:
            entry.data["cause"] = "resume"
        self._begins(entry, step)
        return self._complete(entry, now - entry.at)

    def close(self, now: float, step: int | None = None) -> dict[str, Any] | None:
        """Return the entry of a generation that has ended before its first commit, if that is still open.

        Args:
            now: The time.
            step: Where its members stand; None if nobody is left who knows. Then the next entry tells what was lost.
        """
        entry = self._open
        if entry is None:
            return None
        if entry.data["step"] is None:
            self._begins(entry, entry.reached if step is None else step)
        return self._complete(entry, now - entry.at)

    def _begins(self, entry: _Open, step: int, least: int = 0) -> None:
        lost = max(least, entry.reached - step)
        entry.data |= {"step": step, "steps_lost": lost, "samples_replayed": lost * self._batch_size}
        self.reached(step)

    def _complete(self, entry: _Open, recovery_s: float) -> dict[str, Any]:
        self._open = None
        return entry.data | {"recovery_seconds": 0.0 if entry.data["cause"] == "start" else round(recovery_s, 4)}
