"""clients/python: the writer is killed or frozen, the database is restarted or killed. No message stays streaming, none is doubled or garbled."""

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from rowcast import reaper, schema
from rowcast.embedded import EmbeddedPostgres
from rowcast_writer import flusher

from .pipelines import follow, program, row, writing
from .rig import Hub, Writer, postgres, until, until_sql

LEASE = 2.0


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not wait for writers after its own start."""
    monkeypatch.setattr(reaper, "GRACE", 0.0)


async def test_a_writer_that_is_killed(database: str, db: asyncpg.Connection, writer: Writer, eager: None) -> None:
    session = await writer.session()
    async with Hub(database) as hub, program(database, session, 600, LEASE) as process:
        stream = await hub.follow(session)
        await until_sql(db, "SELECT text = 'half' FROM message")
        process.kill()
        await process.wait()
        reader = await follow(stream)
    stored = await db.fetchrow("SELECT id, text, status, metadata ->> 'reason' AS reason FROM message")
    assert (stored["text"], stored["status"], stored["reason"]) == ("half", "failed", "lease_expired")
    assert reader.texts == {str(stored["id"]): "half"}
    assert reader.ended[str(stored["id"])]["metadata"]["error"] == "The answer was interrupted. Please try again."


async def test_a_writer_that_comes_back_from_the_dead(database: str, db: asyncpg.Connection, writer: Writer, eager: None) -> None:
    session = await writer.session()
    async with Hub(database) as hub, program(database, session, 600, LEASE, goes_on=True) as process:
        stream = await hub.follow(session)
        process.send_signal(signal.SIGSTOP)
        reader = await follow(stream)
        before = await db.fetch("SELECT * FROM message")
        process.send_signal(signal.SIGCONT)
        assert process.stdout
        said = await process.stdout.readline()
        assert said == b"expired: the lease ran out\n"
        assert await process.wait() == 0
        assert await db.fetch("SELECT * FROM message") == before
        assert list(reader.texts.values()) == [before[0]["text"]]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    # What commits without waiting for the disk is lost in a crash, unless somebody else's commit takes it along.
    with postgres(tmp_path_factory.mktemp("postgres") / "server", fsync="off", wal_writer_delay="10s") as server:
        asyncio.run(schema.migrate(server.url, "head"))
        yield server


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(url)
    try:
        yield made
    finally:
        await made.close()


async def test_what_a_crash_of_the_database_took_is_written_again(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "DURABLE_INTERVAL", 3600.0)
    async with connection(server.url) as db:
        session = await Writer(db).session()
    async with writing(server.url, lease=60) as rows, rows.message(session) as message:
        await message.write("stored, ")
        rows._flusher._stored_at = -math.inf
        rows._flusher.wake(message, urgent=True)
        await until(lambda: not message._draft.kept)
        for n in range(5):
            await message.write(f"lost {n}, ")
            await until(lambda: not message.is_dirty)
        async with connection(server.url) as db:
            assert (await row(db, "message", message.id))["text"].endswith("lost 4, ")
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        server.stop(signal.SIGKILL)
        server.start(port)
        async with connection(server.url) as db:
            assert (await row(db, "message", message.id))["text"] == "stored, ", "the crash took nothing, so this shows nothing"
        await message.write("after.")
        await message.complete()
    async with connection(server.url) as db:
        assert (await row(db, "message", message.id))["text"] == "stored, lost 0, lost 1, lost 2, lost 3, lost 4, after."


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_restart_of_the_database_in_the_middle(
    server: EmbeddedPostgres, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 streams; the browser's connection stays open all the while."""
    async with connection(server.url) as db:
        session = await Writer(db).session()
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    async with Hub(server.url) as hub, writing(server.url, patience=60) as rows:
        stream = await hub.follow(session)
        back = asyncio.Event()

        async def converse(n: int) -> str:
            async with rows.message(session, metadata={"n": n}) as message:
                text = ""
                for word in range(60):
                    await message.write(f"{n}.{word} ")
                    text += f"{n}.{word} "
                    await asyncio.sleep(0.01)
                    if word == 40:
                        await back.wait()
            return text

        talks = [asyncio.create_task(converse(n)) for n in range(20)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.stop, how)
        await until(lambda: rows._flusher.trouble)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start, port)
        back.set()
        wanted = sorted(await asyncio.gather(*talks))
        reader = await follow(stream, 20)
    assert sorted(reader.texts.values()) == wanted
    async with connection(server.url) as db:
        assert sorted(found["text"] for found in await db.fetch("SELECT text FROM message WHERE status = 'completed'")) == wanted
