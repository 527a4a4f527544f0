"""Whether machines see the same storage: told where that is possible, and tried out where a runner starts.

A run's checkpoints lie in the state directory, which the API, the runner and the workers must all see. A disk of this
machine's own is of no use to a runner on another. What a mount leads to can't be told from here; so the API leaves a
mark in the job's directory for each attempt, and a runner that doesn't find its own says so, instead of training into a
folder that nobody reads.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

MARK_VARIABLE = "SAMPA_STORAGE_MARK"  # tells a runner what stands in it
_MARK = "attempt"
_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = frozenset(
    {"nfs", "nfs4", "ceph", "cifs", "smb3", "9p", "glusterfs", "lustre", "gpfs", "beegfs", "afs", "virtiofs"}
)


def leave_mark(directory: Path, mark: str) -> None:
    """Have a directory hold this mark; whoever else leaves the same one at the same time is not in the way."""
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / f".{_MARK}.{uuid4().hex}"
    aside.write_text(mark)
    aside.replace(directory / _MARK)


def why_no_mark(directory: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return why a directory isn't the one that the API sees; empty if it is, or nobody said which mark to look for."""
    wanted = environment.get(MARK_VARIABLE)
    if not wanted:
        return ""
    try:
        found = (directory / _MARK).read_text()
    except OSError:
        found = ""
    if found == wanted:
        return ""
    return (
        f"the storage is not shared: {directory} on {socket.gethostname()}, where the runner is, is not what the API "
        "sees there; mount one volume that many nodes may write to at this path, in the API and on all nodes of Ray"
    )


def is_on_own_disk(directory: Path) -> bool:
    """Say whether a directory, or what it will be made in, is known to be on the disk that this machine runs from."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return os.stat(there).st_dev == os.stat("/").st_dev and not _is_remote(_type_of_root())


def is_here(host: str) -> bool:
    """Say whether a name or an address is this machine's, or can't be told."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return True
    return any(_is_own(family, address) for family, *_, address in found)


def _is_own(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as attempt:
            attempt.bind(address)
    except OSError:
        return False
    return True


def _is_remote(kind: str) -> bool:
    return kind in _REMOTE or kind.startswith("fuse.")


def _type_of_root() -> str:
    """Return the type of the file system at /; empty where that isn't told."""
    try:
        lines = [line.split() for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    return next((line[line.index("-") + 1] for line in reversed(lines) if line[4] == "/"), "")
