"""The migrations lead to the tables that the store uses."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sampa.service import migrations
from sampa.service.records import StoreTooNew
from sampa.service.states import State
from sampa.service.store import Store
from sampa.service.tables import metadata, open_engine
from sqlalchemy import create_engine, make_url, text

from .samples import spec_of

TIME = "2026-01-01T00:00:00.000000+00:00"
OLD = {
    "id": "old",
    "name": "sample",
    "state": "PAUSED",
    "reason": "",
    "spec": spec_of().model_dump_json(by_alias=True),
    "attempt": 1,
    "restarts": 0,
    "losses": 0,
    "launched": True,
    "created_at": TIME,
    "updated_at": TIME,
    "progress": "{}",
    "last_event": 0,
    "version": 1,
}


def test_the_migrated_tables_are_those_of_the_code(store: Store, store_url: str) -> None:
    engine = open_engine(store_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrating_again_changes_nothing(store: Store) -> None:
    job, _ = store.submit(spec_of())
    store.migrate()
    assert store.job(job.id) == job


def test_a_store_of_the_first_version_keeps_its_jobs(store_url: str) -> None:
    engine = open_engine(store_url)
    with engine.execution_options(writes=True).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(f"INSERT INTO jobs ({', '.join(OLD)}) VALUES ({', '.join(map(':{}'.format, OLD))})"), OLD
        )
    engine.dispose()
    store = Store(store_url)
    store.migrate()
    job = store.job("old")
    assert (job.state, job.spec, job.workers, job.wanted_workers) == (State.PAUSED, spec_of(), None, 2)
    assert store.resize("old", 1).workers == 1
    assert [event.kind for event in store.events("old")] == ["resize"]
    assert (job.spec.code, job.spec.bundle, job.sweep_id, job.part) == (None, None, None, None)
    assert [one.id for one in store.jobs()] == ["old"]
    assert store.resume("old").state is State.QUEUED
    assert store.claim(max_running=1) == store.job("old")
    assert store.bundles.drop_unused(datetime.now(UTC)) == 0
    store.close()


def test_a_store_of_a_newer_version_is_left_alone(store: Store, store_url: str) -> None:
    if make_url(store_url).get_backend_name() != "sqlite":
        pytest.skip("one kind is enough")
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreTooNew, match="'9999' of a newer sampa"):
        store.migrate()
