"""Keeps the answer of a sweep in its storage, as JSON and as a picture, up to date while its trials come to an end."""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ...workers.storage import Storage, StorageError, insistently

if TYPE_CHECKING:
    from .results import Measured
    from .spec import SweepSpec

    Told: TypeAlias = tuple[SweepSpec, list[Measured]]

REPORT_FILE, PLOT_FILE = "report.json", "report.png"
EVERY_S = 20.0  # between two versions; each costs about a second of a processor
LAST_S = 10.0  # that whoever lets go of a sweep waits for a last version


class Answers:
    """The report of one sweep.

    Versions are written one after the other, each by a thread of its own. What fails in a report or in its picture is
    told on stderr: it is a fault of ours, and no reason for a sweep not to end.

    Args:
        storage: Where ``report.json`` and ``report.png`` lie.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._due: Told | None = None  # what no version has been begun of
        self._begun_at = -math.inf  # so the first version waits for nothing but the first trial's end

    def write(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        """Have a new version written in the background: at once, or by a later ``touch`` if the last one is quite new
        or being written."""
        self._due = spec, [*trials]
        self.touch()

    def touch(self) -> None:
        """Write the version that is due, if it is time; to be called about once a second."""
        now = time.monotonic()
        if self._due is not None and not self._is_busy() and now - self._begun_at >= EVERY_S:
            self._begun_at = now
            self._begin(self._due)

    def last(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        """Write what there is now, before the sweep is let go of; give up after 10 s, or while the storage is away.

        Nothing is written without a trial.
        """
        deadline = time.monotonic() + LAST_S
        if trials:
            self._join(LAST_S)
        if trials and not self._is_busy():
            self._begin((spec, [*trials]))
            self._join(deadline - time.monotonic())
        if self._is_busy():
            print(f"the last version of the report was not written within {LAST_S:g} s", file=sys.stderr)

    def finish(self, spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
        """Write the last version and return it, as soon as the storage is there."""
        self._join(60.0)
        self._due = None
        found, picture = _made(spec, trials)
        insistently(lambda: self._put(found, picture))
        return found

    def _begin(self, told: Told) -> None:
        self._due = None
        self._thread = threading.Thread(target=self._try_to_write, args=told, name="report", daemon=True)
        self._thread.start()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join(self, most_s: float) -> None:
        if self._thread is not None:
            self._thread.join(max(most_s, 0.0))

    def _try_to_write(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        try:
            self._put(*_made(spec, trials))
        except StorageError as error:
            print(error, file=sys.stderr)

    def _put(self, found: dict[str, Any], picture: bytes | None) -> None:
        self._storage.write(REPORT_FILE, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
        if picture is not None:
            self._storage.write(PLOT_FILE, picture)


def _made(spec: SweepSpec, trials: Sequence[Measured]) -> tuple[dict[str, Any], bytes | None]:
    """Return the report and its picture: one that says so where it can't be made, and none that can't be drawn."""
    from .plot import draw
    from .report import report, without

    try:
        found = report(spec, trials)
        json.dumps(found, allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        found = without(spec, trials, f"the report could not be made: {type(error).__name__}: {error}"[:500])
    picture = io.BytesIO()
    try:
        draw(found, picture)
    except Exception:
        traceback.print_exc()
        return found, None
    return found, picture.getvalue()
