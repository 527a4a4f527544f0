"""Who reconciles, and since when Ray hasn't been heard of. There is no way back."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    leases = op.create_table(
        "leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
    )
    op.bulk_insert(leases, [{"name": "reconciler", "holder": "", "ends_at": 0.0}])
    op.add_column("jobs", sa.Column("interrupted_at", sa.String(32)))
