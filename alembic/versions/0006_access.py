"""Who may see what: a channel of the hub's own, revocations, tickets, members of projects."""

import sqlalchemy as sa
from rowcast.schema import create, execute, exists, refuse_existing
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from alembic import op

revision = "0006"
down_revision = "0005"

TABLES = {"secret": "SELECT", "revocation": "SELECT", "ticket": "SELECT, INSERT, DELETE"}
"""What the hub may do with each. Nobody else may anything."""

REVOKING = ("revoke(text, text, text)", "recheck(text)")
BELONGINGS = "belongings(text, text[], text[])"
ACCESS_OF = ("access_of(public.session)", "access_of(public.project_member)")

# Collations for which 'Ann' and 'ann' are the same say nothing about whose a session is.
# Not only UPDATE OF these columns: a trigger of the user's own may set them whatever the statement names.
ON_SESSION = """AFTER UPDATE ON public.session FOR EACH ROW
    WHEN (OLD.id IS DISTINCT FROM NEW.id OR OLD.project_id IS DISTINCT FROM NEW.project_id
          OR OLD.owner_id COLLATE "C" IS DISTINCT FROM NEW.owner_id COLLATE "C")"""
ON_MEMBER = """AFTER UPDATE ON public.project_member FOR EACH ROW
    WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id OR OLD.user_id COLLATE "C" IS DISTINCT FROM NEW.user_id COLLATE "C")"""


def upgrade() -> None:
    hold_sequencers()
    create_tables()
    create("sequence_v03", "is_frame_v02", "check_id_v01", "revoke_v01", "recheck_v01")
    execute("GRANT EXECUTE ON FUNCTION rowcast.check_id(text) TO rowcast_owner")
    for function in REVOKING:
        give(function, "rowcast_hub")
    if not exists("rowcast.capture_message()"):
        return  # the tables of these names are somebody else's
    refuse_existing("project_member", "project_member_pkey", "project_member_user_id_idx", way_out="rename them, for Rowcast has its own")
    hold_writers()
    create_members()
    create("belongings_v01")
    give(BELONGINGS, "rowcast_hub")
    create_triggers()


def downgrade() -> None:
    hold_sequencers()
    if exists("rowcast.capture_message()"):
        hold_writers()
        execute("DROP FUNCTION rowcast.access_changed() CASCADE")  # and its triggers
        execute(*(f"DROP FUNCTION rowcast.{function}" for function in (BELONGINGS, *ACCESS_OF)))
        execute("DROP POLICY rowcast_access ON public.project", "REVOKE SELECT (id) ON public.project FROM rowcast_owner")
        op.drop_table("project_member")
    execute(*(f"DROP FUNCTION rowcast.{function}" for function in (*REVOKING, "check_id(text)")))
    create("is_frame_v01", "sequence_v02")
    for name in TABLES:
        op.drop_table(name, schema="rowcast")


def create_tables() -> None:
    op.create_table(
        "secret", sa.Column("channel", sa.Text, nullable=False), sa.PrimaryKeyConstraint("channel", name="secret_pkey"), schema="rowcast"
    )
    op.create_table(
        "revocation",
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("what", name="revocation_pkey"),
        schema="rowcast",
    )
    op.create_table(
        "ticket",
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("claims", JSONB, nullable=False),
        sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="ticket_pkey"),
        schema="rowcast",
        prefixes=["UNLOGGED"],  # after a crash it is empty, so that none is taken twice
    )
    op.create_index("ticket_expires_at_idx", "ticket", ["expires_at"], schema="rowcast")
    execute("INSERT INTO rowcast.secret (channel) VALUES ('rowcast_' || replace(gen_random_uuid()::text, '-', ''))")
    for table, rights in TABLES.items():
        create("only_owner_v01", table=table)
        execute(f"ALTER TABLE rowcast.{table} OWNER TO rowcast_owner", f"GRANT {rights} ON rowcast.{table} TO rowcast_hub")


def create_members() -> None:
    op.create_table(
        "project_member",
        sa.Column("project_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="project_member_project_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "user_id", name="project_member_pkey"),
    )
    op.create_index("project_member_user_id_idx", "project_member", ["user_id"])
    execute("GRANT SELECT ON public.project_member TO rowcast_owner", "GRANT SELECT (id) ON public.project TO rowcast_owner")
    for name in ("project", "project_member"):  # as in 0002: row security, switched on one day, hides nothing from it
        execute(f"CREATE POLICY rowcast_access ON public.{name} FOR SELECT TO rowcast_owner USING (true)")


def create_triggers() -> None:
    create("access_of_session_v01", "access_of_member_v01", "access_changed_v01")
    execute(
        *(f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO rowcast_owner" for function in ACCESS_OF),
        f"CREATE TRIGGER rowcast_access_update {ON_SESSION} EXECUTE FUNCTION rowcast.access_changed()",
        f"CREATE TRIGGER rowcast_access_update {ON_MEMBER} EXECUTE FUNCTION rowcast.access_changed()",
        *(
            f"CREATE TRIGGER rowcast_access_delete AFTER DELETE ON public.{name} FOR EACH ROW EXECUTE FUNCTION rowcast.access_changed()"
            for name in ("session", "project_member")
        ),
        "ALTER FUNCTION rowcast.access_changed() OWNER TO rowcast_owner",
        "REVOKE EXECUTE ON FUNCTION rowcast.access_changed() FROM PUBLIC",
    )


def give(function: str, roles: str) -> None:
    execute(
        f"ALTER FUNCTION rowcast.{function} OWNER TO rowcast_owner",
        f"REVOKE EXECUTE ON FUNCTION rowcast.{function} FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION rowcast.{function} TO {roles}",
    )


def hold_sequencers() -> None:
    """As in 0004. A call of sequence() that waits goes on with the text that it began with, once."""
    execute("SELECT pg_advisory_xact_lock(7499639, 3), pg_advisory_xact_lock(7499639, 4)")


def hold_writers() -> None:
    """As in 0004: together and at once, and given up long before waiting for each other could fail a writer."""
    execute("SET LOCAL lock_timeout = '200ms'", "LOCK TABLE public.project, public.session IN ACCESS EXCLUSIVE MODE")
