"""Whether machines see the same storage, as far as that can be told from here.

A run's files lie in a directory that the API, the runner and the workers must all see. A disk of this machine's own is
of no use to a runner on another. What a mount leads to can't be told; so there are marks, which runners and workers
look for where they start.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .settings import ServiceSettings

_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = frozenset(
    {"nfs", "nfs4", "ceph", "cifs", "smb3", "9p", "glusterfs", "lustre", "gpfs", "beegfs", "afs", "virtiofs"}
)


def runs_of(settings: ServiceSettings) -> Path | None:
    """Return the directory of all runs, which all must share; None where they are in a storage of objects."""
    return Path(settings.storage) / "jobs" if os.path.isabs(settings.storage) else None


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
