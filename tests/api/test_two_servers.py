"""Two API processes over one store, of which one reconciles: killed, ended or cut off, it is soon replaced."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sampa.api.client import SampaError, ServerUnreachable
from sampa.service.states import State
from sampa.service.store import Store, StoreUnavailable

from ..postgres import fresh_place, running_postgres
from ..service.test_store_concurrency import assert_whole
from .conftest import SPEC
from .fakes import fake_ray
from .processes import ServerProcess, until

TAKEOVER_S = 10.0  # what is promised at most
AT_ONCE_S = 3.0  # after a graceful end: a look of the other one at the lease, and a pass


@dataclass
class Pair:
    """Two servers, what Ray knows, and the test in the place of the runners."""

    servers: tuple[ServerProcess, ServerProcess]
    ray: dict[str, dict[str, Any]]
    store: Store

    def start(self) -> None:
        """Start both at the same moment."""
        spawned = [(server, server.spawn()) for server in self.servers]
        for server, process in spawned:
            until(lambda s=server, p=process: s._live(p), "both servers to answer")

    def leader(self) -> ServerProcess | None:
        """Return the one that both name as the leader, if they agree."""
        named = {ready(server).get("leader") for server in self.servers}
        for server in self.servers:
            if named and all(f"-{server.processes[-1].pid}-" in str(name) for name in named):
                return server
        return None

    def wait_for_leader(self) -> tuple[ServerProcess, ServerProcess]:
        """Return the leader and the other one, both of which are ready."""
        leader = until(self.leader, "one leader")
        return leader, self.servers[self.servers.index(leader) - 1]

    def play(self) -> None:
        """Let every runner that Ray has started do its job."""
        for name, submission in list(self.ray.items()):
            if submission["status"] == "RUNNING":
                _, job_id, attempt = name.split("-")
                self.store.move(job_id, State.RUNNING, attempt=int(attempt))
                self.store.move(job_id, State.SUCCEEDED, attempt=int(attempt))
                submission["status"] = "SUCCEEDED"

    def wait_for_end(self, ids: list[str]) -> None:
        """Wait until all these jobs were started, and let their runners do them."""

        def ended() -> bool | None:
            self.play()
            return all(self.store.job(job_id).state is State.SUCCEEDED for job_id in ids) or None

        until(ended, "the leader to start all jobs", every_s=0.05)


def ready(server: ServerProcess) -> dict[str, Any]:
    """Return what a server says of its readiness; nothing if it isn't."""
    try:
        answer = httpx.get(f"{server.url}/readyz", trust_env=False, timeout=30)
    except httpx.TransportError:
        return {}
    return dict(answer.json()) if answer.is_success else {}


@contextmanager
def pair_over(folder: Path, store_url: str) -> Iterator[Pair]:
    with fake_ray() as (url, jobs), ExitStack() as at_the_end:
        variables = {"SAMPA_STORE_URL": store_url}
        servers = [ServerProcess(folder / "state", url, variables=variables, name=name) for name in ("a", "b")]
        for server in servers:
            at_the_end.callback(server.end)
        store = Store(store_url)
        at_the_end.callback(store.close)
        yield Pair((servers[0], servers[1]), jobs, store)


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    sqlite = request.param == "sqlite"
    with pair_over(
        tmp_path, f"sqlite:///{tmp_path}/sampa.db" if sqlite else request.getfixturevalue("postgres_url")
    ) as pair:
        yield pair


def submit(server: ServerProcess, count: int) -> list[str]:
    with server.client() as client:
        return [client.submit(SPEC)["id"] for _ in range(count)]


@pytest.mark.long
def test_killed_leaders_lose_no_job_start_none_twice_and_are_soon_replaced(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    pair.start()
    ids = []
    for _ in range(2):
        leader, standby = pair.wait_for_leader()
        ids += submit(standby, 3)
        pair.wait_for_end(ids)
        leader.processes[-1].kill()
        killed_at = time.monotonic()
        ids += submit(standby, 3)
        pair.wait_for_end(ids)
        took_s = time.monotonic() - killed_at
        record_property("takeover_s", round(took_s, 2))
        print(f"a killed leader was replaced, and three waiting jobs ran, after {took_s:.2f} s")
        assert took_s < TAKEOVER_S
        leader.start()
    assert set(pair.ray) == {f"sampa-{job_id}-1" for job_id in ids}, "each job once, by its first attempt"
    for job_id in ids:
        assert_whole(pair.store, job_id)


def test_a_leader_that_ends_is_replaced_at_once_and_a_job_is_watched_on(pair: Pair) -> None:
    pair.start()
    leader, standby = pair.wait_for_leader()
    [job_id] = submit(standby, 1)
    until(lambda: pair.ray or None, "the leader to start it")
    pair.store.move(job_id, State.RUNNING, attempt=1)
    leader.processes[-1].send_signal(signal.SIGTERM)
    assert leader.processes[-1].wait(30) == 0
    ended_at = time.monotonic()
    pair.ray[f"sampa-{job_id}-1"]["status"] = "FAILED"
    until(lambda: f"sampa-{job_id}-2" in pair.ray or None, "the other one to see that its runner vanished")
    assert time.monotonic() - ended_at < AT_ONCE_S
    assert set(pair.ray) == {f"sampa-{job_id}-1", f"sampa-{job_id}-2"}


def test_a_leader_that_stood_still_finds_that_another_one_leads(pair: Pair) -> None:
    pair.start()
    leader, standby = pair.wait_for_leader()
    leader.processes[-1].send_signal(signal.SIGSTOP)
    ids = submit(standby, 2)
    pair.wait_for_end(ids)
    leader.processes[-1].send_signal(signal.SIGCONT)
    until(lambda: "reconciles no more" in leader.log.read_text() or None, "the old leader to notice")
    assert until(pair.leader, "both to agree") is standby
    ids += submit(leader, 2)
    pair.wait_for_end(ids)
    assert set(pair.ray) == {f"sampa-{job_id}-1" for job_id in ids}


def test_a_database_that_is_started_again_costs_nothing(tmp_path: Path) -> None:
    with running_postgres() as server, fresh_place(server) as url, pair_over(tmp_path, url) as pair:
        pair.start()
        pair.wait_for_leader()
        ids = submit(pair.servers[0], 2)
        pair.wait_for_end(ids)
        server.stop(signal.SIGQUIT)
        for each in pair.servers:
            answer = httpx.get(f"{each.url}/readyz", trust_env=False, timeout=30)
            assert answer.status_code == 503
            with each.client() as client, pytest.raises((SampaError, ServerUnreachable)):
                client.job(ids[0])
        with pytest.raises(StoreUnavailable):
            pair.store.job(ids[0])
        server.start()
        pair.wait_for_leader()
        ids += [*submit(pair.servers[0], 2), *submit(pair.servers[1], 2)]
        pair.wait_for_end(ids)
        assert set(pair.ray) == {f"sampa-{job_id}-1" for job_id in ids}
        secret = server.password.partition("/")[2]
        assert secret not in "".join(each.log.read_text() for each in pair.servers)
        assert secret not in json.dumps(pair.ray), "what is shown by Ray's Jobs API"
        lines = [psutil.Process(each.processes[-1].pid).cmdline() for each in pair.servers]
        assert secret not in str(lines), "what ps shows"


def test_a_store_that_can_not_be_reached_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "state", "http://127.0.0.1:1")
    server.variables = {"SAMPA_STORE_URL": "postgresql://sampa:secret@127.0.0.1:1/sampa"}
    tmp_path.joinpath("state").mkdir()
    process = server.spawn()
    try:
        assert process.wait(60) == 2
    except subprocess.TimeoutExpired:
        server.end()
        raise
    said = server.log.read_text()
    assert said.startswith("error: the store at postgresql+psycopg://sampa:***@127.0.0.1:1/sampa doesn't answer")
    assert said.count("\n") == 1
    assert "secret" not in said
