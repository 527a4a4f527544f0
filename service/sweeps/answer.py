"""Keeps the answer of a sweep on disk, as JSON and as a picture, up to date while its trials come to an end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import Measured
    from .spec import SweepSpec

REPORT_FILE, PLOT_FILE = "report.json", "report.png"
EVERY_S = 20.0  # between two versions; each costs about a second of a processor


class Answers:
    """The report of one sweep.

    Args:
        directory: Where ``report.json`` and ``report.png`` lie.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def write(self, spec: SweepSpec, trials: Sequence[Measured]) -> None:
        """Write a new version in the background, unless the last one is quite new or being written."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or time.monotonic() - self._written_at < EVERY_S:
            return
        self._written_at = time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(spec, trials), name="report", daemon=True)
        self._thread.start()

    def finish(self, spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
        """Write the last version and return it."""
        if self._thread is not None:
            self._thread.join(60.0)
        return self._write(spec, trials)

    def _write(self, spec: SweepSpec, trials: Sequence[Measured]) -> dict[str, Any]:
        from .plot import draw
        from .report import report

        found = report(spec, trials)
        self._directory.mkdir(parents=True, exist_ok=True)
        aside = self._directory / f".{REPORT_FILE}.aside"
        aside.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        aside.replace(self._directory / REPORT_FILE)
        aside = self._directory / f".aside.{PLOT_FILE}"
        draw(found, aside)
        aside.replace(self._directory / PLOT_FILE)
        return found
