"""A real server process over a real store, with a Ray Jobs API that starts nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from sampa.api.auth import token_in
from sampa.api.cli import app as cli
from sampa.api.client import Client
from sampa.service.specs import JobSpec
from sampa.service.states import State
from sampa.service.store import Job, Store
from typer.testing import CliRunner, Result

from .conftest import SPEC
from .fakes import fake_ray

SAMPA = [sys.executable, "-c", "from sampa.api.cli import main; main()"]
DEADLINE_S = 30.0
T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S, every_s: float = 0.01) -> T:
    """Return the first thing that ``look`` finds, or fail at the deadline."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(every_s)
    raise AssertionError(f"waited {deadline_s:g} s for {what}")


@dataclass
class ServerProcess:
    """One server after another on the same port and state directory."""

    state_dir: Path
    ray_url: str | None  # None: a Ray of its own
    port: int = 0
    variables: dict[str, str] = field(default_factory=dict)  # of its environment, beside ours
    name: str = "server"
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and return when it answers."""
        process = self.spawn()
        until(lambda: self._live(process), f"an answer of the server; it said {self.log.read_text()}")
        return process

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it."""
        options = ["--state-dir", str(self.state_dir), "--port", str(self.port)]
        options += ["--ray-address", self.ray_url] if self.ray_url else []
        with self.log.open("ab") as log:
            environment = {**os.environ, **self.variables}
            process = subprocess.Popen([*SAMPA, "serve", *options], stderr=log, stdout=log, env=environment)
        self.processes.append(process)
        return process

    def _live(self, process: subprocess.Popen[bytes]) -> bool | None:
        assert process.poll() is None, self.log.read_text()
        found = re.findall(rf"serving at (\S+), .* pid {process.pid}", self.log.read_text())
        if not found:
            return None
        self.port = int(found[0].rsplit(":", 1)[1])
        try:
            return httpx.get(f"{self.url}/livez", trust_env=False).is_success or None
        except httpx.TransportError:
            return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.state_dir.parent / f"{self.name}.log"

    @property
    def token(self) -> str:
        return token_in(self.state_dir)

    def client(self) -> Client:
        return Client(self.url, self.token)

    def environment(self) -> dict[str, str | None]:
        """Return what makes the command line find this server, whatever else is set."""
        others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SAMPA_")}
        return {**others, "SAMPA_STATE_DIR": str(self.state_dir), "COLUMNS": "200"}

    def run(self, *arguments: str) -> Result:
        """Run the command line to its end, in this process."""
        return CliRunner().invoke(cli, arguments, env=self.environment())

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line in a process of its own."""
        changed = {**os.environ, **self.environment()}
        environment = {name: value for name, value in changed.items() if value is not None}
        pipe = subprocess.PIPE
        return subprocess.Popen([*SAMPA, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)

    def store(self) -> Store:
        return Store(self.variables.get("SAMPA_STORE_URL") or f"sqlite:///{self.state_dir}/sampa.db")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)


@contextmanager
def server_process(folder: Path) -> Iterator[ServerProcess]:
    """Give a server that has not been started; whatever was started is ended after it."""
    with fake_ray() as (url, _):
        server = ServerProcess(folder / "state", url)
        try:
            yield server
        finally:
            server.end()


def run_job(store: Store, name: str) -> Job:
    """Submit a job and play its runner: return it as soon as it is RUNNING."""
    job = store.submit(JobSpec.model_validate({**SPEC, "name": name}))[0]

    def launched() -> Job | None:
        now = store.job(job.id)
        return now if now.launched else None

    until(launched, "the reconciler to launch the job")
    return store.move(job.id, State.RUNNING, attempt=1)
