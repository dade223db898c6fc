"""What `rowcast doctor` looks at."""

from dataclasses import dataclass

from . import schema
from .database import Connection, connected
from .errors import SchemaMismatch

OLDEST_SERVER = 140000
CAPTURED = ("request", "job", "job_step", "message")
CONSUMERS_SINCE, ACCESS_SINCE = 4, 6
"""The version of the schema that has them."""
ACCESS = [f"{table}.rowcast_access_{what}" for table in ("session", "project_member") for what in ("update", "delete")]
FUNCTIONS = ("ring", "touch", "fit", *(f"{table}_event" for table in CAPTURED))


@dataclass(frozen=True, slots=True)
class Finding:
    ok: bool
    text: str


async def examine(url: str) -> list[Finding]:
    async with connected(url, "rowcast doctor") as connection:
        findings = [await _server(connection), await _encoding(connection), await _recovery(connection)]
        try:
            await schema.check(connection)
        except SchemaMismatch as error:
            return [*findings, Finding(False, f"schema: {error}")]
        found, latest = await schema.version(connection) or 0, schema.latest()
        behind = "" if found >= latest else f", this Rowcast knows {latest}: run `rowcast migrate up`"
        findings.append(Finding(not behind, f"schema: version {found}{behind}"))
        findings += [*await _triggers(connection, found), *await _watches(connection), *await _roles(connection), await _log(connection)]
        return [*findings, *(await _consumers(connection) if found >= CONSUMERS_SINCE else [])]


async def _server(connection: Connection) -> Finding:
    number = int(await connection.fetchval("SHOW server_version_num"))
    version = await connection.fetchval("SHOW server_version")
    return Finding(
        number >= OLDEST_SERVER, f"server: PostgreSQL {version}" + ("" if number >= OLDEST_SERVER else ", Rowcast needs 14 or later")
    )


async def _encoding(connection: Connection) -> Finding:
    encoding = await connection.fetchval("SHOW server_encoding")
    return Finding(encoding == "UTF8", f"encoding: {encoding}" + ("" if encoding == "UTF8" else "; payloads need a UTF8 database"))


async def _recovery(connection: Connection) -> Finding:
    standby = await connection.fetchval("SELECT pg_is_in_recovery()")
    return Finding(not standby, "role: a standby, which cannot LISTEN" if standby else "role: primary")


async def _triggers(connection: Connection, version: int) -> list[Finding]:
    if await connection.fetchval("SELECT to_regprocedure('rowcast.capture_message()')") is None:
        return [Finding(True, "triggers: none, the reference tables are off")]
    rows = await connection.fetch(
        """SELECT c.relname || '.' || t.tgname AS name, t.tgenabled = 'O' AS enabled
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE t.tgname LIKE 'rowcast\\_%' AND c.relnamespace = 'public'::regnamespace"""
    )
    states = {row["name"]: row["enabled"] for row in rows}
    wanted = [f"{table}.rowcast_{what}" for table in CAPTURED for what in ("insert", "update", "delete", "touch")]
    access = ACCESS if version >= ACCESS_SINCE else []
    wrong = [f"{name} is {_state(name, states)}; changes are not seen" for name in wanted if not states.get(name)]
    wrong += [f"{name} is {_state(name, states)}; whoever loses access goes on reading" for name in access if not states.get(name)]
    there = await connection.fetchval("SELECT array_agg(proname::text) FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace")
    wrong += [f"their function rowcast.{name} is missing; changes are not seen" for name in FUNCTIONS if name not in there]
    return [Finding(False, f"triggers: {text}") for text in wrong] or [Finding(True, f"triggers: {len(wanted + access)} in place")]


def _state(name: str, states: dict[str, bool]) -> str:
    return "disabled" if name in states else "missing"


async def _watches(connection: Connection) -> list[Finding]:
    if await connection.fetchval("SELECT to_regclass('rowcast.watches')") is None:
        return []  # a schema one version older
    rows = await connection.fetch("SELECT target::text, name, problems FROM rowcast.watches ORDER BY name, target::text")
    return [
        Finding(not row["problems"], f"watch {row['name']}: " + ("; ".join(row["problems"]) or f"{row['target']} in place")) for row in rows
    ]


async def _roles(connection: Connection) -> list[Finding]:
    findings = []
    row = await connection.fetchrow("SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = 'rowcast_owner'")
    if row is None:
        findings.append(Finding(False, "roles: rowcast_owner is missing"))
    else:
        harmless = not (row["rolcanlogin"] or row["rolsuper"])
        findings.append(
            Finding(
                harmless, "roles: rowcast_owner " + ("cannot log in" if harmless else "can log in or is a superuser; it must be neither")
            )
        )
    user = await connection.fetchval("SELECT current_user")
    may = await connection.fetchval("SELECT has_function_privilege('rowcast.sequence(integer)', 'EXECUTE')")
    findings.append(Finding(may, f"roles: {user} " + ("may sequence" if may else f"may not sequence: GRANT rowcast_hub TO {user}")))
    return findings


async def _log(connection: Connection) -> Finding:
    row = await connection.fetchrow("SELECT floor, (SELECT max(position) FROM rowcast.head) AS head FROM rowcast.pruned")
    if row is None or row["head"] is None:
        return Finding(False, "log: its head is gone; nothing can be sequenced")
    kept = f"events {row['floor'] + 1} to {row['head']}" if row["floor"] < row["head"] else f"empty, after event {row['head']}"
    return Finding(True, f"log: {kept}")


async def _consumers(connection: Connection) -> list[Finding]:
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rowcast_reader')"):
        return [Finding(False, "roles: rowcast_reader is missing; see docs/consumers.md")]
    rows = await connection.fetch(
        """SELECT s.name, s.position, p.floor FROM rowcast.subscription s, rowcast.pruned p WHERE s.position < p.floor ORDER BY s.name"""
    )
    return [
        Finding(
            False,
            f"subscriptions: {row['name']!r} is at {row['position']}, below the floor {row['floor']}: "
            "events were pruned before it read them; see docs/consumers.md",
        )
        for row in rows
    ]
