"""Sweeps and their trials, which lie beside the jobs: all three have the same life. There is no way back."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(8), nullable=False, server_default="job"))
    # in one statement, since SQLite adds no constraint to a column that is there
    op.execute("ALTER TABLE jobs ADD COLUMN sweep_id VARCHAR(32) REFERENCES jobs (id)")
    op.add_column("jobs", sa.Column("number", sa.Integer))
    op.add_column("jobs", sa.Column("part", sa.JSON))
    op.add_column("jobs", sa.Column("asked", sa.JSON))
    op.create_index("trials_by_number", "jobs", ["sweep_id", "number"], unique=True)
    for name, columns in (("jobs_by_age", []), ("jobs_by_name", ["name"])):
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", ["kind", *columns, "created_at", "id"])
