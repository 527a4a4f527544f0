"""A PostgreSQL of the tests' own: Debian's package, in a folder that goes with it; an empty place for each test."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

MISSING = "PostgreSQL is not installed; sudo apt-get install --yes postgresql lets this test run"
DEADLINE_S = 30.0
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "listen_addresses": "127.0.0.1"}


class Postgres:
    """A server that may be stopped and started again; it asks for a password."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        self._data = folder / "data"
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        self.password = f"p@ss/{secrets.token_hex(8)}"  # with what must be quoted in a URL
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the folder of its data."""
        if self._as:
            shutil.chown(self._folder, "postgres", "postgres")
        asked = self._folder / "password"
        asked.write_text(self.password)
        asked.chmod(0o644)  # in a folder that is closed to others
        options = ["--username=sampa", f"--pwfile={asked}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"]
        command = [self._binaries / "initdb", f"--pgdata={self._data}", "--locale=C.UTF-8", *options]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False, timeout=DEADLINE_S, **self._as
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        command = [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), "-k", self._folder, *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, **self._as)
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.02)

    def stop(self, sig: signal.Signals = signal.SIGINT) -> None:
        """End it at once, with all its connections."""
        if self._process is not None:
            self._process.send_signal(sig)
            self._process.wait(DEADLINE_S)
            self._process = None

    def url(self, user: str = "sampa") -> str:
        """Return the store URL of a user; all have the same password."""
        url = make_url(f"postgresql://127.0.0.1:{self.port}/postgres").set(username=user, password=self.password)
        return url.render_as_string(hide_password=False)

    def administer(self, *statements: str) -> None:
        """Execute statements as the owner of everything."""
        url = make_url(self.url()).set(drivername="postgresql+psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def _answers(self) -> bool:
        ready = [self._binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False, timeout=DEADLINE_S).returncode == 0


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a session."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a place of this test's own, where nothing is."""
    with fresh_place(postgres) as url:
        yield url


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Give a server, or skip the test where the package is not there."""
    binaries = _binaries()
    if binaries is None or (os.getuid() == 0 and not _is_user("postgres")):
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="sampa-pg-"))
    server = Postgres(binaries, folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextmanager
def fresh_place(server: Postgres) -> Iterator[str]:
    """Give the URL of a new user, whose tables lie in a schema of that name; both are dropped afterwards.

    A database for each would take a second, a schema takes milliseconds.
    """
    name = f"test_{secrets.token_hex(6)}"
    server.administer(f"CREATE ROLE {name} LOGIN PASSWORD '{server.password}'", f"CREATE SCHEMA AUTHORIZATION {name}")
    yield server.url(name)
    still_there = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'"
    server.administer(still_there, f"DROP SCHEMA {name} CASCADE", f"DROP ROLE {name}")


def _binaries() -> Path | None:
    """Return the folder of the newest version that is installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: float(path.parents[1].name), default=None)
    return None if newest is None else newest.parent


def _is_user(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
