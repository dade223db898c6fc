"""clients/python: what pipelines do with it, what comes of that in the rows, and what a browser sees."""

import asyncio
import math
import random
import signal
import time
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from rowcast_writer import Lost, NotSaved, Refused, WriterError
from rowcast_writer import Writer as RowWriter
from rowcast_writer.draft import clean

from .pipelines import Broken, Wire, at_the_end_of, follow, program, row, writing
from .rig import Hub, Writer, until, until_sql

NEVER = {"interval": 60.0, "lease": 600.0}
"""With these nothing is written because time has passed."""


# Messages


async def test_a_message_from_its_creation_to_its_end(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    async with writing(database) as rows:
        async with rows.message(session, metadata={"model": "large"}) as message:
            (made,) = await stream.expect("agent.message.appended")
            assert made.data["message"]["status"] == "streaming"
            await message.acknowledge("One moment.")
            (shown,) = await stream.expect("message.delta")
            assert shown.data["delta"] == "One moment."
            await message.progress("Searching…")
            (shown,) = await stream.expect("message.updated")
            assert shown.data["message"]["text"] == "Searching…"
            await message.write("Hel")
            (shown,) = await stream.expect("message.updated")
            assert shown.data["message"]["text"] == "Hel"
            await message.progress("Searching more…")
            await message.write("lo")
            (grown,) = await stream.expect("message.delta")
            assert (grown.data["offset"], grown.data["delta"]) == (3, "lo")
            await message.write("!")
            await message.complete(metadata={"trace_id": "t-1", "quality_score": 0.9, "referenced_ids": [1, 2]})
        (end,) = await stream.expect("message.completed")
    assert (end.data["offset"], end.data["delta"]) == (5, "!")
    stored = await row(db, "message", message.id)
    assert (stored["text"], stored["status"], stored["lease_expires_at"]) == ("Hello!", "completed", None)
    assert stored["metadata"] == {"model": "large", "trace_id": "t-1", "quality_score": 0.9, "referenced_ids": [1, 2]}


async def test_an_exception_fails_the_message_and_is_raised_again(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with writing(database, user_text="Please try again later.", **NEVER) as rows:
        with pytest.raises(Broken, match="secret"):
            async with rows.message(session) as message:
                await message.write("as far as it ")
                await message.write("went")
                raise Broken("secret of the pipeline")
        stored = await row(db, "message", message.id)  # and not by close()
    assert (stored["status"], stored["text"]) == ("failed", "as far as it went")
    assert stored["metadata"] == {"error": "Please try again later."}


async def test_what_fail_says_is_what_a_user_reads(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        await message.acknowledge("One moment.")
        await message.fail("The model is overloaded.")
        with pytest.raises(WriterError, match="has ended"):
            await message.write("more")
        await message.complete()  # the first end counts
    stored = await row(db, "message", message.id)
    assert (stored["status"], stored["text"], stored["metadata"]) == ("failed", "", {"error": "The model is overloaded."})


async def test_leaving_without_an_end_completes(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database, **NEVER) as rows, rows.message(await writer.session()) as message:
        await message.write("all")
        await message.write(" of it")
    stored = await row(db, "message", message.id)
    assert (stored["status"], stored["text"]) == ("completed", "all of it")


async def test_a_text_at_the_end_takes_the_place_of_all(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        await message.write("a draft")
        await message.complete("the answer")
    assert (await row(db, "message", message.id))["text"] == "the answer"


async def test_what_is_shown_only_until_real_text_comes_goes_with_the_end(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        await message.progress("Thinking…")
    assert (await row(db, "message", message.id))["text"] == ""


@pytest.mark.parametrize("moment", ["written", "flushing"])
async def test_a_cancelled_task_leaves_nothing_streaming(database: str, db: asyncpg.Connection, writer: Writer, moment: str) -> None:
    session = await writer.session()
    async with writing(database, **NEVER) as rows:
        begun = asyncio.Event()

        async def pipeline() -> None:
            async with rows.message(session) as message:
                await message.write("half")
                begun.set()
                if moment == "flushing":
                    await message.complete()
                await asyncio.Event().wait()

        task = asyncio.create_task(pipeline())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_sql(db, "SELECT count(*) = 0 FROM message WHERE status = 'streaming'")  # and not by close()


@pytest.mark.parametrize(("table", "status"), [("message", "failed"), ("job", "failed"), ("request", "error")])
async def test_one_that_is_cancelled_while_it_starts_leaves_nothing_open(
    database: str, db: asyncpg.Connection, writer: Writer, table: str, status: str
) -> None:
    session = await writer.session()
    there = await writer.message(session, "what was written before", status="pending") if table == "message" else None
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, **NEVER) as rows:
            wire.unanswered = "_start("

            async def pipeline() -> None:
                made = {
                    "message": lambda session: rows.message(session, id=there),
                    "job": lambda session: rows.job("task", session_id=session),
                    "request": rows.request,
                }
                async with made[table](session):
                    raise AssertionError("it cannot have started")

            task = asyncio.create_task(pipeline())
            await until_sql(db, f"SELECT count(*) = 1 FROM {table} WHERE fence IS NOT NULL")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            wire.resumed.set()
            await until_sql(db, f"SELECT status = $1 FROM {table}", status)  # and not by close()
    if there:
        assert (await row(db, "message", there))["text"] == "what was written before"


async def test_closing_the_writer_fails_what_is_open(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database, **NEVER) as rows:
        message = await rows.message(await writer.session()).start()
        await message.write("half")
        job = await rows.job("task").start()
        step = await job.step("read").start()
        request = await rows.request(await writer.session()).start()
    assert (await row(db, "message", message.id))["status"] == "failed"
    assert (await row(db, "job", job.id))["status"] == "failed"
    assert (await row(db, "job_step", step.id))["status"] == "failed"
    assert (await row(db, "request", request.id))["status"] == "error"
    assert not rows._flusher.rows


async def test_a_program_that_just_ends_leaves_nothing_streaming(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    """asyncio.run() cancels all tasks at its end, the flusher's too."""
    async with program(database, await writer.session(), 0.2) as process:
        assert await process.wait() == 0
    stored = await db.fetchrow("SELECT text, status FROM message")
    assert (stored["text"], stored["status"]) == ("half", "failed")


async def test_a_program_that_is_interrupted_leaves_nothing_streaming(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with program(database, await writer.session(), 600) as process:
        process.send_signal(signal.SIGINT)
        await process.wait()
    stored = await db.fetchrow("SELECT text, status FROM message")
    assert (stored["text"], stored["status"]) == ("half", "failed")


async def test_text_that_postgresql_cannot_hold(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    async with writing(database) as rows, rows.message(session, metadata={"a\0b": ["\ud800", "\0"]}) as message:
        for chunk in ("nul \0, lone \udc00 surrogate, ", "half \ud83d", "", "\ude80 of a rocket", "\0", " and \ud83d"):
            await message.write(chunk)
        await message.complete(metadata={"why": "\0 because"})
    stored = await row(db, "message", message.id)
    assert stored["text"] == "nul , lone  surrogate, half 🚀 of a rocket and "
    assert stored["metadata"] == {"ab": ["", ""], "why": " because"}
    assert (await follow(stream)).texts[str(message.id)] == stored["text"]


def test_clean() -> None:
    assert clean("a\0b\ud83d\ude80\ud83d") == "ab🚀"
    with pytest.raises(TypeError, match="text is wanted, not bytes"):
        clean(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [None, 7, b"x", ["x"]])
async def test_what_is_no_text_is_refused_and_harms_nothing(database: str, db: asyncpg.Connection, writer: Writer, chunk: Any) -> None:
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        await message.write("a")
        with pytest.raises(TypeError, match="text is wanted"):
            await message.write(chunk)
        with pytest.raises(TypeError):
            await message.complete(metadata={"x": object()})
        await message.write("b")
    assert (await row(db, "message", message.id))["text"] == "ab"


# When it is written


async def test_the_first_text_is_written_at_once(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database, **NEVER) as rows, rows.message(await writer.session()) as message:
        await message.acknowledge("One moment.")
        await until_sql(db, "SELECT text = 'One moment.' FROM message WHERE id = $1", message.id)
        await message.progress("Searching…")  # waits for the interval
        await message.write("It")
        await until_sql(db, "SELECT text = 'It' FROM message WHERE id = $1", message.id)
        await message.write(" is")
        await message.complete()


async def test_a_pipeline_that_never_waits_is_written_all_the_same(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        for _ in range(200):
            await message.write("x")
            time.sleep(0.002)  # noqa: ASYNC251
        assert message.written > 10
        assert rows._flusher.statements > 5


async def test_many_streams_are_one_statement_an_interval(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with writing(database, interval=0.2) as rows:

        async def stream() -> None:
            async with rows.message(session) as message:
                for _ in range(60):
                    await message.write("token ")
                    await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(stream())
        statements = rows._flusher.statements
    assert await db.fetchval("SELECT count(*) FROM message WHERE status = 'completed' AND text = repeat('token ', 60)") == 50
    # 3,000 tokens. An interval a flush, and those of the first tokens and the ends, which come together.
    assert statements < 60


async def test_what_a_status_says_is_true_of_the_text(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub) -> None:
    """The end comes with all text that was written before it, in one event."""
    session = await writer.session()
    stream = await hub.follow(session)
    async with writing(database, **NEVER) as rows:
        for n in range(20):
            async with rows.message(session) as message:
                for word in range(n):
                    await message.write(f"{word} ")
    reader = await follow(stream, 20)  # which refuses text after an end
    assert sorted(reader.texts.values()) == sorted("".join(f"{word} " for word in range(n)) for n in range(20))


async def test_nothing_is_written_where_nothing_changed(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    """What is written again so that a crash cannot take it is no new version of the row where it is there already."""
    async with writing(database) as rows, rows.message(await writer.session()) as message:
        await message.write("a")
        await until(lambda: not message.is_dirty)
        version = await db.fetchval("SELECT xmin::text FROM message WHERE id = $1", message.id)
        flushes = rows._flusher.flushes
        rows._flusher.wake(message, urgent=True)
        await until(lambda: rows._flusher.flushes > flushes)
        await until(lambda: not rows._flusher._dirty)
        assert await db.fetchval("SELECT xmin::text FROM message WHERE id = $1", message.id) == version


async def test_the_lease_is_renewed_while_the_pipeline_is_silent(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database, lease=1.0) as rows, rows.message(await writer.session()) as message:
        first = await db.fetchval("SELECT lease_expires_at FROM message WHERE id = $1", message.id)
        await until_sql(db, "SELECT lease_expires_at > $2 FROM message WHERE id = $1", message.id, first)
        assert await db.fetchval("SELECT rowcast.reap()") == 0


# What goes wrong


async def test_a_row_that_is_no_longer_ours_is_not_changed(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with writing(database) as rows:
        for meanwhile, reason in (
            ("UPDATE message SET fence = NULL, lease_expires_at = NULL, status = 'failed' WHERE id = $1", "expired"),
            ("UPDATE message SET fence = gen_random_uuid() WHERE id = $1", "taken"),
            ("UPDATE message SET status = 'completed' WHERE id = $1", "ended"),
            ("UPDATE message SET text = 'x' WHERE id = $1", "cut"),
            ("DELETE FROM message WHERE id = $1", "gone"),
        ):
            with pytest.raises(Lost) as lost:
                async with rows.message(session) as message:
                    await message.write("first words")
                    await until(lambda: not message._draft.kept or not message.is_dirty)
                    await durable(rows, message)
                    await db.execute(meanwhile, message.id)
                    before = await db.fetch("SELECT text, status, fence FROM message WHERE id = $1", message.id)
                    while True:
                        await message.write(", more")
                        await asyncio.sleep(0.01)
            assert lost.value.reason == reason
            assert str(message.id) in str(lost.value)
            assert await db.fetch("SELECT text, status, fence FROM message WHERE id = $1", message.id) == before
            assert not rows._flusher.rows


async def durable(rows: RowWriter, message: Any) -> None:
    """Until nothing of it is kept."""
    rows._flusher._stored_at = -math.inf
    rows._flusher.wake(message, urgent=True)
    await until(lambda: not message._draft.kept)


async def test_an_end_that_is_there_already_is_no_error_and_a_lost_one_is_told(
    database: str, db: asyncpg.Connection, writer: Writer
) -> None:
    async with writing(database, **NEVER) as rows:
        message = await rows.message(await writer.session()).start()
        await db.execute("UPDATE message SET status = 'failed', fence = NULL WHERE id = $1", message.id)
        with pytest.raises(Lost, match="its lease ran out"):
            await message.complete("an answer")
        with pytest.raises(Lost):
            await message.write("more")


async def test_one_that_the_database_refuses_harms_no_other(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    await db.execute("ALTER TABLE message ADD CONSTRAINT polite CHECK (text NOT LIKE '%damn%')")
    session = await writer.session()
    async with writing(database) as rows:

        async def say(words: list[str]) -> UUID:
            async with rows.message(session) as message:
                for word in words:
                    await message.write(word)
                    await asyncio.sleep(0.005)
            return message.id

        said = await asyncio.gather(*(say(["well, ", "damn" if n == 7 else "fine", ", ", "so"]) for n in range(20)), return_exceptions=True)
    refused = [one for one in said if isinstance(one, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], Refused)
    assert refused[0].code == "23514"
    assert "polite" in str(refused[0])
    assert await db.fetchval("SELECT count(*) FROM message WHERE text = 'well, fine, so' AND status = 'completed'") == 19
    # What is left of it is failed at once, and does not wait for its lease.
    assert await db.fetchval("SELECT count(*) FROM message WHERE text IN ('', 'well, ') AND status = 'failed'") == 1


async def test_a_locked_row_holds_up_nobody(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    other = await asyncpg.connect(database)
    async with writing(database) as rows:
        held, free = await rows.message(session).start(), await rows.message(session).start()
        async with other.transaction():
            await other.execute("SELECT FROM message WHERE id = $1 FOR UPDATE", held.id)
            await held.write("held")
            await free.write("free")
            await free.complete()
            assert held.is_dirty
        await held.complete()
    await other.close()
    assert (await row(db, "message", held.id))["text"] == "held"


async def test_a_row_that_stays_locked_is_told_in_the_end(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    other = await asyncpg.connect(database)
    async with writing(database, patience=0.3) as rows:
        message = await rows.message(await writer.session()).start()
        async with other.transaction():
            await other.execute("SELECT FROM message WHERE id = $1 FOR UPDATE", message.id)
            with pytest.raises(NotSaved, match="somebody else's transaction holds the row"):
                await message.complete("text")
    await other.close()


async def test_while_the_database_is_away_nothing_is_lost_and_memory_is_bounded(
    database: str, db: asyncpg.Connection, writer: Writer
) -> None:
    session = await writer.session()
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, buffer=1000) as rows, rows.message(session) as message:
            await message.write("a" * 100)
            await until(lambda: not message.is_dirty)
            wire.is_cut = True
            written = 100

            async def write() -> None:
                nonlocal written
                for _ in range(100):
                    await message.write("b" * 100)
                    written += 100

            task = asyncio.create_task(write())
            await until(lambda: rows._flusher.is_full_for(message))
            await until(lambda: rows._flusher.trouble)
            assert rows._flusher.buffered <= 1100
            assert not task.done()
            wire.is_cut = False
            await task
            assert rows._flusher.buffered <= 1100
    assert (await row(db, "message", message.id))["text"] == "a" * 100 + "b" * 10_000


async def test_what_comes_too_late_changes_nothing(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    """A write that seemed to fail is done after others that were asked later."""
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, interval=0.01) as rows, rows.message(await writer.session()) as message:
            await message.write("one ")
            await until(lambda: not message.is_dirty)
            wire.held_back = "two"
            await message.write("two ")
            await until(lambda: wire.held_back is None)
            await message.write("three ")
            await until(lambda: not message.is_dirty)
            await durable(rows, message)
            await wire.released()
            assert (await row(db, "message", message.id))["text"] == "one two three "
            await message.write("four")
    assert (await row(db, "message", message.id))["text"] == "one two three four"


async def test_an_end_that_comes_while_others_are_written_is_stored(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, lease=600) as rows, rows.job("task", session_id=session) as job:
            message = await rows.message(session).start()
            await message.write("one")
            await until(lambda: not message.is_dirty)
            wire.paused = "job_step_write"
            await job.step("read").start()
            await message.write(", two")
            await asyncio.sleep(0.05)  # the flush of both waits for the step
            end = asyncio.create_task(message.complete())
            await asyncio.sleep(0.05)
            assert not end.done()
            wire.resumed.set()
            async with asyncio.timeout(5):  # half of the writer's patience
                await end
    assert (await row(db, "message", message.id))["text"] == "one, two"


async def test_a_chunk_that_finds_no_room_is_not_taken(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    """Who tries again what was refused or cut short writes it once. And one that cannot be written holds up no other."""
    session = await writer.session()
    other = await asyncpg.connect(database)
    async with writing(database, buffer=1000, patience=0.3) as rows:
        held, free = await rows.message(session).start(), await rows.message(session).start()
        async with other.transaction():
            await other.execute("SELECT FROM message WHERE id = $1 FOR UPDATE", held.id)
            await held.write("x" * 1200)
            with pytest.raises(NotSaved, match=r"no more can be kept: somebody else's transaction holds the row"):
                await held.write("again")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await held.write("again")
            await free.write("free")
            await free.complete()
        await held.write("again")
        await held.complete()
    await other.close()
    assert (await row(db, "message", held.id))["text"] == "x" * 1200 + "again"
    assert (await row(db, "message", free.id))["text"] == "free"


async def test_one_that_takes_too_long_holds_up_no_other_for_long(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    await db.execute(
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(10); RETURN NEW; END $$;
           CREATE TRIGGER slow BEFORE UPDATE ON message FOR EACH ROW WHEN (NEW.text LIKE '%slow%') EXECUTE FUNCTION slow()"""
    )
    session = await writer.session()
    settings = {"statement_timeout": "200"}
    async with asyncpg.create_pool(database, min_size=0, max_size=4, server_settings=settings) as pool, writing(pool, patience=3) as rows:

        async def say(words: list[str]) -> None:
            async with rows.message(session) as message:
                for word in words:
                    await message.write(word)
                    await asyncio.sleep(0.05)

        said = await asyncio.gather(*(say(["well, ", "slow" if n == 3 else "fine"]) for n in range(8)), return_exceptions=True)
    assert [type(one) for one in said if one] == [NotSaved]
    assert "statement timeout" in str(next(filter(None, said)))
    assert await db.fetchval("SELECT count(*) FROM message WHERE text = 'well, fine' AND status = 'completed'") == 7


async def test_a_row_that_is_locked_is_tried_now_and_then(database: str, writer: Writer) -> None:
    other = await asyncpg.connect(database)
    async with writing(database, interval=0.05, lease=0.5) as rows:
        message = await rows.message(await writer.session()).start()
        async with other.transaction():
            await other.execute("SELECT FROM message WHERE id = $1 FOR UPDATE", message.id)
            await asyncio.sleep(0.3)
            before = rows._flusher.statements
            await asyncio.sleep(0.5)
            assert rows._flusher.statements - before < 20
    await other.close()


async def test_a_writer_goes_from_loop_to_loop_and_is_in_one_at_a_time(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    rows = RowWriter(database)

    async def answer(text: str) -> None:
        async with rows, rows.message(session) as message:
            await message.write(text)

    async def forget_to_close(text: str) -> None:
        async with rows.message(session) as message:
            await message.write(text)

    for n in range(2):
        await asyncio.to_thread(asyncio.run, answer(f"{n}"))
    assert await db.fetchval("SELECT array_agg(text ORDER BY text) FROM message WHERE status = 'completed'") == ["0", "1"]
    with pytest.raises(WriterError, match="the writer is closed"):
        await rows.message(session).start()
    async with rows, rows.message(session):
        with pytest.raises(WriterError, match="in use in another event loop"):
            await asyncio.to_thread(asyncio.run, forget_to_close("never"))
    assert await db.fetchval("SELECT count(*) FROM message") == 3


async def test_closing_takes_no_longer_than_the_patience(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        rows = at_the_end_of(wire, patience=0.5)
        for _ in range(10):
            await rows.message(session).start()
        wire.is_cut = True
        async with asyncio.timeout(3):
            await rows.close()
        assert not rows._flusher.rows


async def test_every_row_ends_whatever_happens(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    """Tasks that are cancelled at any moment, connections that are killed, rows that others lock: nothing stays open, while
    the writer goes on."""
    session = await writer.session()
    choose = random.Random(7)
    other = await asyncpg.connect(database)

    async def converse(rows: RowWriter) -> None:
        async with rows.job("agent", session_id=session) as job, rows.request(session), rows.message(session, job_id=job.id) as message:
            for n in range(choose.randrange(4)):
                async with job.step(f"step {n}"):
                    await message.write(f"{n} ")
                    await asyncio.sleep(choose.uniform(0, 0.03))
                    await job.progress(n)

    async def disturb() -> None:
        while True:
            await asyncio.sleep(choose.uniform(0.02, 0.1))
            if choose.random() < 0.3:
                await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast writer'")
            table = choose.choice(["message", "job", "job_step", "request"])
            async with other.transaction():
                await other.execute(f"SELECT FROM {table} ORDER BY random() LIMIT 3 FOR UPDATE SKIP LOCKED")
                await asyncio.sleep(choose.uniform(0, 0.05))

    async with writing(database, patience=30) as rows:
        trouble = asyncio.create_task(disturb())
        for _ in range(6):
            tasks = [asyncio.create_task(converse(rows)) for _ in range(25)]
            for task in tasks:
                asyncio.get_running_loop().call_later(choose.expovariate(10), task.cancel)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(one) for one in ended} <= {type(None), asyncio.CancelledError}
        trouble.cancel()
        await asyncio.wait([trouble])
        await until(lambda: not rows._flusher.rows and not rows._flusher._starts)
        for table, open_states in (("message", "streaming"), ("job", "running"), ("job_step", "running"), ("request", "in_progress")):
            assert await db.fetchval(f"SELECT count(*) FROM {table} WHERE status = $1", open_states) == 0, table
    await other.close()


async def test_what_was_not_stored_is_told(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, patience=0.3, buffer=10) as rows:
            message = await rows.message(session).start()
            wire.is_cut = True
            with pytest.raises(NotSaved, match="no more can be kept: the wire is cut"):
                for _ in range(3):
                    await message.write("more than ten characters")
            with pytest.raises(NotSaved, match=r"its end could not be stored for 0\.3 s: the wire is cut"):
                await message.complete()
            with pytest.raises(NotSaved, match=r"the database was away for 0\.3 s: the wire is cut"):
                await rows.message(session).start()
            wire.is_cut = False
            with pytest.raises(Broken) as broken:  # what went wrong first is what is raised
                async with rows.message(session):
                    wire.is_cut = True
                    raise Broken
    assert "its end could not be stored" in broken.value.__notes__[0]


@pytest.mark.parametrize("seed", range(5))
async def test_random_interleavings_on_a_bad_wire(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub, seed: int) -> None:
    """Calls that fail, that were done though they seemed to fail, and that are done late: every text comes as it was
    written, once, and whoever followed has what the row has."""
    session = await writer.session()
    stream = await hub.follow(session)
    choose = random.Random(seed)
    wanted: dict[UUID, tuple[str, str]] = {}
    async with asyncpg.create_pool(database, max_size=10) as pool:
        wire = Wire(pool, seed)
        async with at_the_end_of(wire, interval=0.01, patience=60) as rows:
            wire.fault_rate = 0.3

            async def converse() -> None:
                text, status = "", "completed"
                try:
                    async with rows.message(session) as message:
                        for _ in range(choose.randrange(12)):
                            match choose.randrange(8):
                                case 0:
                                    await message.progress(f"progress {choose.random()}")
                                case 1:
                                    await message.acknowledge("One moment.")
                                case 2:
                                    await asyncio.sleep(choose.uniform(0, 0.05))
                                case _:
                                    chunk = choose.choice(["a", "bc", "def ", "é", "🚀", "\n", "語"]) * choose.randrange(1, 4)
                                    await message.write(chunk)
                                    text += chunk
                        match choose.randrange(5):
                            case 0:
                                status = "failed"
                                await message.fail()
                            case 1:
                                status = "failed"
                                raise Broken
                            case 2:
                                text = choose.choice(["", "another text", text + "…"])
                                await message.complete(text)
                            case _:
                                await message.complete()
                except Broken:
                    pass
                wanted[message.id] = (text, status)

            async with asyncio.TaskGroup() as group:
                for _ in range(200):
                    group.create_task(converse())
            assert not rows._flusher.rows
        assert wire.late
    stored = {found["id"]: (found["text"], found["status"]) for found in await db.fetch("SELECT id, text, status FROM message")}
    assert stored == wanted
    reader = await follow(stream, 200)
    assert {UUID(id): text for id, text in reader.texts.items()} == {id: text for id, (text, _) in wanted.items()}
    assert {UUID(id): message["status"] for id, message in reader.ended.items()} == {id: status for id, (_, status) in wanted.items()}
