"""The log: outbox, event, head, and the functions that sequence."""

import sqlalchemy as sa
from rowcast.models import XID8, Snapshot
from rowcast.schema import create, execute
from sqlalchemy.dialects.postgresql import JSONB, OID, TIMESTAMP

from alembic import op

revision = "0001"
down_revision = None

FUNCTIONS = ("ring", "touch", "fit", "fit_json", "attach", "is_ours", "span", "bounded", "envelope", "sequence", "adopt", "prune")
FOR_THE_HUB = ("sequence(integer)", "adopt()", "prune(interval, integer)")
FOR_THE_OWNER = (
    "ring()",
    "fit(text)",
    "fit(jsonb)",
    "is_ours(xid, xid8, oid)",
    "span(pg_snapshot, pg_snapshot)",
    "bounded(jsonb)",
    "envelope",
)
TABLES = ("outbox", "event", "head", "epoch", "pruned")


def upgrade() -> None:
    create("roles_v01")
    audience = ("session_id", "project_id", "job_id")
    op.create_table(
        "outbox",
        sa.Column("xid", XID8, server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        *(sa.Column(name, sa.Text) for name in audience),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("xid", "id", name="outbox_pkey"),
        schema="rowcast",
    )
    op.create_table(
        "event",
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("outbox_id", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text) for name in audience),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("position", name="event_pkey"),
        schema="rowcast",
    )
    for name in audience:
        op.create_index(
            f"event_{name}_position_idx", "event", [name, "position"], schema="rowcast", postgresql_where=sa.text(f"{name} IS NOT NULL")
        )
    op.create_table(
        "head",
        sa.Column("batch", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("low", Snapshot, nullable=False),
        sa.Column("high", Snapshot),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("batch", name="head_pkey"),
        schema="rowcast",
    )
    op.create_table(
        "epoch",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("timeline", sa.Text, nullable=False),
        sa.Column("database", OID, nullable=False),
        sa.Column("stamp", XID8, server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="epoch_pkey"),
        schema="rowcast",
    )
    op.create_table(
        "pruned",
        sa.Column("floor", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("low", Snapshot, nullable=False),
        sa.PrimaryKeyConstraint("floor", name="pruned_pkey"),
        schema="rowcast",
    )
    create(*(f"{name}_v01" for name in FUNCTIONS))
    execute(
        # Deleted in bulk, in the order of the key: what matters is that dead rows go soon.
        "ALTER TABLE rowcast.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000)",
        "INSERT INTO rowcast.head (position, low, last_id) VALUES (0, pg_current_snapshot(), 0)",
        "INSERT INTO rowcast.pruned (floor, low) VALUES (0, pg_current_snapshot())",
        """INSERT INTO rowcast.epoch (epoch, start, timeline, database)
           SELECT left(gen_random_uuid()::text, 8), 0, left(pg_walfile_name(pg_current_wal_lsn()), 8), oid
             FROM pg_database WHERE datname = current_database()""",
        # Named, for PUBLIC may have been denied by default.
        *(f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO rowcast_owner" for function in FOR_THE_OWNER),
        "GRANT USAGE ON SCHEMA rowcast TO rowcast_hub, rowcast_owner",
        "GRANT CREATE ON SCHEMA rowcast TO rowcast_owner",
        *(f"ALTER TABLE rowcast.{table} OWNER TO rowcast_owner" for table in TABLES),
        "GRANT SELECT ON rowcast.event, rowcast.head, rowcast.epoch, rowcast.pruned, rowcast.alembic_version TO rowcast_hub",
        *(f"ALTER FUNCTION rowcast.{function} OWNER TO rowcast_owner" for function in FOR_THE_HUB),
        *(f"REVOKE EXECUTE ON FUNCTION rowcast.{function} FROM PUBLIC" for function in FOR_THE_HUB),
        *(f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO rowcast_hub" for function in FOR_THE_HUB),
    )


def downgrade() -> None:
    functions = ("fit(jsonb)" if name == "fit_json" else "fit(text)" if name == "fit" else name for name in reversed(FUNCTIONS))
    execute(*(f"DROP FUNCTION rowcast.{function}" for function in functions))
    for table in TABLES:
        op.drop_table(table, schema="rowcast")
    create("drop_roles_v01")
