"""The log as JSON: one object a line, whoever writes it and whatever is in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

from sampa.api.logs import JsonLines


def line_of(message: str, *values: object, **more: object) -> dict[str, object]:
    record = logging.getLogger("sampa.test").makeRecord("sampa.test", logging.INFO, "x.py", 1, message, values, None)
    record.__dict__.update(more)
    text = JsonLines().format(record)
    assert "\n" not in text
    entry = json.loads(text)
    assert isinstance(entry, dict)
    return entry


def test_a_line_says_when_how_grave_who_and_what() -> None:
    line = line_of("%s jobs", 3)
    assert datetime.fromisoformat(str(line.pop("time"))).tzinfo is not None
    assert line == {"level": "INFO", "logger": "sampa.test", "message": "3 jobs"}


def test_a_line_about_a_job_names_it() -> None:
    line = line_of("with Ray", job="0123", attempt=2, color_message="dropped")
    assert (line["job"], line["attempt"]) == ("0123", 2)
    assert "color_message" not in line


def test_nothing_breaks_a_line() -> None:
    assert line_of('a\nb "c" \ud800 \x1b')["message"] == 'a\nb "c" \ud800 \x1b'
    assert line_of("x", job=object())["job"]


def test_exceptions_are_a_field_wherever_they_come_from() -> None:
    code = """
import logging, threading, warnings
from sampa.api.logs import to_stderr
to_stderr("json")
warnings.warn("mind this")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("in the application")
thread = threading.Thread(target=lambda: [][0], name="reconciler")
thread.start()
thread.join()
raise KeyError("the end")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    warning, caught, thread, end = map(json.loads, ended.stderr.splitlines())
    assert "mind this" in warning["message"]
    assert (caught["logger"], caught["message"]) == ("uvicorn.error", "in the application")
    assert "ZeroDivisionError" in caught["exception"]
    assert "reconciler" in thread["message"]
    assert "IndexError" in thread["exception"]
    assert (end["level"], "KeyError: 'the end'" in end["exception"]) == ("CRITICAL", True)
