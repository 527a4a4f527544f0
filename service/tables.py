"""The tables of the store, and the engine that opens them on SQLite or PostgreSQL."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

BUSY_S = 15.0  # how long a writer of SQLite waits for another one

POSTGRES_LIMITS = {"lock_timeout": "10s", "statement_timeout": "20s", "idle_in_transaction_session_timeout": "60s"}
"""What the server itself breaks off: waiting for another transaction, one statement, a transaction left open."""

POSTGRES_CONNECTION = {
    "connect_timeout": 5,  # seconds, for each address of the host
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
    "application_name": "sampa",
}
"""By which a server that has vanished without a word is noticed: 14 s after the last one. The URL may say otherwise."""

POSTGRES_POOL = {"pool_pre_ping": True, "pool_size": 5, "max_overflow": 10, "pool_timeout": 10.0}
"""At most 15 connections for each API process (a runner has one or two), since PostgreSQL has 100 for all if nothing
else is set; one that broke since its last use is replaced."""


URL_FORMS = ("sqlite:////path/to/file", "postgresql://user:password@host/database")


class UtcTime(TypeDecorator[datetime]):
    """An aware time, stored as ISO 8601 text in UTC of fixed width, so that it sorts on every database."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


metadata = MetaData()

bundles = Table(
    "bundles",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("unpacked_bytes", BigInteger, nullable=False),
    Column("files", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=False),
)

bundle_parts = Table(
    "bundle_parts",
    metadata,
    Column("sha256", String(64), ForeignKey("bundles.sha256", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("key", String(255), unique=True),
    Column("attempt", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("launched", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("interrupted_at", UtcTime),
    Column("progress", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("workers", Integer),
    Column("bundle", String(64), ForeignKey("bundles.sha256")),
    Column("kind", String(8), nullable=False, server_default="job"),
    Column("sweep_id", String(32), ForeignKey("jobs.id")),  # of a trial
    Column("number", Integer),  # of a trial, in its sweep
    Column("part", JSON(none_as_null=True)),  # of a trial: what it has from its sweep
    Column("asked", JSON(none_as_null=True)),  # of a sweep that was extended: its spec as it was submitted
    Column("last_event", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Index("jobs_by_age", "kind", "created_at", "id"),
    Index("jobs_by_state", "state", "created_at", "id"),
    Index("jobs_by_name", "kind", "name", "created_at", "id"),
    Index("trials_by_number", "sweep_id", "number", unique=True),
    Index("jobs_by_bundle", "bundle"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    Index("events_by_kind", "job_id", "kind", "seq"),
    sqlite_with_rowid=False,
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("ends_at", Double, nullable=False),  # seconds since 1970 by the database's own clock
)


def open_engine(url: str) -> Engine:
    """Return an engine; connections are made when they are used.

    On SQLite, transactions start with the option ``writes`` as ``BEGIN IMMEDIATE``: one writer at a time, and none
    that has to give up half-way because another one was faster.

    Raises:
        ValueError: If the URL is not one of SQLite or PostgreSQL, or the package for that is missing.
    """
    parsed = _parse(url)
    common: dict[str, Any] = {"json_serializer": to_json, "hide_parameters": True}
    if parsed.get_backend_name() == "postgresql":
        driver = parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed
        try:
            return create_engine(driver, connect_args=_postgres_arguments(parsed), **POSTGRES_POOL, **common)
        except ModuleNotFoundError as error:
            sentence = f"PostgreSQL needs the package {error.name}; install it with pip install 'sampa[postgres]'"
            raise ValueError(sentence) from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ValueError(f"the store URL {show_url(parsed)} is neither {' nor '.join(URL_FORMS)}")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_S}, pool_size=8, max_overflow=32, **common)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def has_password(url: str) -> bool:
    """Say whether whoever reads this store URL learns a password."""
    parsed = _parse(url)
    return parsed.password is not None or "password" in parsed.query


def show_url(url: URL) -> str:
    """Return a store URL as logs and errors may show it: its query can hold a password too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    """Return the parts of a URL. What can't be read isn't repeated, since any part of it may be of a password."""
    parsed = None
    with suppress(ArgumentError, ValueError):
        parsed = make_url(url)
    if parsed is None or "@" in (parsed.host or ""):
        raise ValueError(
            f"the store URL can't be read; it is {' or '.join(URL_FORMS)}, with %40 for an @ in the password"
        )
    return parsed


def _postgres_arguments(url: URL) -> dict[str, Any]:
    """Return what connections are made with, beside what the URL says itself, which wins."""
    limits = " ".join(f"-c {name}={value}" for name, value in POSTGRES_LIMITS.items())
    own = {name: value for name, value in POSTGRES_CONNECTION.items() if name not in url.query}
    return {**own, "options": f"{limits} {url.query.get('options', '')}".strip()}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin_sqlite
    _enter_wal(connection)
    # In write-ahead mode NORMAL survives the death of a process (kill -9) and never corrupts; only a power cut can lose
    # the last transactions. FULL would cost one fsync for each append.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead mode; SQLite's own waiting doesn't cover two processes that switch a new file at once."""
    deadline = time.monotonic() + BUSY_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def to_json(value: Any) -> str:
    """Return compact JSON; a number that is not finite becomes null, since JSON has no word for it."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
