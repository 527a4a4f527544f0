"""What a run tells about itself while it goes: small records that travel from the workers to whoever started it."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

from pydantic import JsonValue

_LONGEST_LINE = 4000  # characters; what is longer is cut


@dataclass(frozen=True)
class Report:
    """One record.

    Attributes:
        kind: ``task``, ``metrics``, ``evaluation``, ``checkpoint``, ``elastic``, ``log``, or ``fault`` in a drill.
        data: Its fields, fit for JSON.
    """

    kind: str
    data: dict[str, JsonValue]


class Once:
    """Lets every report through once: a run that went back to a checkpoint gives some again, with the same numbers."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, object], int] = {}

    @property
    def reached(self) -> int:
        """The last step of which metrics came; 0 before the first."""
        return self._steps.get(("metrics", None), 0)

    def is_new(self, kind: str, data: Mapping[str, Any]) -> bool:
        """Say whether this has not come yet, and remember that it has now."""
        if kind not in {"task", "metrics", "evaluation", "checkpoint"}:
            return True
        series, step = (kind, data.get("split")), int(data.get("step", 0))
        if step <= self._steps.get(series, -1):
            return False
        self._steps[series] = step
        return True


class Reporter:
    """Gathers a worker's reports and sends them on in bundles, since each sending costs the step time.

    Args:
        send: Passes a bundle on without waiting, and returns a receipt.
        confirm: Waits until the bundle of a receipt has arrived.
        every_s: Seconds between bundles; the newest report waits no longer.
    """

    def __init__(
        self, send: Callable[[Sequence[Report]], Any], confirm: Callable[[Any], object], every_s: float = 0.5
    ) -> None:
        self._send, self._confirm, self._every_s = send, confirm, every_s
        self._receipt: Any = None
        self._waiting: list[Report] = []
        self._lock = threading.RLock()  # sending may print, and what is printed is reported
        self._sent = time.monotonic()

    def report(self, kind: str, data: dict[str, JsonValue], *, at_once: bool = False) -> None:
        """Add a report; ``at_once`` sends it now, with all that wait."""
        with self._lock:
            self._waiting.append(Report(kind, data))
        if at_once or time.monotonic() - self._sent >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            bundle, self._waiting = self._waiting, []
            self._sent = time.monotonic()
            if bundle:
                self._receipt = self._send(bundle)

    def settle(self) -> None:
        """Send what waits, and return when all has arrived."""
        self.flush()
        receipt, self._receipt = self._receipt, None
        if receipt is not None:
            self._confirm(receipt)

    @contextmanager
    def capturing_output(self, worker: str) -> Iterator[None]:
        """Also report each line that is printed, as ``worker``'s log; it is sent even if no report follows it."""

        def line(text: str) -> None:
            self.report("log", {"worker": worker, "line": text[:_LONGEST_LINE]})

        over = threading.Event()
        threading.Thread(target=self._flush_until, args=(over,), name="reports", daemon=True).start()
        try:
            with redirect_stdout(_Tee(sys.stdout, line)), redirect_stderr(_Tee(sys.stderr, line)):
                yield
        finally:
            over.set()

    def _flush_until(self, over: threading.Event) -> None:
        while not over.wait(self._every_s):
            self.flush()


class _Tee(io.TextIOBase):
    """Writes through, and hands on every whole line."""

    def __init__(self, through: TextIO, line: Callable[[str], None]) -> None:
        self._through, self._line, self._rest = through, line, ""

    def write(self, text: str) -> int:
        self._through.write(text)
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._line(line)
        return len(text)

    def flush(self) -> None:
        self._through.flush()

    def fileno(self) -> int:
        return self._through.fileno()
