"""The Python client: every endpoint is a method, every error one sentence.

::

    with Client("http://127.0.0.1:8700", token) as sampa:
        job = sampa.submit(spec)
        for event in sampa.follow(job["id"]):
            print(event["kind"], event["data"])
        sweep = sampa.sweeps.submit(sweep_spec)
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx

from .connection import PATIENCE_S, Connection, Document, SampaError, ServerUnreachable, again_if_lost
from .sweep_client import Sweeps

__all__ = ["Client", "Document", "SampaError", "ServerUnreachable"]

_UPLOAD_S = 120.0  # in which a server looks through a bundle of the largest size, and stores it


class Client:
    """A client of one server; may be shared between threads.

    Args:
        url: Where the server is, ``http://127.0.0.1:8700`` for example.
        token: Its bearer token.
        timeout_s: How long to wait for any one answer.
        transport: How requests travel, for tests.

    Attributes:
        sweeps: What there is to do with sweeps.
    """

    def __init__(
        self, url: str, token: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._to = Connection(url, token, timeout_s, transport)
        self.url = self._to.url
        self.sweeps = Sweeps(self._to)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._to.close()

    def submit(self, spec: Mapping[str, Any], key: str | None = None) -> Document:
        """Submit a job and return it. A lost answer is asked for again with the same key, so it is stored once."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return again_if_lost(lambda: self._to.json("POST", "/v1/jobs", json=spec, headers=headers))

    def upload(self, code: Path) -> Document:
        """Bring your own code, a directory or the zip of one, and return its bundle; what is there is not sent again.

        A job refers to it by its hash::

            sampa.submit({**spec, "code": {"bundle": sampa.upload(Path("code"))["sha256"]}})

        Raises:
            CodeRefused: If the directory can't be packed.
        """
        if code.is_file():
            return self._upload(code)
        from .packing import packed

        with packed(code) as path:
            return self._upload(path)

    def _upload(self, path: Path) -> Document:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                return self._to.json("GET", f"/v1/bundles/{sha256}")
            except SampaError as error:
                if error.status != 404:
                    raise
            return again_if_lost(lambda: self._send(file))

    def _send(self, file: BinaryIO) -> Document:
        file.seek(0)
        headers = {"Content-Type": "application/zip"}
        timeout = httpx.Timeout(_UPLOAD_S, connect=5.0)
        return self._to.json("POST", "/v1/bundles", content=file, headers=headers, timeout=timeout)

    def jobs(self, state: Sequence[str] = (), name: str | None = None, limit: int | None = None) -> Iterator[Document]:
        """Yield jobs, newest first, at most ``limit``; page after page as they are asked for."""
        return self._to.listed("/v1/jobs", state, name, limit)

    def job(self, job_id: str) -> Document:
        """Return one job with its transitions."""
        return self._to.json("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> Document:
        """Cancel a job and return it; one that has ended stays as it is."""
        return self._to.json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> Document:
        """Have a job stop at its next step, with a checkpoint, and return it; it is PAUSED a little later."""
        return self._to.json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Document:
        """Queue a paused job again and return it."""
        return self._to.json("POST", f"/v1/jobs/{job_id}/resume")

    def resize(self, job_id: str, workers: int) -> Document:
        """Let a job have at most so many workers and return it."""
        return self._to.json("POST", f"/v1/jobs/{job_id}/resize", json={"workers": workers})

    def events(self, job_id: str, after: int = 0, kinds: Sequence[str] = ()) -> Iterator[Document]:
        """Yield the events that are there now, after a number."""
        return self._to.events(f"/v1/jobs/{job_id}/events", after, kinds)

    def follow(self, job_id: str, after: int = 0, *, patience_s: float = PATIENCE_S) -> Iterator[Document]:
        """Yield each event after a number once, as it comes, until the job has ended; reconnects by itself.

        Raises:
            ServerUnreachable: If the server doesn't come back within ``patience_s`` seconds.
        """
        return self._to.follow(f"/v1/jobs/{job_id}/events", after, patience_s)

    def metrics(self, job_id: str, after: int | None = 0) -> Iterator[Document]:
        """Yield the measurements that are there now, after a number."""
        return self._to.numbered(f"/v1/jobs/{job_id}/metrics", after)

    def checkpoints(self, job_id: str) -> list[Document]:
        """Return the job's checkpoints, oldest first."""
        items: list[Document] = self._to.json("GET", f"/v1/jobs/{job_id}/checkpoints")["items"]
        return items

    def model(self, job_id: str, path: Path) -> Path:
        """Write the model of a job that has succeeded to ``path``: whole or not at all."""
        return self._to.download(f"/v1/jobs/{job_id}/model", path)

    def live(self) -> bool:
        """Say whether the server's process answers."""
        return bool(self._to.json("GET", "/livez")["status"] == "ok")

    def ready(self) -> Document:
        """Return what the server checked; raises SampaError with status 503 when something is missing."""
        return self._to.json("GET", "/readyz")

    def openapi(self) -> Document:
        """Return the API's description."""
        return self._to.json("GET", "/openapi.json")
