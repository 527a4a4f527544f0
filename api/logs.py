"""What the server has to say, on stderr: for people, or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType

ABOUT = ("job", "attempt", "method", "path", "status", "took_ms")
"""What a line may be about, in its ``extra``; ``job`` is the id of a job or a sweep."""

log = logging.getLogger("sampa")


class JsonLines(logging.Formatter):
    """Makes one JSON object of a record, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in ABOUT if hasattr(record, name)},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def to_stderr(log_format: str) -> None:
    """Write what we and others have to say to stderr; of libraries, only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if log_format == "json":
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda about: _uncaught(about.exc_type, about.exc_value, about.exc_traceback)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    log.setLevel(logging.INFO)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    error = error or kind()
    log.critical("the thread %s has ended: %r", threading.current_thread().name, error, exc_info=(kind, error, trace))
