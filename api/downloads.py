"""Files of jobs and sweeps as answers: streamed, with a version and a length, and in parts for whoever asks for one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from ..workers.storage import Info, Storage
from .replies import matches

_PIECE = 4 << 20  # bytes that are asked of a remote storage at a time
_PART = re.compile(r"bytes=(\d*)-(\d*)")


def file_reply(
    request: Request, storage: Storage, file: str, media_type: str, known: str | None, name: str | None = None
) -> Response:
    """Return a file, to be kept under ``name`` if one is given; or that it is the one that is known.

    Raises:
        FileNotFoundError: If it is not there.
        StorageError: If a remote storage is away.
    """
    if storage.path is not None:
        path = storage.path / file
        whole = FileResponse(path, media_type=media_type, filename=name, stat_result=path.stat())
        tag = whole.headers["etag"]
        return Response(status_code=304, headers={"ETag": tag}) if matches(known, tag) else whole
    info = storage.info(file)
    tag = f'"{hashlib.sha256(f"{info.modified}-{info.size}".encode()).hexdigest()[:32]}"'
    if matches(known, tag):
        return Response(status_code=304, headers={"ETag": tag})
    headers = {"ETag": tag, "Last-Modified": formatdate(info.modified, usegmt=True), "Accept-Ranges": "bytes"}
    if name is not None:
        headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(name)}"
    return _streamed(storage, file, media_type, info, _part_of(request, tag, info.size), headers)


def _streamed(
    storage: Storage, file: str, media_type: str, info: Info, part: range, headers: Mapping[str, str]
) -> Response:
    if not part and info.size:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{info.size}"})
    headers = {**headers, "Content-Length": str(len(part))}
    whole = len(part) == info.size
    if not whole:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{info.size}"
    pieces = _pieces(storage, file, part)
    next(pieces)  # opens it, so that a storage that is away is an answer of its own
    return StreamingResponse(pieces, 200 if whole else 206, headers, media_type)


def _pieces(storage: Storage, name: str, part: range) -> Iterator[bytes]:
    """Give nothing, once the file is open, and then the part of it."""
    with storage.reading(name) as file:
        yield b""
        file.seek(part.start)
        left = len(part)
        while left and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            yield piece


def _part_of(request: Request, tag: str, size: int) -> range:
    """Return the bytes that are asked for: all, unless there is one range, of the version that is there."""
    asked = _PART.fullmatch(request.headers.get("range", "").strip())
    if asked is None or not any(asked.groups()) or request.headers.get("if-range", tag) != tag:
        return range(size)
    first, last = asked.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(size, int(last) + 1) if last else size)
