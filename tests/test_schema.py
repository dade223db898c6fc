"""Migrations: up, down, up; five at once; beside writers; and the catalogue that they leave."""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from alembic.util.exc import CommandError
from rowcast import schema
from rowcast.errors import ConfigurationError, SchemaMismatch

from alembic import command

from .rig import on_database, until_sql

SNAPSHOT = Path(__file__).parent / "catalogue.txt"

CATALOGUE = """
SELECT format('table %s.%s owner %s%s', n.nspname, c.relname, CASE WHEN n.nspname = 'rowcast' THEN pg_get_userbyid(c.relowner) END,
              CASE WHEN c.relpersistence = 'u' THEN ' unlogged' END)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'rowcast')
UNION ALL
SELECT format('column %s.%s.%s %s%s %s%s', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attnotnull THEN ' not null' ELSE '' END, pg_get_expr(d.adbin, d.adrelid), a.attidentity)
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'rowcast') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('constraint %s on %s %s', conname, conrelid::regclass, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE connamespace IN ('public'::regnamespace, 'rowcast'::regnamespace) AND contype <> 'n'
UNION ALL
SELECT pg_get_indexdef(i.indexrelid)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace IN ('public'::regnamespace, 'rowcast'::regnamespace)
UNION ALL
SELECT format('%s enabled %s', pg_get_triggerdef(t.oid), t.tgenabled) FROM pg_trigger t
 WHERE NOT t.tgisinternal
UNION ALL
SELECT format('function %s owner %s definer %s config %s md5 %s acl %s', p.oid::regprocedure,
              CASE WHEN p.prosecdef THEN pg_get_userbyid(p.proowner) END, p.prosecdef, p.proconfig,
              CASE WHEN p.prosrc <> '' THEN md5(p.prosrc) END, regexp_replace(p.proacl::text, '(\\m(?!rowcast)\\w+)?=X/(?!rowcast)\\w+', '', 'g'))
  FROM pg_proc p WHERE p.pronamespace = 'rowcast'::regnamespace
UNION ALL
SELECT format('policy %s on %s.%s for %s to %s', policyname, schemaname, tablename, cmd, roles) FROM pg_policies
UNION ALL
SELECT format('grant on %s.%s %s', attrelid::regclass, attname, regexp_replace(attacl::text, '/\\w+', '', 'g'))
  FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid::regclass::text ~ '^(public\\.)?(job|job_step|message|request|project)$'
UNION ALL
SELECT format('grant on %s %s to %s', table_schema || '.' || table_name, privilege_type, grantee)
  FROM information_schema.role_table_grants WHERE grantee LIKE 'rowcast\\_%'
"""


async def catalogue(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return "\n".join(sorted(row[0].rstrip() for row in await connection.fetch(CATALOGUE))) + "\n"
    finally:
        await connection.close()


async def test_up_down_up_leaves_the_catalogue_of_the_snapshot(empty_database: str) -> None:
    await schema.migrate(empty_database, "head")
    first = await catalogue(empty_database)
    await schema.migrate(empty_database, "base")
    left = [line for line in (await catalogue(empty_database)).splitlines() if not line.startswith("grant")]
    assert [line for line in left if "alembic_version" not in line] == []
    await schema.migrate(empty_database, "head")
    assert await catalogue(empty_database) == first
    if os.environ.get("ROWCAST_WRITE_SNAPSHOT"):
        SNAPSHOT.write_text(first)
    assert first == SNAPSHOT.read_text(), "if this change is meant: ROWCAST_WRITE_SNAPSHOT=1 make test"


async def test_one_step_down_and_up(empty_database: str) -> None:
    await schema.migrate(empty_database, "head")
    await schema.migrate(empty_database, "-1")
    connection = await asyncpg.connect(empty_database)
    assert await schema.version(connection) == schema.latest() - 1
    await schema.migrate(empty_database, "+1")
    assert await schema.version(connection) == schema.latest()
    await connection.close()


async def test_a_step_down_leaves_what_was_there_before(empty_database: str) -> None:
    before = f"{schema.latest() - 1:04}"
    await schema.migrate(empty_database, before)
    there = await catalogue(empty_database)
    await schema.migrate(empty_database, "head")
    assert await catalogue(empty_database) != there
    await schema.migrate(empty_database, before)
    assert await catalogue(empty_database) == there


async def test_models_and_migrations_describe_the_same_schema(database: str) -> None:
    config = schema.alembic_config(database)
    await asyncio.to_thread(command.check, config)
    connection = await asyncpg.connect(database)
    await connection.execute("ALTER TABLE message ADD COLUMN surprise text; DROP INDEX idx_request_session_updated")
    await connection.close()
    with pytest.raises(CommandError, match="surprise"):
        await asyncio.to_thread(command.check, config)


async def test_five_upgrades_at_once(empty_database: str) -> None:
    upgrade = [sys.executable, "-m", "rowcast.cli", "migrate", "up"]
    environment = {**os.environ, "DATABASE_URL": empty_database}
    processes = [await asyncio.create_subprocess_exec(*upgrade, env=environment, stdout=subprocess.DEVNULL) for _ in range(5)]
    assert [await process.wait() for process in processes] == [0] * 5
    assert await catalogue(empty_database) == SNAPSHOT.read_text()


async def test_an_upgrade_waits_for_a_writer_without_queueing_the_others(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer keeps its transaction open; DDL gives up its place in the queue again and again until it ends."""
    monkeypatch.setattr(schema, "LOCK_TIMEOUT", "100ms")
    writer, other = await asyncpg.connect(database), await asyncpg.connect(database)
    await writer.execute("BEGIN; INSERT INTO project DEFAULT VALUES")
    migration = asyncio.create_task(schema.migrate(database, "0001"))
    waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    await until_sql(other, waiting)
    await asyncio.wait_for(other.execute("INSERT INTO project DEFAULT VALUES"), 5)
    await until_sql(other, waiting)  # it came back
    assert not migration.done()
    await writer.execute("COMMIT")
    await asyncio.wait_for(migration, 20)
    await writer.close()
    await other.close()


async def test_a_migration_beside_writers_and_a_hub_loses_nothing_and_fails_no_write(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full outbox, up, down and up again. A capture that is under way never meets the columns of another version."""
    monkeypatch.setattr(schema, "ATTEMPTS", 200)
    await schema.migrate(empty_database, "0003")
    done = asyncio.Event()
    written: list[str] = []
    moved = asyncio.Condition()

    async def write(number: int) -> None:
        db = await asyncpg.connect(empty_database)
        while not done.is_set():
            text = f"{number} {len(written)}"
            async with db.transaction():
                session = await db.fetchval("INSERT INTO session DEFAULT VALUES RETURNING id")
                await db.execute("INSERT INTO job (session_id) VALUES ($1)", session)
                message = await db.fetchval("INSERT INTO message (session_id) VALUES ($1) RETURNING id", session)
                await db.execute("UPDATE message SET text = $2 WHERE id = $1", message, text)
                await db.execute("UPDATE message SET metadata = '{\"a\": 1}' WHERE id = $1", message)
            written.append(text)
            async with moved:
                moved.notify_all()
        await db.close()

    async def sequence(limit: int) -> None:
        db = await asyncpg.connect(empty_database)
        while not done.is_set():
            with suppress(asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError):  # it was waiting, and tries again
                await db.fetchrow("SELECT * FROM rowcast.sequence($1)", limit)
            await db.execute("SELECT rowcast.prune('1 day', 100)")
        await db.close()

    db = await asyncpg.connect(empty_database)
    await db.execute("SELECT rowcast.adopt()")
    await db.execute("INSERT INTO rowcast.outbox (session_id, type, payload) SELECT 's', 'full', '{}' FROM generate_series(1, 20000)")
    tasks = [asyncio.create_task(work) for work in (*(write(number) for number in range(3)), sequence(200))]
    for target in ("head", "0003", "head"):
        await schema.migrate(empty_database, target)
        seen = len(written)
        async with moved:
            await moved.wait_for(lambda seen=seen: len(written) > seen + 20 or any(task.done() for task in tasks))
    done.set()
    await asyncio.gather(*tasks)
    while (await db.fetchrow("SELECT * FROM rowcast.sequence(10000)"))["more"]:
        pass
    rows = await db.fetch("SELECT type, count(*) AS n FROM rowcast.event GROUP BY type")
    n = len(written)
    assert {row["type"]: row["n"] for row in rows} == {
        "full": 20000, "task.created": n, "agent.message.appended": n, "message.delta": n, "message.updated": n
    }  # fmt: skip
    deltas = await db.fetch("SELECT payload ->> 'delta' FROM rowcast.event WHERE type = 'message.delta'")
    assert sorted(row[0] for row in deltas) == sorted(written)
    assert await db.fetchval("SELECT max(position) = count(*) FROM rowcast.event")
    await db.close()


async def test_tables_of_these_names_are_left_alone(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await on_database(empty_database, "CREATE TABLE message (id int PRIMARY KEY, precious text); INSERT INTO message VALUES (1, 'x')")
    with pytest.raises(ConfigurationError, match=r"tables or indexes named message exist already: set ROWCAST_REFERENCE_TABLES=off"):
        await schema.migrate(empty_database, "head")
    monkeypatch.setenv("ROWCAST_REFERENCE_TABLES", "off")
    await schema.migrate(empty_database, "head")
    monkeypatch.delenv("ROWCAST_REFERENCE_TABLES")
    await schema.migrate(empty_database, "base")
    connection = await asyncpg.connect(empty_database)
    assert await connection.fetchval("SELECT precious FROM message") == "x"
    assert await connection.fetchval("SELECT to_regclass('job')") is None
    await connection.close()


async def test_a_table_named_like_that_of_the_members_is_to_be_renamed(empty_database: str) -> None:
    """And its key, which keeps its name."""
    await on_database(empty_database, "CREATE TABLE project_member (id int PRIMARY KEY)")
    for names, rename in (
        ("project_member, project_member_pkey", "ALTER TABLE project_member RENAME TO team"),
        ("project_member_pkey", "ALTER INDEX project_member_pkey RENAME TO team_pkey"),
    ):
        with pytest.raises(
            ConfigurationError, match=f"^tables or indexes named {names} exist already: rename them, for Rowcast has its own$"
        ):
            await schema.migrate(empty_database, "head")
        connection = await asyncpg.connect(empty_database)
        assert await schema.version(connection) == 5
        assert await connection.fetchval("SELECT to_regclass('rowcast.secret')") is None
        await connection.execute(rename)
        await connection.close()
    await schema.migrate(empty_database, "head")


async def test_what_is_granted_by_default_is_not_granted_on_a_secret(empty_database: str) -> None:
    """As for a role that is to read everything, also what comes later."""
    role = f"rowcast_test_nosy_{os.getpid()}"
    await on_database(empty_database, f"CREATE ROLE {role}", f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role}, PUBLIC")
    try:
        await schema.migrate(empty_database, "head")
        connection = await asyncpg.connect(empty_database)
        await connection.execute(f"GRANT USAGE ON SCHEMA rowcast TO {role}; SET ROLE {role}; SELECT * FROM rowcast.event")
        for table in ("secret", "revocation", "ticket"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SELECT * FROM rowcast.{table}")
        await connection.close()
    finally:
        await on_database(empty_database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_a_hub_serves_one_version_older_or_newer(database: str) -> None:
    connection = await asyncpg.connect(database)
    latest = schema.latest()
    for found, fits in ((latest, True), (latest - 1, True), (latest + 1, True), (latest + 2, False), (latest - 2, False)):
        await connection.execute("UPDATE rowcast.alembic_version SET version_num = $1", f"{found:04}")
        if fits:
            await schema.check(connection)
        else:
            with pytest.raises(SchemaMismatch):
                await schema.check(connection)
    await connection.close()


async def test_plain_alembic_works(empty_database: str, project_root: Path) -> None:
    environment = {**os.environ, "DATABASE_URL": empty_database}
    for arguments in (["upgrade", "head"], ["check"], ["downgrade", "-1"], ["upgrade", "head"]):
        alembic = await asyncio.create_subprocess_exec(sys.executable, "-m", "alembic", *arguments, env=environment, cwd=project_root)
        assert await alembic.wait() == 0
    assert await catalogue(empty_database) == SNAPSHOT.read_text()


async def test_an_ordinary_role_can_migrate_and_serve(empty_database: str, server_url: str) -> None:
    """One that may create roles but is no superuser, and owns its database."""
    name = empty_database.rpartition("/")[2]
    role = f"rowcast_test_migrator_{os.getpid()}"
    await on_database(
        empty_database,
        f"CREATE ROLE {role} LOGIN CREATEROLE PASSWORD 'secret'",
        f"ALTER DATABASE {name} OWNER TO {role}",
        f"GRANT CREATE ON SCHEMA public TO {role}",
        f"GRANT rowcast_owner, rowcast_hub TO {role} WITH ADMIN OPTION" if await _has_roles(server_url) else "SELECT 1",
    )
    try:
        url = _as(empty_database, role)
        await schema.migrate(url, "head")
        connection = await asyncpg.connect(url)
        await connection.execute("SELECT rowcast.adopt()")
        await connection.execute("INSERT INTO project DEFAULT VALUES")
        await connection.execute("INSERT INTO job DEFAULT VALUES")
        assert await connection.fetchval("SELECT n FROM rowcast.sequence(10)") == 1
        await connection.close()
        await schema.migrate(url, "base")
    finally:
        await on_database(
            empty_database, f"ALTER DATABASE {name} OWNER TO CURRENT_USER", f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}"
        )


def _as(url: str, role: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{role}:secret@{rest.rpartition('@')[2]}"


async def _has_roles(server_url: str) -> bool:
    connection = await asyncpg.connect(server_url)
    try:
        return bool(await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'rowcast_owner'"))
    finally:
        await connection.close()
