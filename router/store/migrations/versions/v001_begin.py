"""Keys, leases, replicas, changes."""

import sqlalchemy as sa
from alembic import op

revision = "001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "keys",
        sa.Column("mac", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=True),
        sa.Column("revoked", sa.Float, nullable=True),
    )
    op.create_index("ix_keys_id", "keys", ["id"])
    op.create_table(
        "leases",
        sa.Column("counter", sa.String(200), primary_key=True),
        sa.Column("replica", sa.String(64), primary_key=True),
        sa.Column("granted", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table("replicas", sa.Column("id", sa.String(64), primary_key=True), sa.Column("seen", sa.Float, nullable=False))
    op.create_table(
        "changes", sa.Column("name", sa.String(32), primary_key=True), sa.Column("version", sa.Integer, nullable=False)
    )


def downgrade() -> None:
    """Remove them."""
    for table in ("changes", "replicas", "leases", "keys"):
        op.drop_table(table)
