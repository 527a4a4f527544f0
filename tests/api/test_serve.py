"""The server process: fast to answer, small, silent about secrets, and none the worse for a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sampa.api.client import Client
from sampa.service.states import State

from .conftest import SPEC
from .processes import SAMPA, ServerProcess, run_job, server_process, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path) as server:
        yield server


def test_it_is_soon_there_and_small(server: ServerProcess) -> None:
    process = psutil.Process(server.start().pid)
    used = process.cpu_times()
    assert used.user + used.system < 3.0, "seconds of computing before the first answer"
    with server.client() as client:
        for _ in range(20):
            client.submit(SPEC)
        list(client.jobs())
    assert process.memory_info().rss < 250e6


def test_it_says_where_it_is_as_long_as_it_is_there(server: ServerProcess) -> None:
    process = server.start()
    written = json.loads((server.state_dir / "server.json").read_text())
    assert written == {"url": server.url, "pid": process.pid, "server": written["server"]}
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not (server.state_dir / "server.json").exists()


def test_it_logs_its_start_and_its_end_and_no_secret(server: ServerProcess) -> None:
    process = server.start()
    server.run("submit", "nowhere.yaml")
    with server.client() as client:
        client.submit(SPEC)
    httpx.get(f"{server.url}/v1/jobs", headers={"Authorization": "Bearer wrong-token"}, trust_env=False)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    log = server.log.read_text()
    assert log.count("serving at") == 1
    assert log.count("stopping on SIGINT") == 1
    assert server.token not in log
    assert "wrong-token" not in log
    assert "Traceback" not in log
    assert "GET /v1/jobs" not in log


def test_a_second_signal_ends_it_at_once(server: ServerProcess) -> None:
    process = server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n")
        connection.sendall(f"Authorization: Bearer {server.token}\r\n\r\n".encode())  # and the body never comes
        process.send_signal(signal.SIGINT)
        until(lambda: "stopping on SIGINT" in server.log.read_text() or None, "the first signal to be seen")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 128 + signal.SIGINT)


def test_after_a_kill_everything_is_there_and_goes_on(server: ServerProcess) -> None:
    process = server.start()
    store = server.store()
    job = run_job(store, "killed")
    process.kill()
    process.wait(10)
    store.append(job.id, [("metrics", {"step": 1, "loss": 1.0})], attempt=1, progress={"step": 1, "steps": 2})
    server.start()
    with server.client() as client:
        shown = client.job(job.id)
        assert (shown["state"], shown["attempt"], shown["progress"]) == ("RUNNING", 1, {"step": 1, "steps": 2})
        waiting = client.submit({**SPEC, "name": "next"})
        until(lambda: store.job(waiting["id"]).launched or None, "the new server to launch the next job")
        client.cancel(job.id)
        until(lambda: store.job(job.id).state is State.CANCELLED or None, "the new server to end the job")
    store.close()


def test_two_submits_at_once_with_one_key_are_one_job(server: ServerProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server.start()
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: client.submit(SPEC, "once")["id"], range(8)))
        others = set(pool.map(lambda _: client.submit(SPEC)["id"], range(8)))
        assert len(ids) == 1
        assert len(others) == 8
        assert len(list(client.jobs())) == 9


def test_several_that_start_at_once_on_a_new_state_directory_share_one_store_and_one_token(tmp_path: Path) -> None:
    count, log = 4, tmp_path / "log"
    options = ["--port", "0", "--state-dir", str(tmp_path / "state"), "--ray-address", "http://127.0.0.1:1"]
    with log.open("ab") as output:
        processes = [subprocess.Popen([*SAMPA, "serve", *options], stderr=output) for _ in range(count)]
    try:
        found = until(lambda: _all_serving(log, count), f"{count} servers to serve", 120)
        token = (tmp_path / "state" / "token").read_text().strip()
        ids = set()
        for url in found:
            with Client(url, token) as client:
                client.submit(SPEC)
                ids.add(frozenset(job["id"] for job in client.jobs()))
        assert sorted(map(len, ids)) == [1, 2, 3, 4]
        assert "Traceback" not in log.read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def _all_serving(log: Path, count: int) -> list[str] | None:
    found = re.findall(r"serving at (\S+),", log.read_text())
    return found if len(found) == count else None


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ["--port", str(port), "--state-dir", str(tmp_path), "--ray-address", "http://127.0.0.1:1"]
        ended = subprocess.run([*SAMPA, "serve", *options], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr == f"error: can't listen on port {port} of 127.0.0.1: Address already in use; " + (
        "choose others with --port and --host\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--ray-address", "ftp://x", "ray_address"), ("--store", "mongodb://x", "mongodb")],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, option: str, value: str, word: str) -> None:
    command = [*SAMPA, "serve", "--port", "0", "--state-dir", str(tmp_path / "s"), option, value]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert word in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_file_as_the_store_is_refused_with_a_ray_elsewhere(tmp_path: Path) -> None:
    elsewhere = "http://192.0.2.1:8265"  # of a network that is only written about
    command = [*SAMPA, "serve", "--port", "0", "--state-dir", str(tmp_path / "s"), "--ray-address", elsewhere]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: the store is SQLite, a file of this machine, but the runners are started by the Ray at 192.0.2.1, "
        "which is another one, and would find an empty store there; give SAMPA_STORE_URL, or --store, a PostgreSQL\n"
    )
    assert not (tmp_path / "s").exists()


def test_a_wrong_variable_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    environment = {**os.environ, "SAMPA_STATE_DIR": str(tmp_path / "s"), "SAMPA_PORT": "tcp://10.0.0.1:8700"}
    ended = subprocess.run([*SAMPA, "serve"], capture_output=True, text=True, check=False, timeout=30, env=environment)
    assert ended.returncode == 2
    assert ended.stderr == 'error: SAMPA_PORT must be a valid integer, but is "tcp://10.0.0.1:8700"\n'
    assert not (tmp_path / "s").exists()


def test_without_ray_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with server_process(tmp_path) as server:
        server.ray_url = gone
        server.start()
        deadline = time.monotonic() + 10
        answer = httpx.get(f"{server.url}/readyz", trust_env=False)
        while "not looked at" in answer.text and time.monotonic() < deadline:
            answer = httpx.get(f"{server.url}/readyz", trust_env=False)
        assert answer.status_code == 503
        assert "ray" in answer.json()["detail"]
        without = httpx.get(f"{server.url}/readyz?exclude=ray", trust_env=False)
        assert without.status_code == 200
        assert without.json()["checks"]["ray"] != "ok"
        assert httpx.get(f"{server.url}/readyz?exclude=store", trust_env=False).status_code == 422
        with server.client() as client:
            assert client.submit(SPEC)["state"] == "QUEUED"
