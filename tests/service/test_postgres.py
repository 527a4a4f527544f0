"""What is particular to PostgreSQL: waits with deadlines, connections that break, passwords that nobody sees."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from sampa.service import tables
from sampa.service.records import StoreTooNew
from sampa.service.states import State
from sampa.service.store import Store, StoreUnavailable
from sqlalchemy import Engine, make_url, text

from ..postgres import Postgres, fresh_place, running_postgres
from .samples import spec_of, submitted, wait_until


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    store = Store(postgres_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def other(postgres_url: str) -> Iterator[Engine]:
    """Connections of someone else."""
    engine = tables.open_engine(postgres_url)
    yield engine
    engine.dispose()


class TestDeadlines:
    def test_each_connection_has_them(self, other: Engine) -> None:
        with other.connect() as connection:
            shown = {name: connection.scalar(text(f"SHOW {name}")) for name in tables.POSTGRES_LIMITS}
            assert shown == {**tables.POSTGRES_LIMITS, "idle_in_transaction_session_timeout": "1min"}
            assert connection.scalar(text("SHOW application_name")) == "sampa"

    def test_the_url_may_say_otherwise(self, postgres_url: str) -> None:
        more = {"options": "-c lock_timeout=7s -c work_mem=8MB", "application_name": "mine"}
        url = make_url(postgres_url).update_query_dict(more).render_as_string(hide_password=False)
        engine = tables.open_engine(url)
        with engine.connect() as connection:
            names = ("lock_timeout", "work_mem", "statement_timeout", "application_name")
            shown = [connection.scalar(text(f"SHOW {name}")) for name in names]
        engine.dispose()
        assert shown == ["7s", "8MB", tables.POSTGRES_LIMITS["statement_timeout"], "mine"]

    @pytest.mark.parametrize(
        ("limit", "held", "wait"),
        [
            ("lock_timeout", "SELECT 1 FROM jobs FOR UPDATE", lambda store, job_id: store.cancel(job_id)),
            ("lock_timeout", "SELECT pg_advisory_xact_lock(7265401)", lambda store, _: store.claim(1)),
            ("statement_timeout", "LOCK TABLE jobs", lambda store, job_id: store.job(job_id)),
        ],
    )
    def test_a_wait_for_another_transaction_ends(  # type: ignore[no-untyped-def]
        self, postgres_url: str, other: Engine, monkeypatch: pytest.MonkeyPatch, limit: str, held: str, wait
    ) -> None:
        monkeypatch.setitem(tables.POSTGRES_LIMITS, limit, "200ms")
        store = Store(postgres_url)
        store.migrate()
        job_id = submitted(store)
        with other.begin() as connection:
            connection.execute(text(held))
            with pytest.raises(StoreUnavailable, match=r"due to (lock|statement) timeout.*nothing was changed"):
                wait(store, job_id)
        wait(store, job_id)
        store.close()

    def test_a_migration_may_take_longer_than_a_statement(
        self, postgres_url: str, other: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(tables.POSTGRES_LIMITS, "lock_timeout", "50ms")
        store, waiting = (
            Store(postgres_url),
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
        )
        thread = threading.Thread(target=store.migrate)
        with other.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(7265402)"))
            thread.start()
            wait_until(lambda: connection.scalar(text(waiting)) == 1)
            until = time.monotonic() + 0.1
            wait_until(lambda: time.monotonic() > until)
        thread.join(30)
        assert store.reachable()
        store.close()


class TestBrokenConnections:
    def test_one_that_was_cut_is_replaced_unnoticed(self, store: Store, other: Engine) -> None:
        job_id = submitted(store)
        with other.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE usename = current_user AND pid != pg_backend_pid()"
                )
            )
        assert store.job(job_id).state is State.QUEUED

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
    def test_a_restart_is_survived(self, how: signal.Signals) -> None:
        with running_postgres() as server, fresh_place(server) as url:
            store = Store(url)
            store.migrate()
            job_id = submitted(store)
            server.stop(how)
            assert not store.reachable()
            with pytest.raises(StoreUnavailable, match="refused"):
                store.cancel(job_id)
            server.start()
            assert store.cancel(job_id).state is State.CANCELLED
            assert store.reachable()
            store.close()


class TestSecrets:
    """A password is in no log, no error and no address that is shown."""

    def test_where_it_is_asked_for(self, store: Store, postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            store.submit(spec_of())
        assert make_url(store.url).host == "127.0.0.1"
        assert hidden(store.url + caplog.text, postgres)

    @pytest.mark.parametrize("change", [{"password": "wr@ng/word"}, {"host": "127.0.0.2"}, {"database": "nowhere"}])
    def test_where_nothing_answers(self, postgres: Postgres, postgres_url: str, change: dict[str, str]) -> None:
        url = make_url(postgres_url).set(**change).render_as_string(hide_password=False)  # type: ignore[arg-type]
        store = Store(url)
        with pytest.raises(StoreUnavailable) as caught:
            store.migrate()
        told = "".join(traceback.format_exception(caught.value))
        assert hidden(told, postgres)
        assert "wr@ng" not in told
        assert "wr%40ng" not in told
        store.close()

    def test_where_the_layout_is_newer(self, store: Store, postgres: Postgres, other: Engine) -> None:
        with other.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreTooNew) as caught:
            store.migrate()
        assert hidden("".join(traceback.format_exception(caught.value)), postgres)

    def test_where_it_stands_in_the_query(self) -> None:
        store = Store("postgresql://sampa@db/sampa?password=secret&sslmode=require")
        assert store.url == "postgresql+psycopg://sampa@db/sampa"
        store.close()

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://sampa:secret",  # the host is missing, and the password is where a port would be
            "postgresql://sampa:se@secret@db/sampa",
            "postgres:sampa:secret@db",
            "mysql://sampa:secret@db/sampa",
            "secret",
        ],
    )
    def test_where_the_url_is_wrong(self, url: str) -> None:
        with pytest.raises(ValueError, match="the store URL") as caught:
            Store(url)
        assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"needs the package psycopg; install it with pip install 'sampa\[postgres\]'"):
        Store("postgresql://sampa@db/sampa")


def hidden(told: str, postgres: Postgres) -> bool:
    secret = postgres.password.partition("/")[2]  # the part that no quoting changes
    return len(secret) == 16 and secret not in told


def test_without_the_package_a_test_is_skipped_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    with pytest.raises(pytest.skip.Exception, match="apt-get install --yes postgresql"), running_postgres():
        pass
