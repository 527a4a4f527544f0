"""Marks: by which a process sees that a directory is the one that the API sees, and not another of the same name.

The API leaves one for each attempt at a job, beside the directories of all runs; whoever is told which one to look for
and doesn't find it says so, instead of writing into a folder that nobody reads.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from .storage import Storage

MARK_VARIABLE = "SAMPA_STORAGE_MARK"  # tells the processes of an attempt which mark to look for: ID/ATTEMPT
_NAME = "attempt"


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
