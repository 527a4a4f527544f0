"""What goes with every request: its time is counted and, where wanted, logged; and while the server drains, the answer
says that this connection ends, so the next request of its client reaches another server."""

from __future__ import annotations

import logging
import threading
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import OPEN_PATHS
from .metrics import Metrics

log = logging.getLogger("sampa.requests")


class RequestMiddleware:
    """Goes around everything else.

    Args:
        app: What answers.
        metrics: Where requests are counted.
        draining: Set while connections are to end.
        logs: Whether there is a line for each request, but for those of probes that went well.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: threading.Event, logs: bool) -> None:
        self.app, self._metrics, self._draining, self._logs = app, metrics, draining, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, answered = time.perf_counter(), False

        async def answer(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                if self._draining.is_set():
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
                self._answered(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception:
            if not answered:  # what makes an answer of it goes around this
                self._answered(scope, 500, time.perf_counter() - began)
            raise

    def _answered(self, scope: Scope, status: int, took_s: float) -> None:
        method, path = scope["method"], scope["path"]
        self._metrics.answered(method, getattr(scope.get("route"), "path", None), status, took_s)
        if self._logs and (path not in OPEN_PATHS or status >= 400):
            about = {"method": method, "path": path, "status": status, "took_ms": round(took_s * 1000, 1)}
            named = scope.get("path_params") or {}
            some_id = named.get("job_id") or named.get("sweep_id")
            log.info("%s %s %d", method, path, status, extra=about | ({"job": some_id} if some_id else {}))
