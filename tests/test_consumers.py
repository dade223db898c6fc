"""rowcast.pending(), ack() and forget(): a named consumer's place in the log."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from rowcast import doctor

from .rig import on_database
from .test_sequence import CAPTURE, drain

READER = "rowcast_test_reader"


async def write(db: asyncpg.Connection, *numbers: int) -> None:
    for number in numbers:
        await db.execute(CAPTURE, str(number))
    await drain(db)


async def pending(db: asyncpg.Connection, name: str = "nightly", *arguments: int) -> list[int]:
    marks = "".join(f", ${n}" for n in range(2, 2 + len(arguments)))
    return [int(row["payload"]) for row in await db.fetch(f"SELECT * FROM rowcast.pending($1{marks})", name, *arguments)]


async def ack(db: asyncpg.Connection, position: int | None, name: str | None = "nightly") -> None:
    await db.execute("SELECT rowcast.ack($1, $2)", name, position)


async def position(db: asyncpg.Connection, name: str = "nightly") -> int | None:
    found: int | None = await db.fetchval("SELECT position FROM rowcast.subscription WHERE name = $1", name)
    return found


async def prune(db: asyncpg.Connection, events: int) -> None:
    await db.execute("UPDATE rowcast.event SET created_at = now() - interval '2 days' WHERE position <= $1", events)
    await db.execute("SELECT rowcast.prune('1 day', 100)")


@pytest.fixture(autouse=True)
def ours(runner: asyncio.Runner, db: asyncpg.Connection) -> None:
    runner.run(db.execute("SELECT rowcast.adopt()"))


async def test_a_consumer_resumes_where_it_was(db: asyncpg.Connection, database: str) -> None:
    await write(db, 1, 2, 3)
    assert await pending(db) == [1, 2, 3]
    assert await pending(db) == [1, 2, 3]  # not acknowledged
    await ack(db, 2)
    assert await pending(db) == [3]
    await ack(db, 3)
    assert await pending(db) == []
    await write(db, 4)
    other = await asyncpg.connect(database)
    assert await pending(other) == [4]
    assert await pending(other, "weekly") == [1, 2, 3, 4]
    await other.close()


async def test_it_gets_whole_events_in_order_and_a_bounded_number(db: asyncpg.Connection) -> None:
    await write(db, *range(1, 12))
    await ack(db, 3)
    assert await pending(db, "nightly", 5) == [4, 5, 6, 7, 8]
    rows = await db.fetch("SELECT * FROM rowcast.pending('nightly', 2)")
    assert rows == await db.fetch("SELECT * FROM rowcast.event WHERE position IN (4, 5) ORDER BY position")
    await db.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '1' FROM generate_series(1, 600)")
    await drain(db)
    assert len(await pending(db)) == 500


async def test_work_and_its_acknowledgement_are_one_transaction(db: asyncpg.Connection) -> None:
    await write(db, 1)
    transaction = db.transaction()
    await transaction.start()
    await ack(db, 1)
    await transaction.rollback()
    assert await pending(db) == [1]


async def test_an_acknowledgement_only_goes_forward(db: asyncpg.Connection) -> None:
    await write(db, 1, 2, 3)
    for acknowledged, expected in ((2, 2), (1, 2), (2, 2), (0, 2), (3, 3)):
        await ack(db, acknowledged)
        assert await position(db) == expected
    await ack(db, 0, "new")
    assert await position(db, "new") == 0


@pytest.mark.parametrize("wrong", [4, -1, None])
async def test_a_position_that_the_log_does_not_have_is_refused(db: asyncpg.Connection, wrong: int | None) -> None:
    await write(db, 1, 2, 3)
    with pytest.raises(asyncpg.InvalidParameterValueError, match="is none of this log, which is at 3"):
        await ack(db, wrong)
    assert await position(db) is None


@pytest.mark.parametrize("name", ["", "x" * 201, None])
async def test_odd_names_are_refused(db: asyncpg.Connection, name: str | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="1 to 200 characters"):
        await ack(db, 0, name)


async def test_what_was_pruned_before_it_was_read_is_an_error_and_not_silence(db: asyncpg.Connection, database: str) -> None:
    await write(db, 1, 2, 3, 4)
    await ack(db, 1)
    await ack(db, 2, "level")
    await prune(db, 2)
    with pytest.raises(
        asyncpg.DataError, match=r"^subscription 'nightly' is at position 1, and the log begins after 2: events 2 to 2 were"
    ):
        await pending(db)
    assert await pending(db, "level") == [3, 4]
    assert await pending(db, "new") == [3, 4]  # as early as can be
    found = [finding.text for finding in await doctor.examine(database) if not finding.ok]
    assert found == ["subscriptions: 'nightly' is at 1, below the floor 2: events were pruned before it read them; see docs/consumers.md"]
    assert await db.fetchval("SELECT rowcast.forget('nightly')") is True
    assert await db.fetchval("SELECT rowcast.forget('nightly')") is False
    assert await pending(db) == [3, 4]
    assert [finding for finding in await doctor.examine(database) if not finding.ok] == []


async def test_it_can_be_sent_back(db: asyncpg.Connection) -> None:
    await write(db, 1, 2, 3)
    await ack(db, 3)
    await db.execute("SELECT rowcast.forget('nightly'), rowcast.ack('nightly', 1)")
    assert await pending(db) == [2, 3]


async def test_two_that_acknowledge_at_once_serialise(db: asyncpg.Connection, database: str) -> None:
    await write(db, *range(1, 21))
    others = [await asyncpg.connect(database) for _ in range(4)]
    await asyncio.gather(*(ack(others[n % 4], n) for n in range(4)))
    await asyncio.gather(*(ack(other, n) for n, other in zip((20, 5, 11, 2), others, strict=True)))
    assert await position(db) == 20
    for other in others:
        await other.close()


@pytest.fixture
def role(runner: asyncio.Runner, database: str) -> Iterator[str]:
    runner.run(on_database(database, f"DO $$ BEGIN CREATE ROLE {READER}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
    yield READER
    runner.run(on_database(database, f"DROP OWNED BY {READER}", f"DROP ROLE {READER}"))


CALLS = ("SELECT * FROM rowcast.pending('a')", "SELECT rowcast.ack('a', 1)", "SELECT rowcast.forget('a')")


async def test_a_reader_reads_and_keeps_its_place_and_does_nothing_else(db: asyncpg.Connection, role: str) -> None:
    await write(db, 1)
    await db.execute(f"GRANT rowcast_reader TO {role}; SET ROLE {role}")
    for call in CALLS:
        await db.execute(call)
    for table in ("event", "head", "epoch", "pruned", "subscription"):
        await db.execute(f"SELECT * FROM rowcast.{table}")
        for write_ in (
            f"DELETE FROM rowcast.{table}",
            f"INSERT INTO rowcast.{table} DEFAULT VALUES",
            f"TRUNCATE rowcast.{table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(write_)
    for forbidden in (
        "SELECT * FROM rowcast.outbox",
        "SELECT * FROM message",
        "SELECT rowcast.sequence(1)",
        "SELECT rowcast.adopt()",
        "SELECT rowcast.prune('1 day', 1)",
        "SELECT rowcast.session_state('a', 1)",
        "SELECT rowcast.job_state('a')",
        "SELECT rowcast.cancel('a')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(forbidden)
    await db.execute("RESET ROLE")


async def test_nobody_else_may(db: asyncpg.Connection, role: str) -> None:
    await write(db, 1)
    await db.execute(f"SET ROLE {role}")
    for call in (*CALLS, "SELECT * FROM rowcast.event", "SELECT * FROM rowcast.subscription"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(call)
    await db.execute("RESET ROLE")


async def test_the_hub_may(db: asyncpg.Connection, role: str) -> None:
    await write(db, 1)
    await db.execute(f"GRANT rowcast_hub TO {role}; SET ROLE {role}")
    for call in CALLS:
        await db.execute(call)
    await db.execute("RESET ROLE")


async def test_what_is_pending_is_found_by_its_key(db: asyncpg.Connection) -> None:
    """Also when it was planned for good while the log was small."""
    await write(db, 1)
    await ack(db, 1)
    for _ in range(8):  # generic plans come after the fifth
        await db.execute("ANALYZE rowcast.event")
        await pending(db)
    await db.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '1' FROM generate_series(1, 20000)")
    await drain(db, 30_000)
    await ack(db, 19_990)
    async with db.transaction():
        scanned = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables WHERE relid = 'rowcast.event'::regclass"
        before = await db.fetchval(scanned)
        assert len(await pending(db)) == 11
        assert await db.fetchval(scanned) - before < 20
