"""The reference tables, and their capture. ROWCAST_REFERENCE_TABLES=off leaves tables of these names alone."""

import sqlalchemy as sa
from rowcast.schema import create, execute, exists, refuse_existing, wants_reference_tables
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("project", "session", "request", "job", "job_step", "message")
CAPTURED = ("request", "job", "job_step", "message")


def table(name: str, *columns: sa.schema.SchemaItem) -> None:
    now = sa.text("now()")
    op.create_table(
        name,
        sa.Column("id", sa.Uuid, server_default=sa.text("gen_random_uuid()"), nullable=False),
        *columns,
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=now, nullable=False),
        sa.Column("updated_at", TIMESTAMP(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"{name}_pkey"),
    )


def reference(table: str, column: str, target: str, on_delete: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"{table}_{column}_fkey", ondelete=on_delete)


def one_of(table: str, column: str, *values: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=op.f(f"{table}_{column}_check"))


def upgrade() -> None:
    if not wants_reference_tables():
        return
    refuse_existing(*TABLES)
    table("project", sa.Column("name", sa.Text, server_default="", nullable=False))
    table(
        "session",
        sa.Column("project_id", sa.Uuid),
        sa.Column("owner_id", sa.Text),
        reference("session", "project_id", "project", "SET NULL"),
    )
    table(
        "request",
        sa.Column("session_id", sa.Uuid, nullable=False),
        sa.Column("sequence_number", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("status", sa.Text, server_default="pending", nullable=False),
        sa.Column("request", sa.Text),
        sa.Column("response", sa.Text),
        sa.Column("error", sa.Text),
        reference("request", "session_id", "session", "CASCADE"),
        one_of("request", "status", "pending", "in_progress", "done", "error"),
    )
    table(
        "job",
        sa.Column("kind", sa.Text, server_default="task", nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("session_id", sa.Uuid),
        sa.Column("project_id", sa.Uuid),
        sa.Column("status", sa.Text, server_default="pending", nullable=False),
        sa.Column("stage", sa.Text),
        sa.Column("progress", sa.REAL, server_default="0", nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("result", JSONB),
        sa.Column("error", sa.Text),
        sa.Column("cancel_requested_at", TIMESTAMP(timezone=True)),
        reference("job", "session_id", "session", "CASCADE"),
        reference("job", "project_id", "project", "CASCADE"),
        one_of("job", "kind", "ingest", "agent", "workflow", "task"),
        one_of("job", "status", "pending", "running", "processing", "completed", "failed", "cancelled"),
        sa.CheckConstraint("progress >= 0 AND progress <= 100", name=op.f("job_progress_check")),
    )
    table(
        "job_step",
        sa.Column("job_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, server_default="", nullable=False),
        sa.Column("sequence_number", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("status", sa.Text, server_default="pending", nullable=False),
        sa.Column("state", JSONB),
        sa.Column("error", sa.Text),
        reference("job_step", "job_id", "job", "CASCADE"),
        one_of("job_step", "status", "pending", "running", "processing", "completed", "failed", "cancelled"),
    )
    table(
        "message",
        sa.Column("session_id", sa.Uuid, nullable=False),
        sa.Column("job_id", sa.Uuid),
        sa.Column("role", sa.Text, server_default="assistant", nullable=False),
        sa.Column("status", sa.Text, server_default="streaming", nullable=False),
        sa.Column("text", sa.Text, server_default="", nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'"), nullable=False),
        reference("message", "session_id", "session", "CASCADE"),
        reference("message", "job_id", "job", "SET NULL"),
        one_of("message", "status", "pending", "streaming", "completed", "failed"),
    )
    op.create_index("session_project_id_idx", "session", ["project_id"])
    op.create_index("session_owner_id_idx", "session", ["owner_id"])
    op.create_index("idx_request_session_updated", "request", ["session_id", "updated_at"])
    op.create_index("job_session_id_idx", "job", ["session_id"])
    op.create_index("job_project_id_idx", "job", ["project_id"])
    op.create_index("job_step_job_id_idx", "job_step", ["job_id"])
    op.create_index("message_session_id_created_at_idx", "message", ["session_id", "created_at"])
    op.create_index("message_job_id_idx", "message", ["job_id"])
    for name in TABLES:
        execute(f"CREATE TRIGGER rowcast_touch BEFORE UPDATE ON public.{name} FOR EACH ROW EXECUTE FUNCTION rowcast.touch()")
    for name in CAPTURED:
        create(f"{name}_event_v01")
        create("capture_v01", table=name)
        execute(
            f"GRANT EXECUTE ON FUNCTION rowcast.{name}_event TO rowcast_owner",
            f"ALTER FUNCTION rowcast.capture_{name} OWNER TO rowcast_owner",
            f"SELECT rowcast.attach('public.{name}', 'rowcast.capture_{name}')",
        )
    execute("GRANT SELECT ON public.session, public.job TO rowcast_owner")
    for name in ("session", "job"):  # so that row security, switched on one day, does not hide who follows
        execute(f"CREATE POLICY rowcast_capture ON public.{name} FOR SELECT TO rowcast_owner USING (true)")


def downgrade() -> None:
    if not exists("rowcast.capture_message()"):
        return  # the tables of these names are somebody else's
    for name in reversed(CAPTURED):
        execute(f"DROP FUNCTION rowcast.capture_{name} CASCADE", f"DROP FUNCTION rowcast.{name}_event")
    for name in reversed(TABLES):
        op.drop_table(name)
