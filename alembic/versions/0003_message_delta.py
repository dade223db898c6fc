"""Text that grows is captured for less; a captured table may have columns named n, o or at."""

from rowcast.schema import create, execute, exists

revision = "0003"
down_revision = "0002"

CAPTURED = ("request", "job", "job_step", "message")

# Of one row: the subselect is asked once, before anything is joined.
OFTEN = """INSERT INTO rowcast.outbox (session_id, project_id, job_id, type, payload)
    SELECT e.* FROM old_rows o, new_rows n, rowcast.message_delta(o.*, n.*, change.at) e
     WHERE NOT EXISTS (SELECT FROM new_rows OFFSET 1);"""


def upgrade() -> None:
    if not exists("rowcast.capture_message()"):
        return  # the tables of these names are somebody else's
    create("message_delta_v01")
    execute("GRANT EXECUTE ON FUNCTION rowcast.message_delta TO rowcast_owner")
    for name in CAPTURED:
        create("capture_v02", table=name, often=OFTEN if name == "message" else "")


def downgrade() -> None:
    if not exists("rowcast.capture_message()"):
        return
    for name in CAPTURED:
        create("capture_v01", table=name)
    execute("DROP FUNCTION rowcast.message_delta")
