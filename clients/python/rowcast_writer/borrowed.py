"""A database by way of SQLAlchemy or psycopg, whose connections the user has at hand. Each is imported only by who uses it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from .connections import PLACEHOLDER, Busy, Database, OneAtATime, Row, translated, within_time


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
        return _threaded(lambda query, arguments: _on_engine(target, query, arguments))
    raise TypeError(f"{type(target).__name__}: hand in the engine, or a session of it")


def _engine(bind: Any) -> Any:
    from sqlalchemy import Engine

    if not isinstance(bind, Engine):
        raise TypeError("the session works on one connection: hand in an engine, for the writer commits by itself")
    return bind


def of_psycopg(target: Any) -> Database:
    from psycopg import AsyncConnection, Connection

    if isinstance(target, Connection):
        return _threaded(lambda query, arguments: _on_psycopg(target, query, arguments))
    if isinstance(target, AsyncConnection):
        return OneAtATime(lambda query, arguments: _on_asynchronous_psycopg(target, query, arguments))
    if hasattr(target, "connection"):
        return PsycopgPool(target)
    raise TypeError(f"{type(target).__name__}: hand in a connection, or an AsyncConnectionPool")


def _threaded(run: Callable[[str, Sequence[object]], Sequence[Row]]) -> Database:
    """A driver that blocks, in a thread; one call at a time."""
    return OneAtATime(lambda query, arguments: asyncio.to_thread(run, query, arguments))


def _named(query: str) -> str:
    return PLACEHOLDER.sub(r":a\1", query)


def _arguments(arguments: Sequence[object]) -> dict[str, object]:
    return {f"a{n}": value for n, value in enumerate(arguments, 1)}


def _on_engine(engine: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from sqlalchemy import text

    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(_named(query)), _arguments(arguments))]


class Pooled:
    """Of an asynchronous pool a connection for each call."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        with translated():
            found: Sequence[Row] = await within_time(self._on_one(query, arguments), lambda: None)
            return found

    async def _on_one(self, query: str, arguments: Sequence[object]) -> Sequence[Row]:
        raise NotImplementedError

    def forget(self) -> None:
        pass

    async def close(self) -> None:
        pass


class AsynchronousEngine(Pooled):
    async def _on_one(self, query: str, arguments: Sequence[object]) -> Sequence[Row]:
        from sqlalchemy import text

        async with self._pool.begin() as connection:
            return [tuple(row) for row in await connection.execute(text(_named(query)), _arguments(arguments))]


class PsycopgPool(Pooled):
    async def _on_one(self, query: str, arguments: Sequence[object]) -> Sequence[Row]:
        async with self._pool.connection() as connection:
            return await _on_asynchronous_psycopg(connection, query, arguments)


def _check_idle(connection: Any) -> None:
    from psycopg.pq import TransactionStatus

    if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE):
        raise Busy


def _on_psycopg(connection: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from psycopg.rows import tuple_row

    _check_idle(connection)
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        rows: Sequence[Row] = cursor.execute(PLACEHOLDER.sub("%s", query), arguments).fetchall()
        return rows


async def _on_asynchronous_psycopg(connection: Any, query: str, arguments: Sequence[object]) -> Sequence[Row]:
    from psycopg.rows import tuple_row

    _check_idle(connection)
    async with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(PLACEHOLDER.sub("%s", query), arguments)
        rows: Sequence[Row] = await cursor.fetchall()
        return rows
