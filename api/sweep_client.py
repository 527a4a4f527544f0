"""The Python client's part for sweeps: ``client.sweeps``."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .connection import PATIENCE_S, Connection, Document, again_if_lost


class Sweeps:
    """The sweeps of a server.

    Args:
        to: The way to it.
    """

    def __init__(self, to: Connection) -> None:
        self._to = to

    def submit(self, spec: Mapping[str, Any], key: str | None = None) -> Document:
        """Submit a sweep and return it. A lost answer is asked for again with the same key, so it is stored once."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return again_if_lost(lambda: self._to.json("POST", "/v1/sweeps", json=spec, headers=headers))

    def list(self, state: Sequence[str] = (), name: str | None = None, limit: int | None = None) -> Iterator[Document]:
        """Yield sweeps, newest first, at most ``limit``; page after page as they are asked for."""
        return self._to.listed("/v1/sweeps", state, name, limit)

    def get(self, sweep_id: str) -> Document:
        """Return one sweep with its transitions."""
        return self._to.json("GET", f"/v1/sweeps/{sweep_id}")

    def cancel(self, sweep_id: str) -> Document:
        """Cancel a sweep with its trials and return it; one that has ended stays as it is."""
        return self._steer(sweep_id, "cancel")

    def pause(self, sweep_id: str) -> Document:
        """Have the trials stop, each with a checkpoint, and return the sweep; it is PAUSED a little later."""
        return self._steer(sweep_id, "pause")

    def resume(self, sweep_id: str) -> Document:
        """Queue a paused sweep again and return it."""
        return self._steer(sweep_id, "resume")

    def extend(
        self, sweep_id: str, trials: int | None = None, wall_s: float | None = None, gradients: int | None = None
    ) -> Document:
        """Give a sweep new totals, each at least what it has, and return it; one that has ended goes on."""
        budget = {"wall_s": wall_s, "gradients": gradients}
        return self._steer(sweep_id, "extend", {"trials": trials, "budget": budget})

    def retry(self, sweep_id: str) -> Document:
        """Train the failed trials again and return the sweep; without failed trials nothing changes."""
        return self._steer(sweep_id, "retry")

    def promote(self, sweep_id: str, key: str | None = None, **asked: Any) -> builtins.list[Document]:
        """Make jobs of the recommended configuration and return them.

        Args:
            sweep_id: Which sweep.
            key: Repeating it makes no more jobs; a lost answer is asked for again with the same one.
            asked: ``seeds``, ``epochs`` or ``steps``, ``name``; what is left out is as in the sweep's base.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        path = f"/v1/sweeps/{sweep_id}/promote"
        items: builtins.list[Document] = again_if_lost(
            lambda: self._to.json("POST", path, json=asked, headers=headers)
        )["items"]
        return items

    def trials(self, sweep_id: str, state: Sequence[str] = ()) -> Iterator[Document]:
        """Yield the trials, by number; page after page as they are asked for."""
        return self._to.numbered(f"/v1/sweeps/{sweep_id}/trials", -1, state=[*state])

    def trial(self, sweep_id: str, number: int) -> Document:
        """Return one trial with its past and its spec."""
        return self._to.json("GET", f"/v1/sweeps/{sweep_id}/trials/{number}")

    def events(
        self, sweep_id: str, after: int = 0, kinds: Sequence[str] = (), *, trial: int | None = None
    ) -> Iterator[Document]:
        """Yield the events of a sweep, or of one of its trials, that are there now, after a number."""
        return self._to.events(_events_path(sweep_id, trial), after, kinds)

    def follow(
        self, sweep_id: str, after: int = 0, *, trial: int | None = None, patience_s: float = PATIENCE_S
    ) -> Iterator[Document]:
        """Yield each event of a sweep, or of one of its trials, once, as it comes, until the end.

        Raises:
            ServerUnreachable: If the server doesn't come back within ``patience_s`` seconds.
        """
        return self._to.follow(_events_path(sweep_id, trial), after, patience_s)

    def report(self, sweep_id: str) -> Document:
        """Return the answer so far."""
        return self._to.json("GET", f"/v1/sweeps/{sweep_id}/report")

    def picture(self, sweep_id: str, path: Path) -> Path:
        """Write the plot of the report, a PNG, to ``path``: whole or not at all."""
        return self._to.download(f"/v1/sweeps/{sweep_id}/report.png", path)

    def _steer(self, sweep_id: str, act: str, body: Mapping[str, Any] | None = None) -> Document:
        return self._to.json("POST", f"/v1/sweeps/{sweep_id}/{act}", json=body)


def _events_path(sweep_id: str, trial: int | None) -> str:
    of_trial = "" if trial is None else f"/trials/{trial}"
    return f"/v1/sweeps/{sweep_id}{of_trial}/events"
