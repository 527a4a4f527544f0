"""How many workers a job is to have, once it was resized."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("workers", sa.Integer))


def downgrade() -> None:
    op.drop_column("jobs", "workers")
