"""One service with a Ray of its own for all tests in this folder, since a Ray takes ten seconds to start."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sampa.api.client import Client
from sampa.service import local_ray

from ..api.processes import ServerProcess, until
from .jobs import CODE, LOOK_S, PATH, Run, Watched, spec, unbroken


@contextmanager
def served(folder: Path, **variables: str) -> Iterator[ServerProcess]:
    """Run a service with a Ray of its own, both on the code of this tree, until both have ended well."""
    server = ServerProcess(folder / "state", None, variables={"PYTHONPATH": PATH, **variables})
    try:
        server.start()
        until(
            lambda: httpx.get(f"{server.url}/readyz", trust_env=False).is_success or None, "the local Ray", 120, LOOK_S
        )
        yield server
        server.processes[-1].send_signal(signal.SIGTERM)
        assert server.processes[-1].wait(60) == 0, server.log.read_text()
    finally:
        server.end()
        left = local_ray.find(server.state_dir)
        if left is not None:
            local_ray.stop(left)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="package")
def client(server: ServerProcess) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def submit(client: Client) -> Callable[..., Watched]:
    return lambda asked: Watched(client, client.submit(asked)["id"])


@pytest.fixture(scope="package")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What comes out of the usual job when nothing happens to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CODE))
        return unbroken(spec("calm"), tmp_path_factory.mktemp("calm"))
