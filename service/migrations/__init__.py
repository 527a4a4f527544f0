"""The layouts of the store, one after the other, and the step from any of them to the newest."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

from ..records import StoreTooNew
from ..tables import show_url

MIGRATION_LOCK = 7_265_402  # advisory lock of PostgreSQL; any number that is ours alone
MIGRATION_LIMITS = {"lock_timeout": "300s", "statement_timeout": "300s"}  # instead of those of everyday statements


def upgrade(engine: Engine) -> None:
    """Bring the tables to the newest layout, in one transaction of which only one runs at a time.

    On SQLite the transaction must begin as a writer's (see ``tables.open_engine``); on PostgreSQL an advisory lock is
    taken.

    Raises:
        StoreTooNew: If the store has a layout that this version doesn't know.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            for name, value in MIGRATION_LIMITS.items():
                connection.execute(text(f"SET LOCAL {name} = '{value}'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            revision = str(connection.scalar(text("SELECT version_num FROM alembic_version")))
            raise StoreTooNew(show_url(engine.url), revision) from error
