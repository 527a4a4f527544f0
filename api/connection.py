"""How a client's requests travel: each answer is a document, each failure one sentence, each stream taken up again."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

Document = dict[str, Any]
PATIENCE_S = 60.0  # how long a follower tries to come back to a server that doesn't answer
_SILENCE_S = 45.0  # of a stream, which is three keep-alive comments missed
_PAGE = 200  # of a list, as many as the server gives at once


class SampaError(Exception):
    """What went wrong, in one sentence.

    Attributes:
        status: HTTP status of the answer; 0 when there was none.
        problem: The problem document; empty when there was none.
    """

    def __init__(self, sentence: str, status: int = 0, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.problem = status, dict(problem or {})

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, Document]]:
        return type(self), (str(self), self.status, self.problem)


class ServerUnreachable(SampaError):
    """Nobody answers at the address."""


class Connection:
    """The way to one server; may be shared between threads.

    Args:
        url: Where the server is.
        token: Its bearer token.
        timeout_s: How long to wait for any one answer.
        transport: How requests travel, for tests.
    """

    def __init__(self, url: str, token: str, timeout_s: float, transport: httpx.BaseTransport | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0))
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def json(self, method: str, path: str, **request: Any) -> Document:
        """Return the document that answers a request."""
        with self._answers():
            answer = self._http.request(method, path, **request)
            _raise_for(answer)
            document: Document = answer.json()
            return document

    def listed(self, path: str, state: Sequence[str], name: str | None, limit: int | None) -> Iterator[Document]:
        """Yield the items of a list that has cursors, at most ``limit``; page after page as they are asked for."""
        query = {"state": list(state), **({} if name is None else {"name": name})}
        cursor: str | None = ""
        left = limit
        while cursor is not None and left != 0:
            size = _PAGE if left is None else min(left, _PAGE)
            place = {"cursor": cursor} if cursor else {}
            page = self.json("GET", path, params={**query, "limit": size, **place})
            yield from page["items"]
            cursor = page["next"]
            left = None if left is None else left - len(page["items"])

    def numbered(self, path: str, after: int | None, **query: Any) -> Iterator[Document]:
        """Yield the items of a list whose pages go by number, that are there now."""
        while after is not None:
            page = self.json("GET", path, params={"after": after, **query})
            yield from page["items"]
            after = page["next"]

    def events(self, path: str, after: int, kinds: Sequence[str]) -> Iterator[Document]:
        """Yield the events that are there now, after a number."""
        while True:
            page = self.json("GET", path, params={"after": after, "kind": list(kinds)})
            yield from page["items"]
            if not page["items"]:
                return
            after = page["last"]

    def follow(self, path: str, after: int, patience_s: float) -> Iterator[Document]:
        """Yield each event after a number once, as it comes, until the end; reconnects by itself.

        Raises:
            ServerUnreachable: If the server doesn't come back within ``patience_s`` seconds.
        """
        lost_at: float | None = None
        while True:
            try:
                for message in self._stream(path, after):
                    lost_at = None
                    if message.event == "end":
                        return
                    if not message.data:
                        continue  # only the time to wait before coming back
                    event = json.loads(message.data)
                    after = event["seq"]
                    yield event
            except SampaError as error:
                if 0 < error.status < 500:
                    raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > patience_s:
                    raise
            time.sleep(random.uniform(0.2, 0.6))  # many followers don't come back all at once

    def download(self, source: str, path: Path) -> Path:
        """Write what is at ``source`` to ``path``: whole or not at all."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with self._answers(), self._http.stream("GET", source) as answer:
                _raise_for(answer)
                with aside.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return path

    def _stream(self, path: str, after: int) -> Iterator[ServerSentEvent]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(_SILENCE_S, connect=5.0)
        with self._answers(), self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            _raise_for(answer)
            yield from EventSource(answer).iter_sse()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn whatever the transport raises into an error of ours."""
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL, SSEError) as error:
            raise ServerUnreachable(
                f"no server answers at {self.url} ({_cause(error)}); start one with sampa serve, or set --url"
            ) from error
        except ValueError as error:
            raise SampaError(f"what answers at {self.url} is no sampa server; check --url") from error


def again_if_lost(ask: Callable[[], Document]) -> Document:
    """Ask, and once more if the answer was lost on its way; for what may be asked twice."""
    try:
        return ask()
    except ServerUnreachable as error:
        if isinstance(error.__cause__, httpx.ConnectError):
            raise
        return ask()


def _raise_for(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        problem = answer.json()
        sentence = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        problem = {}
        sentence = f"{answer.request.url} answered {answer.status_code} without a reason; is it a sampa server?"
    raise SampaError(sentence, answer.status_code, problem)


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
