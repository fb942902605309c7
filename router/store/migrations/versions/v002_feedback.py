"""What feedback has taught, and which ratings have been counted."""

import sqlalchemy as sa
from alembic import op

revision = "002"
down_revision = "001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "feedback",
        sa.Column("setting", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("context", sa.String(96), primary_key=True),
        sa.Column("tier", sa.Integer, primary_key=True),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("total", sa.Float, nullable=False),
    )
    op.create_table("rated", sa.Column("slot", sa.String(32), primary_key=True), sa.Column("at", sa.Float, nullable=False))


def downgrade() -> None:
    """Remove them."""
    for table in ("rated", "feedback"):
        op.drop_table(table)
