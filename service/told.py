"""How a process is told to stop: the first signal is a request, the second one ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence


class Told:
    """Remembers whether this process was told to stop.

    Args:
        signals: Which signals tell it.
        word: What stderr says when the first one comes; may be empty.
    """

    def __init__(self, signals: Sequence[signal.Signals], word: str = "") -> None:
        self._signals, self._word = signals, word
        self.stop = ""
        """Why it is to stop; empty: it is not."""

    def listen(self) -> None:
        """Take the signals from now on; again, where a library has put handlers of its own in place."""
        for number in self._signals:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        if self.stop:
            os._exit(128 + number)
        self.stop = f"stopped by {signal.Signals(number).name}"
        if self._word:
            os.write(2, f"{self._word}\n".encode())
