"""The server as a container runs it, without a container: as another user, and where the machine lets us, as the first
process of its own numbers, with nothing to write to but /tmp."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from .processes import until

READ_ONLY = """
mount --bind /tmp /tmp && mount -o remount,bind,ro / &&
exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --bounding-set -all "$@"
"""
ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def environment(**more: str) -> dict[str, str]:
    """Return what the image would set, and no more; there is no home."""
    path = os.pathsep.join(
        str(Path(one).absolute()) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one
    )
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": programs, "PYTHONPATH": path, **more}


def prefix_for(user: int) -> list[str]:
    """Return what goes before a command, so that it can do as little as possible here."""
    read_only = ["sh", "-c", READ_ONLY.format(user=user), "sh"]
    as_user = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
    look = [sys.executable, "-c", "import sampa.api.serve"]
    for prefix in ([*ALONE, *read_only], ["unshare", "--mount", *read_only], as_user) if os.getuid() == 0 else ():
        if shutil.which(prefix[0]) is None:
            continue
        tried = subprocess.run(
            [*prefix, *look], env=environment(), cwd="/", capture_output=True, check=False, timeout=60
        )
        if tried.returncode == 0:
            return prefix
    return []


class Container:
    """A server process and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, is_first: bool) -> None:
        self.process, self.log, self._is_first = process, log, is_first

    @property
    def server(self) -> psutil.Process:
        """The server itself, which is below ``process`` where it is process 1 of its own."""
        outer = psutil.Process(self.process.pid)
        return until(lambda: next(iter(outer.children()), None), "the first process") if self._is_first else outer

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal, as whoever runs a container does: from outside."""
        self.server.send_signal(number)

    def takes(self, number: signal.Signals) -> bool:
        """Say whether the server has a handler for a signal; process 1 is not ended by one without."""
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{self.server.pid}/status").read_text(), re.MULTILINE)
        assert caught is not None
        return bool(int(caught[1], 16) >> (number - 1) & 1)

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has said; each line of it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def said(self, pattern: str) -> re.Match[str] | None:
        assert self.process.poll() is None, self.log.read_text()
        return next(filter(None, (re.search(pattern, line["message"]) for line in self.lines())), None)

    def url(self) -> str:
        return str(until(lambda: self.said(r"serving at (\S+),"), "the server to say where it is")[1])


@contextmanager
def started(command: Sequence[str], prefix: list[str], log: Path, variables: Mapping[str, str]) -> Iterator[Container]:
    """Run a command with these variables and the image's, and end it with the block."""
    with log.open("wb") as output:
        env = environment(**variables)
        process = subprocess.Popen([*prefix, *command], env=env, stdout=output, stderr=output, cwd="/")
    try:
        yield Container(process, log, "--fork" in prefix)
    finally:
        process.kill()
        process.wait(10)


def ask(url: str, timeout_s: float = 10) -> httpx.Response | None:
    try:
        return httpx.get(url, trust_env=False, timeout=timeout_s)
    except httpx.TransportError:
        return None
