"""The server process: uvicorn over the application, with a word in the log when it starts and when it stops."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from ..service.settings import ServiceSettings, variable_of
from ..service.shared import why_store_out_of_reach
from ..service.store import Store, StoreError
from .app import create_app
from .command import BAD_INPUT
from .faults import faults_of, summary
from .found import erase, write_down
from .logs import to_stderr

log = logging.getLogger("sampa.serve")
STREAMS_DEADLINE_S = 3  # whole seconds after which a request still open at the end is cut off


class CannotServe(Exception):
    """Why the server can't start, in one sentence."""


def serve_until_stopped(given: Mapping[str, Any]) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends the process at once.

    Where the log is in JSON, so is what keeps it from serving, and the process ends with BAD_INPUT.

    Args:
        given: Fields of ServiceSettings that win over the environment.

    Raises:
        CannotServe: If the settings, the address or the state directory can't be used.
    """
    log_format = os.environ.get(variable_of("log_format"), "text")
    to_stderr(log_format)
    try:
        ready = _prepared(given)
    except CannotServe as error:
        if log_format != "json":
            raise
        log.critical("%s", error)
        sys.exit(BAD_INPUT)
    settings = ready.settings
    log.info("serving at %s, state in %s, pid %d", ready.url, settings.state_dir, os.getpid())
    try:
        _Server(ready.app, settings.drain_s).run(sockets=[ready.listener])
    finally:
        erase(settings.state_dir, ready.server)
    log.info("stopped")


class _Ready(NamedTuple):
    """All that is needed to serve."""

    settings: ServiceSettings
    app: FastAPI
    listener: socket.socket
    url: str
    server: str  # what tells this one from others


def _prepared(given: Mapping[str, Any]) -> _Ready:
    """Return all that is needed to serve; raises CannotServe."""
    try:
        settings = ServiceSettings.from_environment(**given)
        if why := why_store_out_of_reach(settings):
            raise CannotServe(why)
        listener = _listen(settings.host, settings.port)
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = Store(settings.store_url)
        store.migrate()  # here, where a store that can't be used is one sentence
        app = create_app(settings, store)
        url = _url(listener)
        return _Ready(settings, app, listener, url, write_down(settings.state_dir, url))
    except ValidationError as error:
        raise CannotServe(summary(faults_of(ServiceSettings, error))) from error
    except (OSError, ValueError, StoreError) as error:
        raise CannotServe(str(error)) from error


class _Server(uvicorn.Server):
    """Uvicorn that drains on SIGTERM, then ends open streams first, and leaves at once on the second signal.

    While it drains, it serves as ever but says that it is not ready: whoever sends it requests needs time to learn
    that. Streams end after it, so that their readers find another server.
    """

    def __init__(self, app: FastAPI, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=STREAMS_DEADLINE_S,
            )
        )
        self._draining, self._ending, self._drain_s = app.state.draining, app.state.stop, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining.is_set():
            log.warning("stopped at once")
            os._exit(128 + sig)
        self._draining.set()
        drain_s = self._drain_s if sig == signal.SIGTERM else 0.0
        log.info("stopping on %s%s; once more stops at once", signal.Signals(sig).name, _after(drain_s))
        if drain_s:
            timer = threading.Timer(drain_s, self._end)
            timer.daemon = True
            timer.start()
        else:
            self._end()

    def _end(self) -> None:
        self._ending.set()
        self.should_exit = True


def _after(drain_s: float) -> str:
    return f" after {drain_s:g} s in which requests are still served" if drain_s else ""


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        sentence = f"can't listen on port {port} of {host}: {error.strerror}; choose others with --port and --host"
        raise CannotServe(sentence) from error
    listener.set_inheritable(False)
    return listener


def _url(listener: socket.socket) -> str:
    """Return where this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
