"""The doorbell, the polling and the locks. The slow tick is an hour here: whatever rests on it hangs."""

import asyncio
import random
import time
from typing import Any

import asyncpg
import pytest
from rowcast import sequencer as module
from rowcast.sequencer import Sequencer

from .rig import Writer, on_database, until, until_sql

HOUR = 3600.0


class Belled:
    """A sequencer that hears the doorbell, without a hub around it."""

    def __init__(self, database: str, tick: float = HOUR) -> None:
        self.database = database
        self.sequencer = Sequencer(database, tick)

    async def __aenter__(self) -> Sequencer:
        await on_database(self.database, "SELECT rowcast.adopt()")
        self._listening = await asyncpg.connect(self.database)
        await self._listening.add_listener("rowcast_doorbell", lambda *a: self.sequencer.ring(str(a[3])))
        self._task = asyncio.create_task(self.sequencer.run())
        await until(lambda: self.sequencer.trouble is None)
        return self.sequencer

    async def __aexit__(self, *exc: object) -> None:
        self.sequencer.stop()
        await asyncio.wait_for(self._task, 10)
        await self._listening.close()


async def all_sequenced(db: asyncpg.Connection, n: int, patience: float = 10.0) -> None:
    await until_sql(db, f"SELECT position >= {n} FROM rowcast.head ORDER BY batch DESC LIMIT 1", patience=patience)


INSERT = "INSERT INTO message (session_id, text) VALUES ($1::uuid, 'x')"


async def test_a_bell_is_enough(writer: Writer, database: str) -> None:
    async with Belled(database):
        session = await writer.session()
        for n in range(1, 30):
            await writer.message(session)
            await all_sequenced(writer.db, n)


async def storm(database: str, session: str, writers: int, seconds: float) -> int:
    """Commits as fast as they go; how many there were."""
    count = 0
    end = time.monotonic() + seconds

    async def one() -> None:
        nonlocal count
        connection = await asyncpg.connect(database)
        while time.monotonic() < end:
            await connection.execute(INSERT, session)
            count += 1
        await connection.close()

    await asyncio.gather(*(one() for _ in range(writers)))
    return count


async def test_it_polls_when_busy_and_sleeps_when_quiet(writer: Writer, database: str) -> None:
    async with Belled(database) as sequencer:
        session = await writer.session()
        was_polling = asyncio.create_task(until(lambda: sequencer.polling))
        count = await storm(database, session, 8, 1.0)
        await was_polling
        await all_sequenced(writer.db, count)
        await until(lambda: not sequencer.polling and not sequencer.witnesses)
        assert await writer.db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 2") == 0


async def test_no_bell_is_rung_while_it_polls(writer: Writer, database: str) -> None:
    holder = await asyncpg.connect(database)
    await holder.execute(f"SELECT pg_advisory_lock({module.DOORBELL})")
    bells: list[Any] = []
    await holder.add_listener("rowcast_doorbell", lambda *a: bells.append(a))
    session = await writer.session()
    await writer.message(session)
    await holder.execute("SELECT 1")
    assert bells == []
    await holder.execute(f"SELECT pg_advisory_unlock({module.DOORBELL})")
    await writer.message(session)
    await holder.execute("SELECT 1")
    assert len(bells) == 1
    await holder.close()


@pytest.mark.parametrize("seed", range(4))
async def test_writers_that_found_the_bell_silent_are_not_forgotten(writer: Writer, database: str, seed: int) -> None:
    """They look at the bell while the sequencer is busy and commit up to seconds later, when it is quiet."""
    dice = random.Random(seed)
    session = await writer.session()
    count = 0

    async def late(sequencer: Sequencer) -> None:
        nonlocal count
        connection = await asyncpg.connect(database)
        await until(lambda: sequencer.polling)
        await connection.execute("BEGIN")
        await connection.execute(INSERT, session)
        await asyncio.sleep(dice.uniform(0, 2.5))
        await connection.execute(dice.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
        count += not connection.is_in_transaction()
        await connection.close()

    async with Belled(database) as sequencer:
        latecomers = [asyncio.create_task(late(sequencer)) for _ in range(12)]
        await storm(database, session, 6, 0.6)
        await asyncio.gather(*latecomers)
        committed = await writer.db.fetchval("SELECT count(*) FROM message")
        await all_sequenced(writer.db, committed, patience=1.5)
        await until(lambda: not sequencer.witnesses)


async def test_a_bell_during_the_last_look_is_not_forgotten(writer: Writer, database: str) -> None:
    """The call has taken its snapshot and waits to write its head when another row commits and rings."""
    session = await writer.session()
    blocker = await asyncpg.connect(database)
    async with Belled(database) as sequencer:
        await blocker.execute("BEGIN; LOCK TABLE rowcast.head IN SHARE MODE")
        await writer.message(session)
        await until_sql(writer.db, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'rowcast.head'::regclass)")
        await writer.message(session)
        await until(sequencer._rung.is_set)
        await blocker.execute("COMMIT")
        await all_sequenced(writer.db, 2)
    await blocker.close()


async def test_one_that_stops_while_it_polls_rings_for_another(writer: Writer, database: str) -> None:
    session = await writer.session()
    first = Belled(database)
    sequencer = await first.__aenter__()
    slow = await asyncpg.connect(database)
    running = asyncio.create_task(storm(database, session, 6, 0.8))
    await until(lambda: sequencer.polling)
    await slow.execute("BEGIN")
    await slow.execute(INSERT, session)  # finds the bell silent
    async with Belled(database):
        await first.__aexit__()
        await running
        await all_sequenced(writer.db, await writer.db.fetchval("SELECT count(*) FROM message"))
        await slow.execute("COMMIT")  # rings nothing; who has taken over looks for it
        await all_sequenced(writer.db, await writer.db.fetchval("SELECT count(*) FROM message"))
    await slow.close()


async def test_one_that_stops_while_it_waits_for_a_writer_hands_that_over(writer: Writer, database: str) -> None:
    """Also to one that has been quiet all the time."""
    session = await writer.session()
    first = Belled(database)
    sequencer = await first.__aenter__()
    slow = await asyncpg.connect(database)
    running = asyncio.create_task(storm(database, session, 6, 0.8))
    await until(lambda: sequencer.polling)
    await slow.execute("BEGIN")
    await slow.execute(INSERT, session)  # finds the bell silent
    await running
    await until(lambda: sequencer.witnesses and not sequencer.polling)
    async with Belled(database) as second:
        await first.__aexit__()
        await until(lambda: second.witnesses)
        await slow.execute("COMMIT")  # rings nothing
        await all_sequenced(writer.db, await writer.db.fetchval("SELECT count(*) FROM message"))
    await slow.close()


async def test_a_dead_sequencer_frees_its_locks_and_is_replaced(writer: Writer, database: str) -> None:
    session = await writer.session()
    async with Belled(database) as sequencer:
        for _ in range(3):
            await writer.db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast sequencer' AND datname = current_database()"
            )
            await until(lambda: sequencer.trouble is not None)
            await writer.message(session)
            await until(lambda: sequencer.trouble is None)
        await all_sequenced(writer.db, 3)


async def test_the_slow_tick_sequences_without_the_lock(writer: Writer, database: str) -> None:
    """Somebody holds SEQUENCER and does nothing: a hub that is frozen."""
    holder = await asyncpg.connect(database)
    await holder.execute(f"SELECT pg_advisory_lock({module.SEQUENCER})")
    async with Belled(database, tick=0.2):
        session = await writer.session()
        await writer.message(session)
        await all_sequenced(writer.db, 1)
    await holder.close()


async def test_whoever_finds_the_lock_taken_looks_again(writer: Writer, database: str) -> None:
    """The holder may have taken its last look before the commit, and may not hear bells any more."""
    holder = await asyncpg.connect(database)
    async with Belled(database):
        await holder.execute(f"SELECT pg_advisory_lock({module.SEQUENCER})")
        session = await writer.session()
        now = await writer.db.fetchval("SELECT clock_timestamp()")
        await writer.message(session)
        tried = "SELECT state = 'idle' AND query LIKE 'SELECT CASE WHEN pg_try%' AND query_start > $1"
        await until_sql(
            writer.db, f"{tried} FROM pg_stat_activity WHERE application_name = 'rowcast sequencer' AND datname = current_database()", now
        )
        await holder.execute(f"SELECT pg_advisory_unlock({module.SEQUENCER})")
        await all_sequenced(writer.db, 1)
    await holder.close()


async def test_a_bell_that_cannot_be_had_is_reported(
    writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BELL_PATIENCE", 0.05)
    holder = await asyncpg.connect(database)
    await holder.execute(f"SELECT pg_advisory_lock_shared({module.DOORBELL})")
    async with Belled(database):
        session = await writer.session()
        count = await storm(database, session, 6, 0.8)
        await all_sequenced(writer.db, count)
    assert "cannot be had" in caplog.text
    await holder.close()


async def test_a_backlog_is_drained_with_growing_limits(writer: Writer, database: str) -> None:
    await writer.db.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '{}' FROM generate_series(1, 20000)")
    async with Belled(database):
        await all_sequenced(writer.db, 20_000)
    assert await writer.db.fetchval("SELECT count(*) FROM rowcast.head") < 9


async def test_a_copy_under_our_feet_is_taken_over(writer: Writer, database: str) -> None:
    async with Belled(database):
        await writer.db.execute("UPDATE rowcast.epoch SET epoch = '00000000'")  # an update changes xmin, as a restore does
        session = await writer.session()
        await writer.message(session)
        await all_sequenced(writer.db, 1)
        assert await writer.db.fetchval("SELECT epoch FROM rowcast.epoch ORDER BY id DESC LIMIT 1") != "00000000"
