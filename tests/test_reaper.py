"""The reaper of a hub: what nobody holds any more ends before a browser's eyes, and what somebody holds does not."""

import asyncio
import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from rowcast import reaper, schema
from rowcast.database import Pool, create_pool

from .rig import Hub, HubProcess, Stream, Writer, postgres, until, until_sql
from .test_leases import F, G, leased, row, start
from .test_listener import following

INTERRUPTED = "The answer was interrupted. Please try again."


class Rounds:
    """What the reaper of this process did: each time whether it was to reap, and what went wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[bool, str | None]] = []
        original = reaper._reap

        async def counted(pool: Pool, due: bool) -> str | None:
            trouble = await original(pool, due)
            self.done.append((due, trouble))
            return trouble

        monkeypatch.setattr(reaper, "_reap", counted)

    async def more(self, n: int = 3) -> list[tuple[bool, str | None]]:
        """The next so many."""
        seen = len(self.done)
        await until(lambda: len(self.done) >= seen + n)
        return self.done[seen:]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Quick ones, with no grace unless a test wants one."""
    monkeypatch.setattr(reaper, "REAP_INTERVAL", 0.05)
    monkeypatch.setattr(reaper, "GRACE", 0.0)
    return Rounds(monkeypatch)


async def test_a_stream_sees_that_nobody_writes_any_more(database: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "GRACE", 0.0)
    async with Hub(database) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        one = await start(writer.db, "message", session_id=UUID(session), text="Once upon", lease="1 second")
        await stream.expect("agent.message.appended")
        failed = await stream.next(patience=1 + 2 + 1)
        assert failed is not None
        assert (failed.type, failed.data["errorMessage"], failed.data["message"]["id"]) == ("message.failed", INTERRUPTED, str(one["id"]))
        assert (await row(writer.db, "message", one["id"]))["text"] == "Once upon"


async def test_a_lease_that_is_renewed_lasts(database: str, writer: Writer, rounds: Rounds) -> None:
    async with Hub(database):
        one = await start(writer.db, "message", session_id=UUID(await writer.session()), lease="3 seconds")
        for _ in range(20):
            await writer.db.execute("SELECT rowcast.message_append($1, 'x', $2, '3 seconds')", one["id"], one["fence"])
            await rounds.more(5)
        assert (await row(writer.db, "message", one["id"]))["status"] == "streaming"


async def test_all_that_is_due_ends_in_one_round(database: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "REAP_MOST", 10)
    await writer.db.execute(
        "INSERT INTO job (status, lease_expires_at) SELECT 'running', now() - interval '1 s' FROM generate_series(1, 95)"
    )
    async with create_pool(database, 1, pooled=False) as pool:
        assert await reaper._reap(pool, False) is None
        assert await writer.db.fetchval("SELECT count(*) FROM job WHERE status = 'failed'") == 0
        assert await reaper._reap(pool, True) is None
    assert await writer.db.fetchval("SELECT count(*) FROM job WHERE status = 'failed'") == 95


async def test_at_first_it_waits_for_writers_to_renew(
    database: str, writer: Writer, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "GRACE", 3600.0)
    id = await leased(writer, lease="-1 minute")
    async with Hub(database):
        assert await rounds.more(5) == [(False, None)] * 5
        assert (await row(writer.db, "message", id))["status"] == "streaming"
        monkeypatch.setattr(reaper, "GRACE", 0.0)
        await until_sql(writer.db, "SELECT status = 'failed' FROM message")


async def test_an_outage_ends_no_stream_that_is_alive(tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "GRACE", 3.0)
    with postgres(tmp_path / "postgres") as server:
        await schema.migrate(server.url, "head")
        db = await asyncpg.connect(server.url)
        async with Hub(server.url):
            writer = Writer(db)
            await leased(writer, lease="-1 minute")
            await until_sql(db, "SELECT status = 'failed' FROM message")  # the first grace is over
            alive, dead = await leased(writer, lease="1 second", fence=F), await leased(writer, lease="1 second", fence=G)
            await db.close()
            before, port = len(rounds.done), int(server.url.rpartition(":")[2].partition("/")[0])
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(1.5)
            server.start(port)
            db = await asyncpg.connect(server.url)
            assert await db.fetchval("SELECT count(*) FROM message WHERE lease_expires_at < clock_timestamp()") == 2
            assert await db.fetchval("SELECT rowcast.message_append($1, 'on', $2, '1 hour')", alive, F) == 2
            await until_sql(db, "SELECT status = 'failed' FROM message WHERE id = $1", dead)
            assert (await row(db, "message", alive))["status"] == "streaming"
            after = [due for due, trouble in rounds.done[before:] if trouble is None]
            assert after.count(False) > 1
            await db.close()


async def test_an_error_of_a_call_starts_the_grace_again_and_is_logged_once(
    database: str, writer: Writer, rounds: Rounds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = """CREATE OR REPLACE FUNCTION rowcast.reap_table(name text, most integer) RETURNS integer LANGUAGE plpgsql
                AS $$ BEGIN RAISE 'no jobs today'; END $$"""
    whole = await writer.db.fetchval("SELECT pg_get_functiondef('rowcast.reap_table'::regproc)")
    monkeypatch.setattr(reaper, "GRACE", 0.5)
    bad = (True, "no jobs today")
    async with Hub(database):
        await until(lambda: (True, None) in rounds.done)
        await writer.db.execute(broken)
        job = await leased(writer, "job", "-1 minute", status="running")
        await until(lambda: rounds.done.count(bad) > 2)
        monkeypatch.setattr(reaper, "GRACE", 3600.0)
        await writer.db.execute(whole)
        await rounds.more(3)
        assert (await row(writer.db, "job", job))["status"] == "running"
        assert all(after == (False, None) for was, after in itertools.pairwise(rounds.done) if was == bad)
    lines = [record.getMessage() for record in caplog.records if record.name == "rowcast.reaper"]
    assert lines == ["reaping: no jobs today"]


@pytest.mark.parametrize("whose", ["listener", "sequencer"])
async def test_while_the_listener_or_the_sequencer_is_in_trouble_nothing_is_reaped(
    database: str, writer: Writer, rounds: Rounds, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """And then the grace begins again."""
    app = Hub(database)
    away: list[str] = []
    asked = 0

    def trouble() -> str | None:
        nonlocal asked
        asked += 1
        return (away or [None])[0]

    monkeypatch.setattr(reaper, "GRACE", 0.5)
    async with app as hub:
        monkeypatch.setattr(hub.rowcast, whose, Troubled(trouble))
        await until(lambda: (True, None) in rounds.done)
        away.append("away")
        seen = asked
        await until(lambda: asked > seen + 1)
        before = len(rounds.done)
        id = await leased(writer, lease="-1 minute")
        await until(lambda: asked > seen + 6)
        assert len(rounds.done) == before
        away.clear()
        assert (await rounds.more(1))[0] == (False, None)
        await until_sql(writer.db, "SELECT status = 'failed' FROM message WHERE id = $1", id)
        monkeypatch.undo()


class Troubled:
    """In the place of a listener or a sequencer."""

    def __init__(self, tell: Callable[[], str | None]) -> None:
        self._tell = tell

    @property
    def trouble(self) -> str | None:
        return self._tell()


async def test_what_is_late_is_not_done(database: str, writer: Writer) -> None:
    """As by a server that was frozen: it would get to the reaper before it gets to the writers."""
    id = await leased(writer, lease="-1 minute")
    now = await writer.db.fetchval("SELECT clock_timestamp()")
    assert await writer.db.fetchval(reaper._REAP, 10, now - timedelta(seconds=1)) is None
    assert (await row(writer.db, "message", id))["status"] == "streaming"
    assert await writer.db.fetchval(reaper._REAP, 10, now + timedelta(minutes=1)) == 1


async def test_an_answer_that_is_late_starts_the_grace_again(
    database: str, writer: Writer, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await leased(writer, lease="-1 minute")
    slow = reaper._LOOK.replace("clock_timestamp()", "(SELECT clock_timestamp() FROM pg_sleep(0.2))")
    assert slow != reaper._LOOK
    monkeypatch.setattr(reaper, "_LOOK", slow)
    monkeypatch.setattr(reaper, "LATE", timedelta(seconds=0.1))
    async with Hub(database):
        assert await rounds.more(3) == [(True, "the database did not answer in time")] * 3
        assert (await row(writer.db, "message", id))["status"] == "streaming"


async def test_a_schema_one_version_older_is_left_alone_until_it_is_upgraded(
    database: str, writer: Writer, rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    await schema.migrate(database, "0006")
    async with Hub(database):
        assert await rounds.more(5) == [(True, None)] * 5
        await schema.migrate(database, "0007")
        await leased(writer, lease="-1 minute")
        await until_sql(writer.db, "SELECT status = 'failed' FROM message")
        await schema.migrate(database, "0006")
        await rounds.more(2)
        assert await rounds.more(5) == [(True, None)] * 5
    assert [record for record in caplog.records if record.name == "rowcast.reaper" and "to_regprocedure" in record.getMessage()] == []


async def test_without_the_reference_tables_there_is_nothing_to_reap(
    empty_database: str, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWCAST_REFERENCE_TABLES", "off")
    await schema.migrate(empty_database, "head")
    async with Hub(empty_database):
        assert await rounds.more(3) == [(True, None)] * 3


async def test_processes_side_by_side_tell_each_end_once(database: str, writer: Writer) -> None:
    """With the grace that they have; whatever was due before is ended after it."""
    session = await writer.session()
    async with HubProcess(database) as one, HubProcess(database) as two:
        stream = await following_at(one.url, session)
        await writer.db.execute(
            "INSERT INTO message (session_id, lease_expires_at) SELECT $1, now() + n % 3 * interval '4 s' FROM generate_series(1, 300) n",
            UUID(session),
        )
        await stream.expect(*["agent.message.appended"] * 300)
        failed = await stream.expect(*["message.failed"] * 300)
        assert len({event.data["message"]["id"] for event in failed}) == 300
        await writer.message(session, "last")
        await stream.expect("agent.message.appended")
        assert not [line for hub in (one, two) for line in hub.log if "reap" in line]


async def following_at(url: str, session: str) -> Stream:
    stream = await Stream.open(f"{url}/api/sse/{session}")
    await stream.until("caught_up")
    return stream
