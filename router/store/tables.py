"""The tables, as SQLAlchemy Core sees them. The migrations make them; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, MetaData, String, Table

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("mac", String(64), primary_key=True),
    Column("id", String(64), nullable=False, index=True),
    Column("tenant", String(64), nullable=False),
    Column("scopes", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=True),
    Column("revoked", Float, nullable=True),
)
"""`mac`: HMAC-SHA256 of the key under the pepper, in hex. `scopes`: JSON. Times are UNIX seconds. A rotated key has two rows."""

leases = Table(
    "leases",
    metadata,
    Column("counter", String(200), primary_key=True),
    Column("replica", String(64), primary_key=True),
    Column("granted", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    Column("expires", Float, nullable=False),
)
"""What each router replica may use of a counter, and what it has used."""

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seen", Float, nullable=False),
)
"""Router replicas and when each was last heard of."""

changes = Table(
    "changes",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("version", Integer, nullable=False),
)
"""A number that grows with every change of a table, so that asking whether there is news is one row."""

feedback = Table(
    "feedback",
    metadata,
    Column("setting", String(32), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("context", String(96), primary_key=True),
    Column("tier", Integer, primary_key=True, autoincrement=False),
    Column("weight", Float, nullable=False),
    Column("total", Float, nullable=False),
)
"""The sums of all ratings. `setting` names the tiers and their models: what was learnt of others says nothing about these."""

rated = Table(
    "rated",
    metadata,
    Column("slot", String(32), primary_key=True),
    Column("at", Float, nullable=False),
)
"""Which ratings are in those sums: a hash of the request's id, so that one that comes to two routers counts once."""
