"""Marks: by which a process sees that a directory is the one that the API sees, and not another of the same name.

The API leaves one for each attempt at a job, beside the directories of all runs; whoever is told which one to look for
and doesn't find it says so, instead of writing into a folder that nobody reads.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from .errors import RunError
from .storage import Storage

LEAVE_S = 10.0  # in which a mark must be written
MARK_VARIABLE = "SAMPA_STORAGE_MARK"  # tells the processes of an attempt which mark to look for: ID/ATTEMPT
_NAME = "attempt"


class NotMarked(RunError):
    """The API can't write where the runs' files lie, or not in time."""

    runs: Path

    def __init__(self, runs: Path, cause: str) -> None:
        super().__init__(
            f"nothing can be written to {runs} in the API, where the runs' files lie ({cause}); see whether the volume "
            f"is mounted there, has room, and may be written to by the user {os.getuid()}",
            runs=runs,
            cause=cause,
        )


class Marker:
    """Leaves marks in the directory of all runs.

    A storage may hang, as NFS does while its server is away. Then the thread that writes there waits, and nobody else.

    Args:
        runs: The directory.
        within_s: After which a mark counts as not left.
    """

    def __init__(self, runs: Path, within_s: float = LEAVE_S) -> None:
        self._runs, self._within_s = runs, within_s
        self._writing = threading.Thread()

    def leave(self, mark: str) -> None:
        """Leave a mark; raises NotMarked, at once where an earlier one is still being written."""
        if self._writing.is_alive():
            raise NotMarked(self._runs, "it still hangs")
        failed: list[OSError] = []
        self._writing = threading.Thread(target=self._write, args=(mark, failed), name="mark", daemon=True)
        self._writing.start()
        self._writing.join(self._within_s)
        if self._writing.is_alive():
            raise NotMarked(self._runs, f"it hangs: nothing was written within {self._within_s:g} s")
        for error in failed:
            raise NotMarked(self._runs, error.strerror or str(error)) from error

    def _write(self, mark: str, failed: list[OSError]) -> None:
        try:
            leave_mark(self._runs, mark)
        except OSError as error:
            failed.append(error)


def leave_mark(runs: Path, mark: str) -> None:
    """Leave a mark in the directory of all runs; whoever leaves the same one at the same time is not in the way."""
    Storage(str(runs / mark.partition("/")[0])).write(_NAME, mark.encode())


def why_no_mark(runs: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return why the directory of all runs isn't the API's; empty if it is, or nobody said which mark to look for."""
    mark = environment.get(MARK_VARIABLE)
    if not mark:
        return ""
    try:
        found = (runs / mark.partition("/")[0] / _NAME).read_text()
    except OSError:
        found = ""
    if found == mark:
        return ""
    return (
        f"the storage is not shared: {runs} on {socket.gethostname()} is not what the API sees there; mount one volume "
        "that many nodes may write to at this path, in the API and on all nodes of Ray"
    )
