"""Rows that a program holds: leases and fences, functions to write with, and the end of what nobody holds any more."""

import sqlalchemy as sa
from rowcast.schema import create, execute, exists
from sqlalchemy.dialects.postgresql import TIMESTAMP

from alembic import op

revision = "0007"
down_revision = "0006"

COLUMNS = {
    "fence": sa.Uuid,
    "revision": sa.BigInteger,
    "lease_expires_at": TIMESTAMP(timezone=True),
}
LEASED = {"message": tuple(COLUMNS), "job": tuple(COLUMNS), "request": ("fence", "lease_expires_at")}

# In the order in which they need each other; a name in schema rowcast, its file, and its arguments.
PRIVATE = {
    "refuse": "text, text",
    "check_writes": "jsonb, text[], text[]",
    "renewed": "timestamptz, interval, timestamptz",
    "hold_steps": "uuid",
    "end_steps": "uuid[]",
}
BATCHES = {
    "message_write": "jsonb, interval, boolean",
    "job_write": "jsonb, interval, boolean",
    "job_step_write": "jsonb, boolean",
    "request_write": "jsonb, interval, boolean",
}
STARTS = {
    "message_start": "uuid, text, uuid, text, jsonb, interval, uuid, uuid",
    "job_start": "text, uuid, uuid, text, interval, uuid, uuid",
    "request_start": "uuid, text, interval, uuid, uuid",
}
ONE_ROW = {
    "settled": "text, uuid, text, text",
    "change_message": "jsonb, interval",
    "change_job": "jsonb, interval",
    "change_request": "jsonb",
    "message_append": "uuid, text, uuid, interval",
    "message_replace": "uuid, text, uuid, interval",
    "message_complete": "uuid, text, jsonb, uuid",
    "message_fail": "uuid, text, jsonb, uuid",
    "job_progress": "uuid, real, text, text, uuid, interval",
    "job_complete": "uuid, jsonb, uuid",
    "job_fail": "uuid, text, uuid",
    "job_stop": "uuid, uuid",
    "request_done": "uuid, text, uuid",
    "request_fail": "uuid, text, uuid",
}
FOR_WRITERS = {**PRIVATE, **BATCHES, **STARTS, **ONE_ROW}
REAPING = {
    "reap_messages": "integer, integer",
    "reap_jobs": "integer, integer",
    "reap_requests": "integer, integer",
    "reap_table": "text, integer",
    "reap": "integer",
}
STEPS = ("hold_steps(uuid)", "end_steps(uuid[])")

# What the reaper writes, as rowcast_owner.
REAPED = {
    "message": "status, metadata, fence, lease_expires_at",
    "job": "status, error, fence, lease_expires_at",
    "job_step": "status, error",
    "request": "status, error, fence, lease_expires_at",
}
POLICIES = ("message", "job_step", "request")
"""Of job there is one already, of 0004."""


def signatures(functions: dict[str, str]) -> list[str]:
    return [f"rowcast.{name}({arguments})" for name, arguments in functions.items()]


def upgrade() -> None:
    if not exists("rowcast.capture_message()"):
        return  # the tables of these names are somebody else's
    hold_writers()
    add_columns()
    create("writer_role_v01", *(f"{name}_v01" for name in FOR_WRITERS))
    let_writers_in()
    create_reaper()


def let_writers_in() -> None:
    execute(
        "GRANT USAGE ON SCHEMA rowcast TO rowcast_writer",
        "GRANT SELECT, INSERT, UPDATE ON public.message, public.job, public.job_step, public.request TO rowcast_writer",
        # They run with the rights of whoever calls, so those that they call are the writer's too.
        *(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in signatures(FOR_WRITERS)),
        *(f"GRANT EXECUTE ON FUNCTION {function} TO rowcast_writer" for function in signatures(FOR_WRITERS)),
    )


def downgrade() -> None:
    if not exists("rowcast.capture_message()"):
        return
    hold_writers()
    execute(
        *(f"DROP FUNCTION {function}" for function in reversed(signatures({**FOR_WRITERS, **REAPING}))),
        *(f"DROP POLICY rowcast_reap ON public.{table}" for table in POLICIES),
        *(f"REVOKE UPDATE ({columns}) ON public.{table} FROM rowcast_owner" for table, columns in REAPED.items()),
    )
    create("drop_writer_role_v01")
    for table, columns in LEASED.items():
        for name in columns:
            op.drop_column(table, name)


def create_reaper() -> None:
    create(*(f"{name}_v01" for name in REAPING))
    execute(
        *(f"GRANT UPDATE ({columns}) ON public.{table} TO rowcast_owner" for table, columns in REAPED.items()),
        # As in 0002: row security, switched on one day, hides nothing from it.
        *(f"CREATE POLICY rowcast_reap ON public.{table} FOR UPDATE TO rowcast_owner USING (true)" for table in POLICIES),
        *(f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO rowcast_owner" for function in STEPS),
        *(f"ALTER FUNCTION {function} OWNER TO rowcast_owner" for function in signatures(REAPING)),
        *(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in signatures(REAPING)),
        "GRANT EXECUTE ON FUNCTION rowcast.reap(integer) TO rowcast_hub",
    )


def add_columns() -> None:
    """Empty ones: no row is rewritten. Nobody follows them."""
    for table, columns in LEASED.items():
        for name in columns:
            op.add_column(table, sa.Column(name, COLUMNS[name]))
        where = sa.text("lease_expires_at IS NOT NULL")
        op.create_index(f"{table}_lease_expires_at_idx", table, ["lease_expires_at"], postgresql_where=where)


def hold_writers() -> None:
    """As in 0004: together and at once, and given up long before waiting for each other could fail a writer."""
    execute(
        "SET LOCAL lock_timeout = '200ms'",
        "LOCK TABLE public.request, public.job, public.job_step, public.message IN ACCESS EXCLUSIVE MODE",
    )
