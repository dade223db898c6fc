"""Who may see what, in SQL: revoke() and recheck(), what tells of lost access, belongings(), and who may ask."""

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from rowcast import doctor

from .rig import Writer, on_database
from .test_sequence import drain

ROLE = "rowcast_test_access"
NOBODY = UUID("00000000-0000-4000-8000-000000000000")
FOR_THE_HUB = (
    "SELECT * FROM rowcast.secret",
    "SELECT * FROM rowcast.revocation",
    "SELECT * FROM rowcast.ticket",
    "INSERT INTO rowcast.ticket VALUES ('a', '{}', now())",
    "DELETE FROM rowcast.ticket",
    "SELECT rowcast.revoke('ann')",
    "SELECT rowcast.recheck('ann')",
    "SELECT * FROM rowcast.belongings('ann', '{session}', '{a}')",
)
FOR_NOBODY = (
    "UPDATE rowcast.secret SET channel = 'rowcast'",
    "INSERT INTO rowcast.secret VALUES ('a')",
    "DELETE FROM rowcast.secret",
    "DELETE FROM rowcast.revocation",
    "INSERT INTO rowcast.revocation VALUES ('user:ann')",
    "UPDATE rowcast.revocation SET at = now()",
    "UPDATE rowcast.ticket SET claims = '{}'",
    "TRUNCATE rowcast.ticket",
    "INSERT INTO rowcast.outbox (type, payload) VALUES ('access.changed', '{}')",
)


@pytest.fixture
def role(runner: asyncio.Runner, database: str) -> Iterator[str]:
    runner.run(on_database(database, f"DO $$ BEGIN CREATE ROLE {ROLE}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
    yield ROLE
    runner.run(on_database(database, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}"))


async def told(db: asyncpg.Connection) -> list[str]:
    """Of what the outbox says that access changed, and takes it out."""
    rows = await Writer(db).outbox()
    changes = [row for row in rows if row["type"] == "access.changed"]
    audience = ("session_id", "project_id", "job_id", "request_id", "user_id", "table_name", "channel")
    assert all(row[name] is None for row in changes for name in audience)
    assert all(json.loads(row["payload"]).keys() == {"of"} for row in changes)
    return [json.loads(row["payload"])["of"] for row in changes]


async def revoked(db: asyncpg.Connection) -> dict[str, datetime]:
    return {row["what"]: row["at"] for row in await db.fetch("SELECT * FROM rowcast.revocation")}


async def refused(db: asyncpg.Connection, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(statement)


@pytest.mark.parametrize("granted", [None, "rowcast_reader"])
async def test_neither_a_reader_nor_anybody_else_may(db: asyncpg.Connection, role: str, granted: str | None) -> None:
    if granted:
        await db.execute(f"GRANT {granted} TO {role}")
    await db.execute(f"GRANT USAGE ON SCHEMA rowcast TO {role}; SET ROLE {role}")
    await refused(db, *FOR_THE_HUB, *FOR_NOBODY)
    await db.execute("RESET ROLE")


async def test_the_hub_may_and_no_more_than_that(db: asyncpg.Connection, role: str) -> None:
    await db.execute(f"GRANT rowcast_hub TO {role}; SET ROLE {role}")
    for statement in FOR_THE_HUB:
        await db.execute(statement)
    await refused(db, *FOR_NOBODY, "SELECT FROM project_member")
    await db.execute("RESET ROLE")


async def test_a_revocation_is_kept_and_told(db: asyncpg.Connection, database: str) -> None:
    before = await db.fetchval("SELECT clock_timestamp()")
    bells: list[str] = []
    listening = await asyncpg.connect(database)
    await listening.add_listener("rowcast_doorbell", lambda *a: bells.append(a[2]))
    await db.execute("SELECT rowcast.revoke('ann', 't1', session_id => 's1')")
    await listening.execute("SELECT 1")
    assert bells == ["rowcast_doorbell"]
    await listening.close()
    assert await told(db) == ["user:ann", "token:t1", "session:s1"]
    first = await revoked(db)
    assert first.keys() == {"user:ann", "token:t1", "session:s1"}
    assert all(at > before for at in first.values())
    await db.execute("SELECT rowcast.revoke(token => 't1'), rowcast.revoke(token => $$'; --$$)")
    assert await told(db) == ["token:t1", "token:'; --"]
    again = await revoked(db)
    assert again["token:t1"] > first["token:t1"]
    assert again["user:ann"] == first["user:ann"]


async def test_a_revocation_never_moves_backwards(db: asyncpg.Connection) -> None:
    """The clock of a machine may."""
    await db.execute("INSERT INTO rowcast.revocation VALUES ('user:ann', '2200-01-01')")
    await db.execute("SELECT rowcast.revoke('ann')")
    assert (await revoked(db))["user:ann"].year == 2200
    assert await told(db) == ["user:ann"]


async def test_a_revocation_in_a_long_transaction_is_of_when_it_was_made(db: asyncpg.Connection) -> None:
    async with db.transaction():
        await db.execute("SELECT now()")
        later = await db.fetchval("SELECT clock_timestamp()")
        await db.execute("SELECT rowcast.revoke('ann')")
    assert (await revoked(db))["user:ann"] >= later


BAD = ["", "x" * 129, "a\nb", "a\x7fb", "a\u2028b"]


@pytest.mark.parametrize("scs", ["on", "off"])
async def test_what_cannot_be_revoked(db: asyncpg.Connection, scs: str) -> None:
    await db.execute(f"SET standard_conforming_strings = {scs}; SET escape_string_warning = off")
    with pytest.raises(asyncpg.InvalidParameterValueError, match=r"^nothing to revoke: give subject, token or session_id$"):
        await db.execute("SELECT rowcast.revoke()")
    for bad in BAD:
        for name in ("subject", "token", "session_id"):
            with pytest.raises(asyncpg.InvalidParameterValueError, match="is no good: 1 to 128 characters without control"):
                await db.execute(f"SELECT rowcast.revoke({name} => $1)", bad)
        with pytest.raises(asyncpg.InvalidParameterValueError, match="is no good"):
            await db.execute("SELECT rowcast.revoke('ann', $1)", bad)
    for bad in (*BAD, None):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="is no good"):
            await db.execute("SELECT rowcast.recheck($1)", bad)
    assert await told(db) == []
    assert await revoked(db) == {}
    for good in ("x" * 128, "n", "a x1f", "语🎯", "\\", "'"):
        await db.execute("SELECT rowcast.revoke($1), rowcast.recheck($1)", good)
        assert await told(db) == [f"user:{good}"] * 2


async def test_recheck_tells_and_revokes_nothing(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.recheck('ann')")
    assert await told(db) == ["user:ann"]
    assert await revoked(db) == {}


async def test_it_is_in_the_log_in_order(writer: Writer) -> None:
    await writer.db.execute("SELECT rowcast.adopt()")
    session = await writer.session()
    await writer.message(session, "before")
    await writer.db.execute("SELECT rowcast.revoke('ann')")
    await writer.message(session, "after")
    await drain(writer.db)
    types = [row[0] for row in await writer.db.fetch("SELECT type FROM rowcast.event ORDER BY position")]
    assert types == ["agent.message.appended", "access.changed", "agent.message.appended"]


async def test_nobody_else_emits_it(db: asyncpg.Connection) -> None:
    for type in ("access.changed", "expiring"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="what streams call a frame of their own"):
            await db.execute("SELECT rowcast.emit($1, '{\"of\": \"user:ann\"}', session_id => 's')", type)


async def member(db: asyncpg.Connection, project: UUID, user: str) -> None:
    await db.execute("INSERT INTO project_member VALUES ($1, $2)", project, user)


async def test_whoever_may_have_lost_access_is_told_of(writer: Writer) -> None:
    db = writer.db
    one, two = await writer.project(), await writer.project()
    session = await writer.session(one)
    await member(db, one, "ann")
    await member(db, two, "bob")
    await db.execute("UPDATE session SET owner_id = 'ann'")
    assert await told(db) == [f"session:{session}"]
    await db.execute("UPDATE session SET owner_id = 'ann', created_at = now(), updated_at = now(), project_id = project_id")
    await db.execute("UPDATE project_member SET created_at = now()")
    await db.execute("UPDATE project SET name = 'other'")
    assert await told(db) == []
    await db.execute("UPDATE session SET owner_id = 'Ann'")
    await db.execute("UPDATE session SET owner_id = NULL")
    await db.execute("UPDATE session SET project_id = $1", two)
    assert await told(db) == [f"session:{session}"] * 3
    await db.execute("UPDATE session SET id = $1", NOBODY)
    assert await told(db) == [f"session:{session}"]
    await db.execute("UPDATE project_member SET user_id = 'cid' WHERE user_id = 'bob'")
    await db.execute("UPDATE project_member SET project_id = $1 WHERE user_id = 'ann'", two)
    assert await told(db) == ["user:bob", "user:ann"]
    await db.execute("DELETE FROM project_member WHERE user_id = 'ann'")
    assert await told(db) == ["user:ann"]
    await db.execute("DELETE FROM project WHERE id = $1", two)  # its members go, its sessions stay
    assert sorted(await told(db)) == [f"session:{NOBODY}", "user:cid"]
    await db.execute("DELETE FROM session")
    assert await told(db) == [f"session:{NOBODY}"]


async def test_an_owner_that_a_trigger_of_the_users_own_sets_is_told_of(writer: Writer) -> None:
    """Whatever columns the statement names."""
    session = await writer.session()
    await writer.db.execute(
        """CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.owner_id := 'bob'; RETURN NEW; END$$;
           CREATE TRIGGER give BEFORE UPDATE ON session FOR EACH ROW EXECUTE FUNCTION give()"""
    )
    await writer.db.execute("UPDATE session SET created_at = now()")
    assert await told(writer.db) == [f"session:{session}"]


async def test_many_at_once_are_told_each_and_ring_once(writer: Writer, database: str) -> None:
    db = writer.db
    project = await writer.project()
    await db.execute("INSERT INTO session (project_id) SELECT $1 FROM generate_series(1, 2000)", project)
    await db.execute("INSERT INTO project_member SELECT $1, 'user ' || n FROM generate_series(1, 2000) n", project)
    ids = {f"session:{row[0]}" for row in await db.fetch("SELECT id FROM session")}
    bells: list[str] = []
    listening = await asyncpg.connect(database)
    await listening.add_listener("rowcast_doorbell", lambda *a: bells.append(a[2]))
    await db.execute("DELETE FROM session; DELETE FROM project_member")
    await listening.execute("SELECT 1")
    assert bells == ["rowcast_doorbell"]
    await listening.close()
    assert set(await told(db)) == ids | {f"user:user {n}" for n in range(1, 2001)}


async def test_a_user_of_any_length_fails_no_write(writer: Writer) -> None:
    long = "🎯" * 500
    await member(writer.db, await writer.project(), long)
    await writer.db.execute("DELETE FROM project_member")
    assert await told(writer.db) == ["user:" + long[:200]]


async def test_a_writer_needs_rights_on_its_own_table_and_nothing_else(writer: Writer, role: str) -> None:
    """Also where row security is on, and with whatever it planted in its own schema."""
    db = writer.db
    project = await writer.project()
    session = await writer.session(project)
    await member(db, project, "ann")
    await db.execute(
        f"""ALTER TABLE session ENABLE ROW LEVEL SECURITY; ALTER TABLE session FORCE ROW LEVEL SECURITY;
            ALTER TABLE project_member ENABLE ROW LEVEL SECURITY; ALTER TABLE project_member FORCE ROW LEVEL SECURITY;
            CREATE POLICY mine ON session TO {role} USING (true); CREATE POLICY mine ON project_member TO {role} USING (true);
            GRANT UPDATE ON session TO {role}; GRANT DELETE, UPDATE ON project_member TO {role};
            CREATE SCHEMA planted; GRANT ALL ON SCHEMA planted TO {role}; SET ROLE {role}; SET search_path = planted, public, pg_catalog;
            CREATE FUNCTION planted.jsonb_build_object(text, text) RETURNS jsonb LANGUAGE sql AS $$SELECT '{{"of": "planted"}}'::jsonb$$;
            CREATE TEMP TABLE outbox (a int)"""
    )
    await db.execute("UPDATE session SET owner_id = 'bob'")
    await db.execute("UPDATE project_member SET user_id = 'bob'; DELETE FROM project_member")
    await refused(
        db, "SELECT rowcast.access_changed()", "CREATE TRIGGER t AFTER DELETE ON outbox EXECUTE FUNCTION rowcast.access_changed()"
    )
    await db.execute("RESET ROLE; RESET search_path")
    assert await told(db) == [f"session:{session}", "user:ann", "user:bob"]


async def test_columns_may_be_renamed_and_added(writer: Writer) -> None:
    db = writer.db
    project = await writer.project()
    session = await writer.session(project)
    await member(db, project, "ann")
    job = await writer.insert("job", session_id=session)
    await db.execute("UPDATE session SET owner_id = 'ann'")
    await told(db)
    await db.execute(
        """ALTER TABLE session RENAME id TO session_id; ALTER TABLE session RENAME owner_id TO mine; ALTER TABLE session ADD id text;
           ALTER TABLE session ADD owner_id text; ALTER TABLE project_member RENAME user_id TO who; ALTER TABLE project_member ADD n int"""
    )
    await db.execute("UPDATE session SET id = 'x', owner_id = 'y'")
    assert await told(db) == []
    assert await belongings(db, "ann", ("job", job)) == [(1, session, str(project), True, True)]
    await db.execute("UPDATE session SET mine = 'bob'; DELETE FROM project_member")
    assert await told(db) == [f"session:{session}", "user:ann"]


async def test_no_cast_of_another_runs_with_our_rights(writer: Writer) -> None:
    db = writer.db
    await db.execute(
        """CREATE TYPE odd AS ENUM ('a');
           CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS $$BEGIN RAISE 'called'; END$$;
           CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd); ALTER TABLE session ADD COLUMN odd odd"""
    )
    session = await writer.session()
    await db.execute("UPDATE session SET odd = 'a', owner_id = 'ann'")
    await db.execute("DELETE FROM session")
    assert await told(db) == [f"session:{session}"] * 2


async def belongings(db: asyncpg.Connection, subject: str | None, *asked: tuple[str | None, object]) -> list[tuple[Any, ...]]:
    kinds, ids = [kind for kind, _ in asked], [None if id is None else str(id) for _, id in asked]
    return [tuple(row) for row in await db.fetch("SELECT * FROM rowcast.belongings($1, $2, $3)", subject, kinds, ids)]


async def test_what_belongs_to_whom(writer: Writer) -> None:
    db = writer.db
    one, two = await writer.project(), await writer.project()
    mine, theirs, free = await writer.session(one), await writer.session(two), await writer.session()
    await db.execute("UPDATE session SET owner_id = 'ann' WHERE id = $1::uuid", mine)
    await db.execute("UPDATE session SET owner_id = 'bob' WHERE id = $1::uuid", theirs)
    await member(db, two, "ann")
    await member(db, one, "bob")
    asked: list[tuple[str | None, object]] = [
        ("session", mine),
        ("session", theirs),
        ("session", free),
        ("project", one),
        ("project", two),
        ("job", await writer.insert("job", session_id=mine)),
        ("job", await writer.insert("job", session_id=mine, project_id=two)),  # of its own project, not that of the session
        ("job", await writer.insert("job", session_id=theirs, project_id=one)),  # nor of its own, but that of the session
        ("job", await writer.insert("job", project_id=two)),
        ("job", await writer.insert("job", kind="task")),
        ("request", await writer.insert("request", session_id=mine)),
        ("request", await writer.insert("request", session_id=theirs)),
        ("request", await writer.insert("request", session_id=free)),
    ]
    a, b = str(one), str(two)
    found = [
        (1, mine, a, True, False),
        (2, theirs, b, False, True),
        (3, free, None, False, False),
        (4, None, a, False, False),
        (5, None, b, False, True),
        (6, mine, a, True, False),
        (7, mine, b, True, True),
        (8, theirs, a, False, True),
        (9, None, b, False, True),
        (10, None, None, False, False),
        (11, mine, a, True, False),
        (12, theirs, b, False, True),
        (13, free, None, False, False),
    ]
    assert await belongings(db, "ann", *asked) == found
    assert await belongings(db, "ann", *asked[8:], *asked[:1]) == [(n - 8, *rest) for n, *rest in found[8:]] + [(6, *found[0][1:])]
    nobody = [(*row[:3], False, False) for row in found]
    for subject in (None, "", "Ann", "ann'", "%", "ann' OR true --"):
        assert await belongings(db, subject, *asked) == nobody
    odd = """o'"\\%_$1"""
    await db.execute("UPDATE session SET owner_id = $1", odd)
    await member(db, one, odd)
    assert [row[3:] for row in await belongings(db, odd, *asked[:2])] == [(True, True), (True, False)]


async def test_what_is_not_there_and_other_kinds_give_no_row(writer: Writer) -> None:
    db = writer.db
    session = await writer.session()
    job = await writer.insert("job", session_id=session)
    await db.execute("INSERT INTO session (id) VALUES ('abcdefab-0000-4000-8000-000000000000')")
    for kind in ("session", "project", "job", "request"):
        for id in (
            NOBODY,
            "",
            "x",
            "abcdefab-0000-4000-8000-000000000000".upper(),
            f"{{{session}}}",
            session + " ",
            f"{session}\n",
            "' OR true --",
            None,
        ):
            assert await belongings(db, "ann", (kind, id)) == [], (kind, id)
    for kind in ("user", "table", "", "SESSION", "message", "job_step", None):
        assert await belongings(db, "ann", (kind, session), (kind, job)) == []
    assert await belongings(db, "ann", ("project", session), ("session", session)) == [(2, session, None, False, False)]
    assert await belongings(db, "ann") == []
    assert await db.fetch("SELECT * FROM rowcast.belongings('ann', NULL, NULL)") == []
    assert await db.fetch("SELECT * FROM rowcast.belongings('ann', '{session,session}', ARRAY[$1])", session) != []


async def test_the_hub_may_ask_also_where_row_security_is_on(writer: Writer, role: str) -> None:
    db = writer.db
    project = await writer.project()
    session = await writer.session(project)
    await db.execute("UPDATE session SET owner_id = 'ann'")
    await member(db, project, "ann")
    asked = (
        ("session", session),
        ("project", project),
        ("job", await writer.insert("job", session_id=session)),
        ("request", await writer.insert("request", session_id=session)),
    )
    for table in ("session", "job", "request", "project", "project_member"):
        await db.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    await db.execute(f"GRANT rowcast_hub TO {role}; SET ROLE {role}; SET row_security = off")
    rows = await belongings(db, "ann", *asked)
    await refused(db, "SELECT FROM session", "SELECT FROM project_member", "SELECT id FROM project")
    await db.execute("RESET ROLE; SET ROLE rowcast_owner")
    await refused(db, "SELECT name FROM project", "DELETE FROM project_member", "UPDATE project_member SET user_id = 'x'")
    await db.execute("RESET ROLE")
    assert rows == [
        (1, session, str(project), True, True),
        (2, None, str(project), False, True),
        (3, session, str(project), True, True),
        (4, session, str(project), True, True),
    ]


async def test_what_belongs_to_whom_is_found_by_its_keys(writer: Writer) -> None:
    """Also when it was planned for good while the tables were small."""
    db = writer.db
    project = await writer.project()
    session = await writer.session(project)
    await member(db, project, "ann")
    asked = (
        ("session", session),
        ("project", project),
        ("job", await writer.insert("job", session_id=session)),
        ("request", await writer.insert("request", session_id=session)),
    )
    for _ in range(8):  # generic plans come after the fifth
        await db.execute("ANALYZE session, project, job, request, project_member")
        await belongings(db, "ann", *asked)
    await db.execute(
        """INSERT INTO project SELECT FROM generate_series(1, 3000); INSERT INTO session (project_id) SELECT id FROM project;
           INSERT INTO job (session_id) SELECT id FROM session; INSERT INTO request (session_id) SELECT id FROM session;
           INSERT INTO project_member SELECT id, 'ann' FROM project ON CONFLICT DO NOTHING;
           INSERT INTO project_member SELECT $$PROJECT$$, 'user ' || n FROM generate_series(1, 3000) n""".replace("PROJECT", str(project))
    )
    async with db.transaction():
        scanned = """SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables
                      WHERE relid = ANY ('{session,project,job,request,project_member}'::regclass[])"""
        before = await db.fetchval(scanned)
        assert len(await belongings(db, "ann", *asked)) == 4
        assert await db.fetchval(scanned) - before < 60


async def test_the_doctor_misses_the_triggers(db: asyncpg.Connection, database: str) -> None:
    await db.execute("DROP TRIGGER rowcast_access_update ON project_member; ALTER TABLE session DISABLE TRIGGER rowcast_access_delete")
    found = [finding.text for finding in await doctor.examine(database) if not finding.ok]
    assert found == [
        "triggers: session.rowcast_access_delete is disabled; whoever loses access goes on reading",
        "triggers: project_member.rowcast_access_update is missing; whoever loses access goes on reading",
    ]
