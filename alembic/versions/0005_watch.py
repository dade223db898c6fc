"""Any table can be watched, and events of one's own emitted."""

from rowcast.schema import create, execute

revision = "0005"
down_revision = "0004"

# In the order in which they need each other; a name in schema rowcast, its file, and its arguments.
FOR_CAPTURE = {
    "same": "record",
    "uncast_columns": "oid",
    "uncast": "record, oid",
    "mended": "record, oid",
    "picture": "record, oid",
    "pictures": "oid, text, text",
    "trimmed": "jsonb",
    "follower": "jsonb, text",
    "row_event": "jsonb, jsonb, text, text[], boolean, text[], text[], timestamptz",
    "picked": "jsonb, text[], text[]",
    "stays": "jsonb, jsonb, text[]",
    "tell_one": "jsonb, jsonb, text, text, text[], text[], text[], text[], timestamptz",
    "trusts": "oid",
    "is_frame": "text",
    "check_channel": "text",
}
FOR_WATCHING = {
    "family": "regclass",
    "check_watchable": "regclass",
    "check_name": "text",
    "check_columns": "regclass, text[], text[]",
    "arguments": "bytea",
    "problems": "regclass, bytea",
}
PUBLIC_FACE = {
    "watch": "regclass, text[], text, text, text, text, text, text",
    "unwatch": "regclass",
    "emit": "text, jsonb, text, text, text, text, text",
}


def signatures(functions: dict[str, str]) -> list[str]:
    return [f"rowcast.{name}({arguments})" for name, arguments in functions.items()]


def upgrade() -> None:
    create(*(f"{name}_v01" for name in FOR_CAPTURE), "capture_any_v01")
    create(*(f"{name}_v01" for name in FOR_WATCHING), "watches_v01", *(f"{name}_v01" for name in PUBLIC_FACE))
    execute(
        # Named, for PUBLIC may have been denied by default.
        *(f"GRANT EXECUTE ON FUNCTION {function} TO rowcast_owner" for function in signatures(FOR_CAPTURE)),
        *(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC" for function in signatures({**FOR_WATCHING, "is_frame": "text"})),
        *(f"ALTER FUNCTION {function} OWNER TO rowcast_owner" for function in ("rowcast.capture()", *signatures(PUBLIC_FACE)[2:])),
        *(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in ("rowcast.capture()", *signatures(PUBLIC_FACE))),
        *(f"GRANT EXECUTE ON FUNCTION {function} TO rowcast_hub" for function in ("rowcast.capture()", *signatures(PUBLIC_FACE))),
        "GRANT SELECT ON rowcast.watches TO PUBLIC",
    )


def downgrade() -> None:
    execute(
        "DROP VIEW rowcast.watches",
        "DROP FUNCTION rowcast.capture() CASCADE",  # and the triggers of all that is watched
        *(f"DROP FUNCTION {function}" for function in reversed(signatures({**FOR_CAPTURE, **FOR_WATCHING, **PUBLIC_FACE}))),
    )
