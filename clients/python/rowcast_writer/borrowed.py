"""A database by way of SQLAlchemy or psycopg, whose connections the user has at hand. Each is imported only by who uses it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from .connections import BUSY, CALL_TIMEOUT, PLACEHOLDER, Database, Row, translated


def of_sqlalchemy(target: Any) -> Database:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    # The writer commits by itself, so it takes connections of the session's engine, not the session's transaction.
    if isinstance(target, AsyncSession):
        target = AsyncEngine(_engine(target.get_bind()))
    if isinstance(target, Session):
        target = _engine(target.get_bind())
    if isinstance(target, AsyncEngine):
        return AsynchronousEngine(target)
    if isinstance(target, Engine):
        return Threaded(lambda query, arguments: _on_engine(target, query, arguments))
    raise TypeError(f"{type(target).__name__}: hand in the engine, or a session of it")


def _engine(bind: Any) -> Any:
    from sqlalchemy import Engine

    if not isinstance(bind, Engine):
        raise TypeError("the session works on one connection: hand in an engine, for the writer commits by itself")
    return bind


def _named(query: str) -> str:
    return PLACEHOLDER.sub(r":a\1", query)


def _arguments(arguments: Sequence[object]) -> dict[str, object]:
    return {f"a{n}": value for n, value in enumerate(arguments, 1)}


def _on_engine(engine: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from sqlalchemy import text

    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(_named(query)), _arguments(arguments))]


class AsynchronousEngine:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        from sqlalchemy import text

        with translated():
            async with asyncio.timeout(CALL_TIMEOUT), self._engine.begin() as connection:
                return [tuple(row) for row in await connection.execute(text(_named(query)), _arguments(arguments))]

    async def close(self) -> None:
        pass


class Threaded:
    """A driver that blocks, in a thread; one call at a time."""

    def __init__(self, run: Callable[[str, Sequence[object]], Sequence[Row]]) -> None:
        self._run = run
        self._lock = asyncio.Lock()

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        async with self._lock:
            with translated():
                return await asyncio.shield(asyncio.to_thread(self._run, query, arguments))

    async def close(self) -> None:
        pass


def of_psycopg(target: Any) -> Database:
    from psycopg import AsyncConnection, Connection

    if isinstance(target, Connection):
        return Threaded(lambda query, arguments: _on_psycopg(target, query, arguments))
    if isinstance(target, AsyncConnection):
        return PsycopgConnection(target)
    if hasattr(target, "connection"):
        return PsycopgPool(target)
    raise TypeError(f"{type(target).__name__}: hand in a connection, or an AsyncConnectionPool")


def _idle(connection: Any) -> None:
    from psycopg.pq import TransactionStatus

    if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE):
        raise BUSY


def _on_psycopg(connection: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from psycopg.rows import tuple_row

    _idle(connection)
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        rows: Sequence[Row] = cursor.execute(PLACEHOLDER.sub("%s", query), arguments).fetchall()
        return rows


async def _on_asynchronous_psycopg(connection: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from psycopg.rows import tuple_row

    _idle(connection)
    async with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(PLACEHOLDER.sub("%s", query), arguments)
        rows: Sequence[Row] = await cursor.fetchall()
        return rows


class PsycopgConnection:
    """One connection for all, which nobody else may use at the same time."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        async with self._lock:
            with translated():
                async with asyncio.timeout(CALL_TIMEOUT):
                    return await _on_asynchronous_psycopg(self._connection, query, arguments)

    async def close(self) -> None:
        pass


class PsycopgPool:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT), self._pool.connection() as connection:
                return await _on_asynchronous_psycopg(connection, query, arguments)

    async def close(self) -> None:
        pass
