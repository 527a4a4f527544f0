"""The migrations lead to the tables that the store uses."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sampa.service.records import StoreTooNew
from sampa.service.store import Store
from sampa.service.tables import metadata, open_engine
from sqlalchemy import create_engine, make_url, text

from .samples import spec_of


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


def test_a_store_of_a_newer_version_is_left_alone(store: Store, store_url: str) -> None:
    if make_url(store_url).get_backend_name() != "sqlite":
        pytest.skip("one kind is enough")
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreTooNew, match="'9999' of a newer sampa"):
        store.migrate()
