"""Keeps the answer of a sweep in its storage, as JSON and as a picture, up to date while its trials come to an end."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...workers.storage import Storage, StorageError, insistently

if TYPE_CHECKING:
    from .results import Measured
    from .spec import SweepSpec

REPORT_FILE, PLOT_FILE = "report.json", "report.png"
EVERY_S = 20.0  # between two versions; each costs about a second of a processor


class Answers:
    """The report of one sweep.

    Args:
        storage: Where ``report.json`` and ``report.png`` lie.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def write(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        """Write a new version in the background, unless the last one is quite new or being written; none while the
        storage is away."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or time.monotonic() - self._written_at < EVERY_S:
            return
        self._written_at = time.monotonic()
        self._thread = threading.Thread(target=self._try_to_write, args=(spec, trials), name="report", daemon=True)
        self._thread.start()

    def finish(self, spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
        """Write the last version and return it."""
        if self._thread is not None:
            self._thread.join(60.0)
        return insistently(lambda: self._write(spec, trials))

    def _try_to_write(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        try:
            self._write(spec, trials)
        except StorageError as error:
            print(error, file=sys.stderr)

    def _write(self, spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
        from .plot import draw
        from .report import report

        found = report(spec, trials)
        picture = io.BytesIO()
        draw(found, picture)
        self._storage.write(REPORT_FILE, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
        self._storage.write(PLOT_FILE, picture.getvalue())
        return found
