"""The elastic ledger: what joins, losses, resizes and resumes have cost a run, summed up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

QUIET = frozenset({"start"})  # causes that cost nothing and restarted nothing
FIELDS = (
    "cause",
    "generation",
    "step",
    "steps_lost",
    "samples_replayed",
    "recovery_seconds",
    "workers_before",
    "workers_after",
    "detail",
)


class Ledger:
    """Adds up elastic events, in order.

    Args:
        past: Those of earlier attempts.
    """

    def __init__(self, past: Iterable[Mapping[str, Any]] = ()) -> None:
        self.events: list[Mapping[str, Any]] = [*past]

    def add(self, event: Mapping[str, Any]) -> None:
        """Add the newest event, the data of an ``elastic`` report."""
        self.events.append(event)

    def totals(self) -> dict[str, Any]:
        """Return how often something happened, what it cost, and how many workers there were from which step on."""
        restarts = [event for event in self.events if event["cause"] in {"loss", "resume"}]
        return {
            "restarts": len(restarts),
            "steps_lost": sum(int(event["steps_lost"]) for event in self.events),
            "samples_replayed": sum(int(event["samples_replayed"]) for event in self.events),
            "recovery_seconds": round(sum(float(event["recovery_seconds"]) for event in self.events), 3),
            "workers": [[event["step"], event["workers_after"]] for event in self.events],
        }
