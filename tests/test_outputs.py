"""One message as a row and as an item of Directus: the switches, and that neither output is in the other's way."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest
from rowcast_writer import NotSaved, Refused, Writer, WriterError, lane
from rowcast_writer.directus import DirectusMessages, items
from rowcast_writer.outputs import Outputs

from .directus_stand_in import ADMIN, Fault, StandIn
from .pipelines import follow
from .rig import Hub, until, until_sql
from .rig import Writer as Rows

SORRY = "Sorry, that did not work."


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "backoff", lambda failures: 0.02)


@asynccontextmanager
async def both(database: str, stand_in: StandIn, patience: float = 15.0, **switches: Any) -> AsyncIterator[Outputs]:
    async with (
        Writer(database, interval=0.05, patience=patience, user_text=SORRY) as writer,
        DirectusMessages(stand_in.url, ADMIN, interval=0.05, patience=patience, user_text=SORRY) as directus,
    ):
        yield Outputs(writer, directus, **switches)


def item(stand_in: StandIn) -> dict[str, Any]:
    (found,) = stand_in.items["messages"].values()
    return found


async def row(db: asyncpg.Connection) -> Any:
    return await db.fetchrow("SELECT *, metadata->>'trace_id' AS trace_id, metadata->>'error' AS error FROM message")


async def test_both_at_once(hub: Hub, database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    session = await writer.session()
    stream = await hub.follow(session, from_="now")
    await stream.expect("connected", "caught_up")
    async with both(database, stand_in) as outputs, outputs.message(session, metadata={"model": "m"}, trace_id="trace-1") as message:
        await message.acknowledge("One moment")
        await message.progress("Reading")
        await message.write("Hello")
        await until(lambda: item(stand_in)["messageText"] == "Hello")
        await until_sql(db, "SELECT text = 'Hello' FROM message")
        await message.write(", world")
        await message.complete(metadata={"quality_score": 1})
    stored, sent = await row(db), item(stand_in)
    assert (stored["text"], stored["status"], stored["trace_id"]) == ("Hello, world", "completed", "trace-1")
    assert (sent["messageText"], sent["status"], sent["session_id"]) == ("Hello, world", "completed", session)
    assert sent["metadata"] == {"source": "rowcast-writer", "model": "m", "trace_id": "trace-1", "quality_score": 1}
    assert message.result == {"assistant_message_id": sent["id"], "trace_id": "trace-1"}
    assert list((await follow(stream)).texts.values()) == ["Hello, world"]


@pytest.mark.parametrize("on", ["sse", "directus"])
async def test_an_output_that_is_off_is_not_written(
    on: str, database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn
) -> None:
    switches = {"sse_streaming_enabled": on == "sse", "directus_streaming_enabled": on == "directus"}
    session = await writer.session()
    async with both(database, stand_in, **switches) as outputs, outputs.message(session) as message:
        await message.write("Hello")
    stored = await row(db)
    if on == "sse":
        assert not stand_in.seen
        assert message.result == {"assistant_message_id": str(stored["id"]), "trace_id": stored["trace_id"]}
    else:
        assert stored is None
        assert message.result == {"assistant_message_id": item(stand_in)["id"], "trace_id": item(stand_in)["metadata"]["trace_id"]}


async def test_an_exception_ends_both(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async with both(database, stand_in) as outputs:
        with pytest.raises(KeyError):
            async with outputs.message(await writer.session()) as message:
                await message.write("Half")
                raise KeyError
    stored, sent = await row(db), item(stand_in)
    assert (stored["text"], stored["status"], stored["error"]) == ("Half", "failed", SORRY)
    assert (sent["messageText"], sent["status"], sent["metadata"]["error"]) == (f"Half\n\n{SORRY}", "completed", True)


async def test_directus_is_away(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    """From the start: the row begins, grows and ends all the same, and then the error is raised."""
    stand_in.fail(Fault("POST", status=503), times=100_000)
    async with both(database, stand_in, patience=2.0) as outputs:
        with pytest.raises(NotSaved, match="answers 503"):
            async with outputs.message(await writer.session()) as message:
                await message.write("Hello")
                await until_sql(db, "SELECT text = 'Hello' FROM message")
                assert not message._lanes[0].error, "it is still trying"
                await message.write(", world")
                await until_sql(db, "SELECT text = 'Hello, world' FROM message")
    assert (await row(db))["status"] == "completed"
    assert not stand_in.items["messages"]


async def test_directus_refuses_in_the_middle(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async with both(database, stand_in) as outputs:
        with pytest.raises(Refused, match="answers 400"):
            async with outputs.message(await writer.session()) as message:
                stand_in.fail(Fault(status=400))
                await message.write("a")
                await until(lambda: message._handles[0].error)
                for chunk in "bcd":
                    await message.write(chunk)
                await message.complete()
    stored, sent = await row(db), item(stand_in)
    assert (stored["text"], stored["status"]) == ("abcd", "completed")
    assert (sent["status"], sent["metadata"]["error"]) == ("completed", True)


async def test_the_row_is_gone(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async with both(database, stand_in) as outputs:
        with pytest.raises(WriterError, match="deleted"):
            async with outputs.message(await writer.session()) as message:
                await until_sql(db, "DELETE FROM message RETURNING id")
                await message.write("Hello")
                await until(lambda: message._handles[1].error)
                await message.write(", world")
                await message.write("!")
    assert (item(stand_in)["messageText"], item(stand_in)["status"]) == ("Hello, world!", "completed")


async def test_both_fail(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async with both(database, stand_in) as outputs:
        with pytest.raises(ExceptionGroup) as caught:
            async with outputs.message(await writer.session()) as message:
                await until_sql(db, "DELETE FROM message RETURNING id")
                await until(lambda: stand_in.items["messages"])
                stand_in.items["messages"].clear()
                while True:
                    await message.write("Hello")
                    await asyncio.sleep(0.01)
        assert len(caught.value.exceptions) == 2
        assert not hasattr(caught.value, "__notes__")
        stand_in.fail(Fault("POST", status=400))
        with pytest.raises(ExceptionGroup):
            await outputs.message("00000000-0000-4000-8000-00000000dead").start()


async def test_an_output_that_is_slow_holds_up_no_longer_than_its_patience(
    database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "BUFFER", 100)
    monkeypatch.setattr(lane, "BUFFER", 100)
    async with both(database, stand_in, patience=0.5) as outputs:
        with pytest.raises(NotSaved):
            async with outputs.message(await writer.session()) as message:
                stand_in.fail(Fault(status=503), times=100_000)
                for _ in range(50):
                    await message.write("x" * 50)
                    assert message._lanes[0]._kept <= 150
    assert (await row(db))["text"] == "x" * 2500
    assert (await row(db))["status"] == "completed"


async def test_it_is_cancelled(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async def stream(outputs: Outputs, session: str) -> None:
        async with outputs.message(session) as message:
            while True:
                await message.write("more ")
                await asyncio.sleep(0.01)

    async with both(database, stand_in) as outputs:
        task = asyncio.create_task(stream(outputs, await writer.session()))
        await until(lambda: stand_in.of("PATCH"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await row(db))["status"] == "failed"
        assert item(stand_in)["status"] == "completed"


async def test_what_is_cancelled_while_it_completes_is_completed(
    database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn
) -> None:
    async def complete(outputs: Outputs, session: str) -> None:
        async with outputs.message(session) as message:
            await message.complete("Hello")

    stand_in.fail(Fault("POST", before=0.3))
    async with both(database, stand_in) as outputs:
        task = asyncio.create_task(complete(outputs, await writer.session()))
        await until_sql(db, "SELECT status = 'completed' FROM message")
        assert not stand_in.items["messages"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (item(stand_in)["messageText"], item(stand_in)["status"]) == ("Hello", "completed")
    assert "error" not in item(stand_in)["metadata"]


async def test_an_output_that_failed_is_told_no_more(runner: asyncio.Runner) -> None:
    """Each of what it was told might take its whole patience."""
    told = []

    async def note(what: str) -> None:
        told.append(what)
        if what == "second":
            raise KeyError(what)

    output = lane.Lane(None)  # type: ignore[arg-type]
    for what in ("first", "second", "third"):
        output.tell(partial(note, what), size=5)
    output.end(partial(note, "end"), partial(note, "failed"))
    await output.done()
    output.tell(partial(note, "late"), size=5)
    await output.done()
    assert told == ["first", "second", "failed"]
    assert output._kept == 0


ENDING = """
import asyncio, sys
from rowcast_writer import Writer
from rowcast_writer.directus import DirectusMessages
from rowcast_writer.outputs import Outputs

async def stream(session):
    writer = Writer(sys.argv[1], interval=0.05, user_text="Sorry.")
    directus = DirectusMessages(sys.argv[2], sys.argv[3], interval=0.05, user_text="Sorry.")
    async with writer, directus, Outputs(writer, directus).message(session) as message:
        while True:
            await message.write("more ")
            await asyncio.sleep(0.01)

async def main():
    task = asyncio.create_task(stream(sys.argv[4]))
    await asyncio.sleep(0.7)

asyncio.run(main())
"""


async def test_a_program_that_ends(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    given = (database, stand_in.url, ADMIN, await writer.session())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ENDING, *given, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    stored, sent = await row(db), item(stand_in)
    assert (stored["status"], stored["error"]) == ("failed", "Sorry.")
    assert (sent["status"], sent["metadata"]["error"]) == ("completed", True)
    assert sent["messageText"].endswith("more \n\nSorry.")


async def test_a_message_must_be_started_and_ends_once(database: str, db: asyncpg.Connection, writer: Rows, stand_in: StandIn) -> None:
    async with both(database, stand_in) as outputs:
        message = outputs.message(await writer.session())
        for do in (message.write("x"), message.complete(), message.fail()):
            with pytest.raises(WriterError, match="not started"):
                await do
        await message.start()
        await message.complete("done")
        await message.fail()
        with pytest.raises(WriterError, match="has ended"):
            await message.write("more")
    assert (await row(db))["status"] == "completed"
    assert "error" not in item(stand_in)["metadata"]


async def test_switches(runner: asyncio.Runner) -> None:
    directus = DirectusMessages("http://127.0.0.1:1", "token")
    writer = Writer("postgresql://127.0.0.1:1/x")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"writer": writer}, "directus_streaming_enabled is on, so give a `directus`"),
        ({"directus": directus}, "sse_streaming_enabled is on, so give a `writer`"),
        ({"writer": writer, "sse_streaming_enabled": False, "directus_streaming_enabled": False}, "both off"),
        ({"writer": writer, "directus": directus, "directus_streaming_interval_ms": 0}, "directus_streaming_interval_ms"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            Outputs(**given)
    for name, value in [
        ("SSE_STREAMING_ENABLED", "maybe"),
        ("DIRECTUS_STREAMING_ENABLED", "2"),
        ("DIRECTUS_STREAMING_INTERVAL_MS", "soon"),
        ("DIRECTUS_STREAMING_INTERVAL_MS", "0"),
        ("DIRECTUS_STREAMING_INTERVAL_MS", "nan"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} takes .*, not '{value}'$"):
            Outputs.from_env(writer, directus, {name: value})


async def test_switches_of_the_environment(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    directus = DirectusMessages("http://127.0.0.1:1", "token")
    writer = Writer("postgresql://127.0.0.1:1/x")
    monkeypatch.setenv("SSE_STREAMING_ENABLED", "False")
    monkeypatch.setenv("DIRECTUS_STREAMING_INTERVAL_MS", "50")
    (only,) = Outputs.from_env(None, directus).message("s")._handles
    assert only._interval == 0.05
    monkeypatch.setenv("SSE_STREAMING_ENABLED", "on")
    monkeypatch.setenv("DIRECTUS_STREAMING_ENABLED", "0")
    assert len(Outputs.from_env(writer).message("00000000-0000-4000-8000-0000000000a1")._handles) == 1
    monkeypatch.setenv("DIRECTUS_STREAMING_ENABLED", "")
    both = Outputs.from_env(writer, directus).message("00000000-0000-4000-8000-0000000000a1")
    assert len(both._handles) == 2
    with pytest.raises(ValueError, match="sse_streaming_enabled is on"):
        Outputs.from_env(None, directus)
