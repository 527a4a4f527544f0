"""Data files: where they lie, what is said when they aren't there, and that they are read once for many runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import TaskError

Data = TypeVar("Data")
_kept: dict[Hashable, Any] = {}  # what was loaded last in this process


def loaded(load: Callable[..., Data], *asked: Hashable, files: Sequence[Path] = ()) -> Data:
    """Return ``load(*asked)``, or what it gave when that was the last thing loaded here and the files are as they were.

    A worker of a sweep trains one run after the other. The data sets of two runs are the same object, so nobody may
    change it; two different ones are never kept.
    """
    key = (load, asked, tuple(map(_stamp, files)))
    if key not in _kept:
        _kept.clear()  # before: there may be no room for both
        _kept[key] = load(*asked)
    return _kept[key]  # type: ignore[no-any-return]


def _stamp(path: Path) -> Hashable:
    """Return what tells a file from one that has taken its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def folder(given: str) -> Path:
    """Return a folder or file as a parameter names it: ``~`` is the home directory; absolute."""
    return Path(given).expanduser().absolute()


def missing(what: str, where: Path, remedy: str) -> TaskError:
    """Return the error of data that isn't there. ``remedy`` is what to do, as a command where there is one."""
    return TaskError(f"{what} is not in {where} on {socket.gethostname()}; {remedy}, on every machine that trains")
