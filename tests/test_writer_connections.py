"""clients/python: what a writer can be given, and what it says of what it cannot use."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
import sqlalchemy.orm
from rowcast_writer import Refused, connections
from rowcast_writer import Writer as RowWriter
from rowcast_writer.connections import Away
from rowcast_writer.databases import open_database
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

from .pipelines import row, writing
from .rig import Writer

KINDS = [
    "DSN", "SQLAlchemy's DSN", "asyncpg pool", "asyncpg connection", "SQLAlchemy AsyncEngine", "SQLAlchemy AsyncSession", "SQLAlchemy Engine",
    "SQLAlchemy Session", "SQLAlchemy AsyncEngine on psycopg", "psycopg AsyncConnection", "psycopg Connection",
]  # fmt: skip


@asynccontextmanager
async def target(kind: str, database: str) -> AsyncIterator[Any]:
    """What users have."""
    async with AsyncExitStack() as stack:

        def engine(driver: str) -> sqlalchemy_asyncio.AsyncEngine:
            made = sqlalchemy_asyncio.create_async_engine(database.replace("postgresql:", f"postgresql+{driver}:"))
            stack.push_async_callback(made.dispose)
            return made

        def blocking_engine() -> sqlalchemy.Engine:
            made = sqlalchemy.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
            stack.callback(made.dispose)
            return made

        match kind:
            case "DSN":
                yield database
            case "SQLAlchemy's DSN":
                yield database.replace("postgresql:", "postgresql+asyncpg:")
            case "asyncpg pool":
                yield await stack.enter_async_context(asyncpg.create_pool(database, min_size=0, max_size=2))
            case "asyncpg connection":
                connection = await asyncpg.connect(database)
                stack.push_async_callback(connection.close)
                yield connection
            case "SQLAlchemy AsyncEngine":
                yield engine("asyncpg")
            case "SQLAlchemy AsyncEngine on psycopg":
                yield engine("psycopg")
            case "SQLAlchemy AsyncSession":
                yield await stack.enter_async_context(sqlalchemy_asyncio.AsyncSession(engine("asyncpg")))
            case "SQLAlchemy Engine":
                yield blocking_engine()
            case "SQLAlchemy Session":
                yield stack.enter_context(sqlalchemy.orm.Session(blocking_engine()))
            case "psycopg AsyncConnection":
                yield await stack.enter_async_context(await psycopg.AsyncConnection.connect(database))
            case "psycopg Connection":
                yield stack.enter_context(psycopg.connect(database))


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_at_hand(database: str, db: asyncpg.Connection, writer: Writer, kind: str) -> None:
    session = await writer.session()
    async with target(kind, database) as given, writing(given) as rows:

        async def converse(n: int) -> Any:
            async with rows.message(session, metadata={"n": n}) as message:
                for word in ("100 % :of ", "it's ", "\\ $1 ", "🚀"):
                    await message.write(word)
                    await asyncio.sleep(0.03)
            return message.id

        async with rows.job("ingest", session_id=session) as job, rows.request(session, text="?"):
            async with job.step("read", {"page": 1}):
                ids = await asyncio.gather(*(converse(n) for n in range(3)))
            await job.progress(33.3)
        for n, id in enumerate(ids):
            stored = await row(db, "message", id)
            assert (stored["text"], stored["status"], stored["metadata"]) == ("100 % :of it's \\ $1 🚀", "completed", {"n": n})
    assert (await row(db, "job", job.id))["status"] == "completed"
    assert await db.fetchval("SELECT array_agg(status) FROM request") == ["done"]


@pytest.mark.parametrize("kind", ["asyncpg connection", "psycopg AsyncConnection", "psycopg Connection"])
async def test_a_transaction_of_the_users_is_not_touched(database: str, writer: Writer, kind: str) -> None:
    session = await writer.session()
    async with target(kind, database) as given:
        rows = RowWriter(given)
        begun = given.execute("BEGIN")
        if asyncio.iscoroutine(begun):
            await begun
        with pytest.raises(Refused, match="is in a transaction of yours"):
            await rows.message(session).start()


async def test_the_transaction_of_a_session_is_not_committed(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    async with target("SQLAlchemy AsyncSession", database) as given, writing(given) as rows:
        await given.execute(sqlalchemy.text("INSERT INTO project (name) VALUES ('of the user')"))
        async with rows.message(session) as message:
            await message.write("text")
        assert await db.fetchval("SELECT count(*) FROM project") == 0
        await given.rollback()
    assert await db.fetchval("SELECT count(*) FROM message WHERE text = 'text'") == 1


async def test_what_is_no_database(database: str) -> None:
    for wrong in (None, 7, object(), sqlalchemy.text("SELECT 1")):
        with pytest.raises(TypeError, match=r"is no database|hand in"):
            RowWriter(wrong)
    async with target("SQLAlchemy AsyncEngine", database) as engine, engine.connect() as connection:
        with pytest.raises(TypeError, match="hand in the engine"):
            RowWriter(connection)
        with pytest.raises(TypeError, match="hand in an engine"):
            RowWriter(sqlalchemy_asyncio.AsyncSession(connection))


@pytest.mark.parametrize(("option", "value"), [("interval", 0), ("lease", -1), ("patience", 0), ("buffer", 0), ("lease", 1.9)])
def test_settings_that_make_no_sense(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        RowWriter("postgresql://", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["DSN", "SQLAlchemy AsyncEngine", "SQLAlchemy Engine", "psycopg AsyncConnection", "psycopg Connection"])
async def test_errors_are_told_apart(database: str, db: asyncpg.Connection, kind: str) -> None:
    async with target(kind, database) as given:
        opened = open_database(given)
        assert list(await opened.call("SELECT CAST($1 AS integer), CAST($2 AS text)", 7, "x")) == [(7, "x")]
        with pytest.raises(Refused, match="nowhere") as refused:
            await opened.call("SELECT * FROM nowhere")
        assert refused.value.code == "42P01"
        with pytest.raises(Away):
            await opened.call("SELECT pg_terminate_backend(pg_backend_pid())")
        await opened.close()


async def test_what_cannot_be_reached_is_away_and_what_is_wrong_is_refused(database: str) -> None:
    for dsn, error, says in (
        ("postgresql://127.0.0.1:1/x", Away, r"refused|Connect"),
        (database.rsplit("/", 1)[0] + "/nowhere", Refused, "nowhere"),
    ):
        opened = open_database(dsn)
        with pytest.raises(error, match=says):
            await opened.call("SELECT 1")
        await opened.close()


async def test_a_database_without_the_schema_is_one_clear_line(empty_database: str) -> None:
    async with writing(empty_database) as rows:
        with pytest.raises(Refused, match="migrate up"):
            await rows.message("00000000-0000-4000-8000-000000000001").start()


async def test_what_a_role_needs(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    role = f"pipeline_{database.rpartition('_')[2]}"
    await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    address = re.sub("//.*@", f"//{role}:secret@", database)
    try:
        async with writing(address) as rows:
            with pytest.raises(Refused, match=r"permission denied .*: GRANT rowcast_writer"):
                await rows.message(session).start()
            await db.execute(f"GRANT rowcast_writer TO {role}")
            async with (
                rows.job("task", session_id=session) as job,
                job.step("read"),
                rows.request(session),
                rows.message(session) as message,
            ):
                await message.write("text")
    finally:
        await db.execute(f"DROP ROLE {role}")
    assert (await row(db, "message", message.id))["status"] == "completed"


@pytest.mark.parametrize("kind", ["DSN", "asyncpg pool", "asyncpg connection"])
async def test_a_connection_that_falls_silent_counts_as_lost(
    database: str, db: asyncpg.Connection, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover: nobody answers, not even to the request to cancel."""
    monkeypatch.setattr(connections, "CALL_TIMEOUT", 0.5)
    async with target(kind, database) as given:
        opened = open_database(given)
        ((pid,),) = await opened.call("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(Away, match=r"no answer within 0\.5 s"):
                    await opened.call("SELECT 1")
                if kind != "asyncpg connection":
                    assert list(await opened.call("SELECT 1")) == [(1,)]
        finally:
            os.kill(pid, signal.SIGCONT)
        await opened.close()


@pytest.mark.parametrize("kind", ["psycopg Connection", "SQLAlchemy Engine", "psycopg AsyncConnection", "asyncpg connection"])
async def test_one_that_is_cancelled_takes_no_connection_from_the_others(
    database: str, db: asyncpg.Connection, writer: Writer, kind: str
) -> None:
    session, locked = await writer.session(), await writer.session()
    async with target(kind, database) as given, writing(given) as rows, rows.message(session) as message:
        await message.write("one ")
        async with db.transaction():
            await db.execute("SELECT FROM session WHERE id = $1 FOR UPDATE", locked)
            start = asyncio.create_task(rows.message(locked).start())
            await asyncio.sleep(0.1)
            start.cancel()
            await message.write("two ")
            await asyncio.sleep(0.1)
        await message.write("three")
    assert (await row(db, "message", message.id))["text"] == "one two three"


@pytest.mark.parametrize("dsn", ["", "mydb", "host=127.0.0.1 dbname=x"])
def test_what_is_no_dsn_is_refused_at_once(dsn: str) -> None:
    with pytest.raises(ValueError, match="the DSN is to begin with postgresql://"):
        RowWriter(dsn)


async def test_a_dsn_with_a_mistake_is_refused_and_not_tried_for_a_minute(database: str) -> None:
    async with writing(f"{database}?sslmode=bogus") as rows:
        with pytest.raises(Refused, match="sslmode"):
            await rows.message("00000000-0000-4000-8000-000000000001").start()
