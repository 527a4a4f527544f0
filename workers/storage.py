"""Where a run's files lie: a directory of this machine, or of any file system that pyarrow knows, such as S3.

A file is there whole or not at all. On this machine it is written aside and renamed; a storage of objects has no
renaming, but shows an object when all of it has come. Loads without pyarrow, which only remote storage needs.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from pyarrow import fs

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")  # of pyarrow's file systems, beside file
PATIENCE_S = 120.0  # in which what must be read or written is tried again
AGAIN_S = 2.0  # between two tries
_TRIAL_FILE = ".storage-check"
_LONGEST_CAUSE = 300  # characters of what a storage says

_ADVICE = (
    (
        r"NETWORK_CONNECTION|curlCode|resolv",
        "see whether it answers, and whether AWS_ENDPOINT_URL or endpoint_override in SAMPA_STORAGE is right",
    ),
    (r"NO_SUCH_BUCKET|[Bb]ucket '[^']*' not found", "make the bucket, or name another one in SAMPA_STORAGE"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|CREDENTIALS|TOKEN|HTTP status 40[13]",
        "see whether AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are right, or the pod's role may list, get, put and "
        "delete there",
    ),
)

Answer = TypeVar("Answer")


class StorageError(OSError):
    """A storage can't be used now: no fault of the run's, which goes on when it can."""


@dataclass(frozen=True)
class Info:
    """What there is to say of a file: its size in bytes, and when it was written, in seconds since 1970."""

    size: int
    modified: float


@dataclass(frozen=True)
class Storage:
    """A directory and the file system it is on; fit to be sent to another process.

    What can't be done on a remote one raises StorageError, here an OSError of the system's; either raises
    FileNotFoundError for a file that isn't there. pyarrow gives up on S3 by itself: after 3 attempts of 3 s at most.

    Attributes:
        directory: Its path there.
        filesystem: Of pyarrow; None: that of this machine.
    """

    directory: str
    filesystem: fs.FileSystem | None = None

    @classmethod
    def at(cls, where: str | Path | Storage) -> Storage:
        """Return the storage at a path or an address, such as ``s3://bucket/prefix``.

        Raises:
            ValueError: If there is no such kind of address.
            StorageError: If it takes a question to open it, which isn't answered.
        """
        if isinstance(where, Storage):
            return where
        where = address(str(where))
        if os.path.isabs(where):
            return cls(where)
        try:
            return cls.of(*_opened(where))
        except OSError as error:
            raise _told(error, "open", where) from error

    @classmethod
    def of(cls, filesystem: fs.FileSystem, directory: str) -> Storage:
        """Return a directory on a file system of pyarrow's."""
        return cls(directory, None if filesystem.type_name == "local" else filesystem)

    def __truediv__(self, name: str) -> Storage:
        return Storage(str(PurePosixPath(self.directory) / name), self.filesystem)

    def __str__(self) -> str:
        return self.directory if self.filesystem is None else f"{self.filesystem.type_name}://{self.directory}"

    @property
    def path(self) -> Path | None:
        """The directory, if it is on this machine."""
        return Path(self.directory) if self.filesystem is None else None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.directory).name

    @property
    def parent(self) -> str:
        """The path of the directory that it lies in."""
        return str(PurePosixPath(self.directory).parent)

    def make(self) -> None:
        """See that the directory is there; a remote one needs none of its own to be written to."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """See that files can be written and removed here; raises StorageError or OSError if not."""
        self.make()
        self.write(_TRIAL_FILE, b"")
        self.remove(_TRIAL_FILE)

    def names(self) -> list[str]:
        """Return the names of the files that lie directly in it, in no order; none if it isn't there."""
        if self.path is not None:
            return [one.name for one in os.scandir(self.path) if one.is_file()] if self.path.is_dir() else []
        from pyarrow import fs

        with self._asking("list"):
            found = self._remote.get_file_info(fs.FileSelector(self.directory, allow_not_found=True))
            if not found:
                self._see_root()
        return [info.base_name for info in found if info.is_file]

    def info(self, name: str) -> Info:
        """Return what there is to say of a file."""
        if self.path is not None:
            there = (self.path / name).stat()
            return Info(there.st_size, there.st_mtime)
        with self._asking(f"look at {name} in"):
            found = self._remote.get_file_info(self._path_of(name))
            if not found.is_file:
                self._see_root()
                raise FileNotFoundError(f"there is no {name} in {self}")
        return Info(found.size, (found.mtime_ns or 0) / 1e9)

    @contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """Give a file to read from, at any position."""
        if self.path is not None:
            with (self.path / name).open("rb") as file:
                yield file
            return
        with self._asking(f"read {name} in"):
            try:
                file = self._remote.open_input_file(self._path_of(name))
            except FileNotFoundError:
                self._see_root()
                raise
            with file:
                yield file

    def read(self, name: str) -> bytes:
        """Return what is in a file."""
        with self.reading(name) as file:
            content: bytes = file.read()
        return content

    @contextmanager
    def writing(self, name: str, *, aside: str = "", durable: bool = False) -> Iterator[Any]:
        """Give a file to write to, which is there under its name once that is over, and not at all if it fails.

        Args:
            name: Of the file; one that is there is replaced.
            aside: Its name meanwhile, on this machine.
            durable: Whether it outlasts the failure of this machine then; a remote one always does.
        """
        if self.path is not None:
            with _aside(self.path, name, aside or f".{name}.{uuid4().hex}", durable) as file:
                yield file
            return
        with self._asking(f"write {name} to"):
            file = self._remote.open_output_stream(self._path_of(name))
            try:
                yield file
            except BaseException:  # pyarrow has no way to break off: what came so far is shown, and taken away again
                with suppress(OSError):
                    file.close()
                with suppress(OSError):
                    self._remote.delete_file(self._path_of(name))
                raise
            file.close()

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, or replace it: whole or not at all."""
        with self.writing(name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            if self.path is not None:
                (self.path / name).unlink()
            else:
                with self._asking(f"remove {name} from"):
                    self._remote.delete_file(self._path_of(name))

    @property
    def _remote(self) -> fs.FileSystem:
        assert self.filesystem is not None
        return self.filesystem

    def _path_of(self, name: str) -> str:
        return str(PurePosixPath(self.directory) / name)

    def _see_root(self) -> None:
        """Raise StorageError if the bucket isn't there either, by which what is missing is told from what is away."""
        root, missing = PurePosixPath(self.directory).parts[0], False
        with suppress(OSError):  # who may not ask for the bucket may still ask for what is in it
            missing = self._remote.get_file_info(root).type.name == "NotFound"
        if missing:
            raise StorageError(_sentence("use", str(self), f"bucket '{root}' not found"))

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (StorageError, FileNotFoundError):
            raise
        except OSError as error:
            raise _told(error, doing, str(self)) from error


def address(where: str) -> str:
    """Return a path made absolute, or an address as it is.

    Raises:
        ValueError: If it is neither.
    """
    parts = urlsplit(where)
    if "://" not in where:
        return str(Path(where).expanduser().absolute())
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return str(Path(unquote(parts.path)))
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ValueError(f"{where} is no path and no address as s3://bucket/prefix or file:///path is one")
    if "@" in parts.netloc and parts.scheme == "s3":
        raise ValueError(
            "the address of a storage must not hold its keys, which would be shown; give AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    _see_options(where, parts)
    return where


def _see_options(where: str, parts: SplitResult) -> None:
    """Raise ValueError for options that pyarrow doesn't know; asks nobody, since a region is given."""
    if parts.scheme != "s3":
        return
    from pyarrow import fs

    region = "" if "region=" in parts.query else f"{'&' if parts.query else '?'}region=us-east-1"
    try:
        fs.FileSystem.from_uri(where + region)
    except ValueError as error:
        raise ValueError(f"{where} can't be used: {error}") from error


@lru_cache(maxsize=16)
def _opened(where: str) -> tuple[fs.FileSystem, str]:
    from pyarrow import fs

    filesystem, directory = fs.FileSystem.from_uri(where)
    return filesystem, directory.rstrip("/")


def insistently(act: Callable[[], Answer], patience_s: float = PATIENCE_S) -> Answer:
    """Return what ``act`` returns, trying again while the storage is away; raises StorageError at the deadline."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            return act()
        except StorageError as error:
            if time.monotonic() + AGAIN_S > deadline:
                raise
            if not told:
                print(f"{error}. It is tried again for {patience_s:g} s", file=sys.stderr)
            told = True
            time.sleep(AGAIN_S)


@contextmanager
def _aside(directory: Path, name: str, aside: str, durable: bool) -> Iterator[Any]:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with (directory / aside).open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        (directory / aside).replace(directory / name)
    except BaseException:
        with suppress(OSError):
            (directory / aside).unlink()
        raise
    if durable:
        _make_durable(directory)


def _make_durable(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _told(error: OSError, doing: str, where: str) -> StorageError:
    return StorageError(_sentence(doing, where, str(error)))


def _sentence(doing: str, where: str, cause: str) -> str:
    said = re.sub(r"\s+", " ", re.sub(r"\(Request ID: [^)]*\)", "", cause)).strip(" .")[:_LONGEST_CAUSE]
    advice = next((words for pattern, words in _ADVICE if re.search(pattern, cause)), "see what the storage's log says")
    return f"can't {doing} {where}: {said}; {advice}"
