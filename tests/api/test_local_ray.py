"""The server's own Ray: started beside it, found again after a kill, ended with it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from sampa.service import local_ray

from .processes import ServerProcess, server_process, until


@pytest.mark.ray
def test_the_local_ray_outlives_a_kill_and_ends_with_the_server(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        server.ray_url = None
        try:
            first = server.start()
            pid = ray_pid(server)
            first.kill()
            first.wait(10)
            assert psutil.pid_exists(pid)
            second = server.start()
            assert ray_pid(server) == pid
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
            assert not psutil.pid_exists(pid)
            assert "stopping the local Ray" in server.log.read_text()
        finally:
            left = local_ray.find(server.state_dir)
            if left is not None:
                local_ray.stop(left)


def ray_pid(server: ServerProcess) -> int:
    """Return the process of the local Ray as soon as the server is ready."""
    until(lambda: httpx.get(f"{server.url}/readyz", trust_env=False).is_success or None, "the local Ray", 120)
    return int(json.loads((server.state_dir / "ray.json").read_text())["pid"])
