"""Whether machines see the same storage, as far as that can be told from here.

A run's files lie in a directory that the API, the runner and the workers must all see. A disk of this machine's own is
of no use to a runner on another. What a mount leads to can't be told; so there are marks, which runners and workers
look for where they start.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from .settings import ServiceSettings

_MOUNTS = Path("/proc/self/mountinfo")
_MEMORY = frozenset({"tmpfs", "ramfs"})
_LAYERS = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})  # what a container's own files lie on
_DISKS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "vfat", "exfat", "ntfs3", "fuseblk"}
)
_EMPTY_DIR = "/kubernetes.io~empty-dir/"  # in the path that Kubernetes mounts an emptyDir from


@dataclass(frozen=True)
class _Mount:
    """A line of mountinfo: what is mounted (a path in its file system), where, and of which type."""

    root: str
    place: PurePosixPath
    kind: str


def runs_of(settings: ServiceSettings) -> Path | None:
    """Return the directory of all runs, which all must share; None where they are in a storage of objects."""
    return Path(settings.storage) / "jobs" if os.path.isabs(settings.storage) else None


def is_on_own_disk(directory: Path) -> bool:
    """Say whether a directory, or what it will be made in, is known to be on a disk that no other machine sees.

    The file system that is mounted there tells. Memory, a disk, or a container's own layer is one machine's; of NFS and
    its like, and of whatever we don't know, nobody can say that.

    In a container an address isn't a machine: others that run beside it have addresses of their own, and may be given
    the same disk, as the pods of one node share a claim that is ReadWriteOnce. So there, a disk that is mounted counts
    as one that may be shared, unless it is an emptyDir. That a runner elsewhere doesn't see it shows when it starts:
    it looks for the mark of its attempt.
    """
    mounts = _mounts()
    there = _mount_of(directory, mounts)
    if there is None:
        return False
    root = _mount_of(Path("/"), mounts)
    contained = "KUBERNETES_SERVICE_HOST" in os.environ or (root is not None and root.kind in _LAYERS)
    if there.kind in _DISKS and contained and there != root:
        return _EMPTY_DIR in f"{there.root}/"
    return there.kind in _MEMORY | _LAYERS | _DISKS


def why_store_out_of_reach(settings: ServiceSettings) -> str:
    """Return why runners on the Ray of the settings can't reach the store, as far as can be told; empty if they can."""
    host = urlsplit(settings.ray_address or "").hostname or ""
    if not settings.store_url.startswith("sqlite") or settings.backend != "jobs" or not host or is_here(host):
        return ""
    return (
        f"the store is SQLite, a file of this machine, but the runners are started by the Ray at {host}, which is "
        "another one, and would find an empty store there; give SAMPA_STORE_URL, or --store, a PostgreSQL"
    )


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


def _mount_of(path: Path, mounts: Sequence[_Mount]) -> _Mount | None:
    """Return what is mounted where a path leads to; None where that isn't told."""
    leads_to = PurePosixPath(os.path.realpath(path))
    above = [(len(one.place.parts), number) for number, one in enumerate(mounts) if leads_to.is_relative_to(one.place)]
    return mounts[max(above)[1]] if above else None  # of several at one place, the last one is on top


def _mounts() -> list[_Mount]:
    try:
        lines = [line.split(" ") for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return []
    return [_Mount(line[3], PurePosixPath(_plain(line[4])), line[line.index("-") + 1]) for line in lines]


def _plain(escaped: str) -> str:
    """Return a path of mountinfo, where blanks and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)
