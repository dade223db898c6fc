"""More ways to follow: by request, by user and by table, and on a channel; state; consumers in SQL."""

import sqlalchemy as sa
from rowcast.schema import create, execute, exists
from sqlalchemy.dialects.postgresql import TIMESTAMP

from alembic import op

revision = "0004"
down_revision = "0003"

COLUMNS = ("request_id", "user_id", "table_name", "channel")
FOLLOWED = COLUMNS[:3]
FUNCTIONS = ("topic_id(text)", "is_channel(text)", "notify(rowcast.event)")
CAPTURED = ("request", "job", "job_step", "message")
STATE = ("session_state(text, integer)", "job_state(text)", "cancel(text)")
CONSUMERS = ("pending(text, integer)", "ack(text, bigint)", "forget(text)")
READABLE = ("event", "head", "epoch", "pruned", "subscription")

OFTEN = """INSERT INTO rowcast.outbox ({columns})
    SELECT e.* FROM old_rows o, new_rows n, rowcast.message_delta(o.*, n.*, change.at) e
     WHERE NOT EXISTS (SELECT FROM new_rows OFFSET 1);"""
BEFORE = OFTEN.format(columns="session_id, project_id, job_id, type, payload")
AFTER = OFTEN.format(columns="session_id, project_id, job_id, request_id, user_id, channel, type, payload")


def upgrade() -> None:
    hold_sequencers()
    add_columns("event")
    for name in FOLLOWED:
        op.create_index(
            f"event_{name}_position_idx", "event", [name, "position"], schema="rowcast", postgresql_where=sa.text(f"{name} IS NOT NULL")
        )
    hold_writers()
    add_columns("outbox")
    create("topic_id_v01", "is_channel_v01", "notify_v01", "envelope_v02", "sequence_v02", "prune_v02", "adopt_v02", "fit_json_v02")
    execute(*(f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO rowcast_owner" for function in FUNCTIONS))
    create_consumers()
    if not exists("rowcast.capture_message()"):
        return  # the tables of these names are somebody else's
    for name in CAPTURED:
        create(f"{name}_noun_v01")
        execute(f"GRANT EXECUTE ON FUNCTION rowcast.{name}_noun TO rowcast_owner")
    replace_events("v02")
    for name in CAPTURED:
        create("capture_v03", table=name, often=AFTER if name == "message" else "")
    create_state()


def downgrade() -> None:
    """No event is lost: one that only a request, a user or a table names stays in the log, and reaches no stream."""
    hold_sequencers()
    hold_writers()
    if exists("rowcast.capture_message()"):
        drop_state()
        replace_events("v01")
        for name in CAPTURED:
            create("capture_v02", table=name, often=BEFORE if name == "message" else "")
            execute(f"DROP FUNCTION rowcast.{name}_noun")
    drop_consumers()
    create("fit_json_v01", "adopt_v01", "prune_v01", "sequence_v01", "envelope_v01")
    execute(*(f"DROP FUNCTION rowcast.{function}" for function in reversed(FUNCTIONS)))
    for table in ("outbox", "event"):
        for name in COLUMNS:
            op.drop_column(table, name, schema="rowcast")


def add_columns(table: str) -> None:
    """Empty ones: no row is rewritten."""
    for name in COLUMNS:
        op.add_column(table, sa.Column(name, sa.Text), schema="rowcast")


def replace_events(version: str) -> None:
    """What a function returns is changed by making it anew."""
    for name in (*(f"{table}_event" for table in CAPTURED), "message_delta"):
        execute(f"DROP FUNCTION rowcast.{name}")
        create(f"{name}_{version}")
        execute(f"GRANT EXECUTE ON FUNCTION rowcast.{name} TO rowcast_owner")


def create_state() -> None:
    create("as_uuid_v01", "session_state_v01", "job_state_v01", "cancel_v01")
    execute(
        "GRANT EXECUTE ON FUNCTION rowcast.as_uuid(text) TO rowcast_owner",
        "GRANT SELECT ON public.request, public.job_step, public.message TO rowcast_owner",
        "GRANT UPDATE (cancel_requested_at) ON public.job TO rowcast_owner",
        # As in 0002: row security, switched on one day, hides nothing from them.
        *(f"CREATE POLICY rowcast_state ON public.{name} FOR SELECT TO rowcast_owner USING (true)" for name in CAPTURED if name != "job"),
        "CREATE POLICY rowcast_cancel ON public.job FOR UPDATE TO rowcast_owner USING (true)",
    )
    for function in STATE:
        give(function, "rowcast_hub")


def drop_state() -> None:
    execute(
        *(f"DROP FUNCTION rowcast.{function}" for function in (*STATE, "as_uuid(text)")),
        "DROP POLICY rowcast_cancel ON public.job",
        *(f"DROP POLICY rowcast_state ON public.{name}" for name in CAPTURED if name != "job"),
        "REVOKE UPDATE (cancel_requested_at) ON public.job FROM rowcast_owner",
        "REVOKE SELECT ON public.request, public.job_step, public.message FROM rowcast_owner",
    )


def create_consumers() -> None:
    create("reader_role_v01")
    op.create_table(
        "subscription",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("updated_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name="subscription_pkey"),
        schema="rowcast",
    )
    create("pending_v01", "ack_v01", "forget_v01")
    execute(
        "ALTER TABLE rowcast.subscription OWNER TO rowcast_owner",
        "GRANT USAGE ON SCHEMA rowcast TO rowcast_reader",
        *(f"GRANT SELECT ON rowcast.{table} TO rowcast_reader" for table in READABLE),
        "GRANT SELECT ON rowcast.subscription TO rowcast_hub",
    )
    for function in CONSUMERS:
        give(function, "rowcast_reader, rowcast_hub")


def drop_consumers() -> None:
    execute(*(f"DROP FUNCTION rowcast.{function}" for function in CONSUMERS))
    op.drop_table("subscription", schema="rowcast")
    create("drop_reader_role_v01")


def give(function: str, roles: str) -> None:
    execute(
        f"ALTER FUNCTION rowcast.{function} OWNER TO rowcast_owner",
        f"REVOKE EXECUTE ON FUNCTION rowcast.{function} FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO {roles}",
    )


def hold_sequencers() -> None:
    """sequence() and adopt() wait for the end of the migration, prune() passes; none of them holds a table that we want."""
    execute("SELECT pg_advisory_xact_lock(7499639, 3), pg_advisory_xact_lock(7499639, 4)")


def hold_writers() -> None:
    """Writers wait before their capture has begun: one that is under way would meet columns and functions that it does
    not know, and fail. So that waiting for each other never fails a writer either, we give up long before PostgreSQL
    looks for deadlocks (1 s), and are tried again."""
    execute("SET LOCAL lock_timeout = '200ms'")
    for name in CAPTURED if exists("rowcast.capture_message()") else ():
        execute(f"LOCK TABLE public.{name} IN ACCESS EXCLUSIVE MODE")
    execute("LOCK TABLE rowcast.outbox IN ACCESS EXCLUSIVE MODE")
