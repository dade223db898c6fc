"""The database behind one call, whatever was handed in. Drivers' errors are translated here and nowhere else."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import asyncpg

from .errors import Refused

CALL_TIMEOUT = 10.0
"""Seconds, after which a connection counts as lost."""

CONNECTIONS = 4
"""Of the writer's own pool: one writes what has changed, the others begin rows."""

PASSING = ("08", "40", "53", "57")
"""Classes of SQLSTATEs that pass: connections, serialization and deadlocks, resources, shutdowns."""

PASSING_STATES = ("25006", "55P03")
"""A primary that has become a standby, a lock that could not be had."""

DRIVERS = ("asyncpg", "psycopg", "psycopg_pool", "sqlalchemy")
"""What these raise without a SQLSTATE comes of a connection that is gone, or in a state that they did not foresee."""

PLACEHOLDER = re.compile(r"\$(\d+)")

Row = Sequence[Any]


class Away(Exception):
    """The database cannot be reached, or not now. What was asked may have happened or not."""


class Database(Protocol):
    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        """Run one statement with `$1`, `$2`, … (each once, in order) in a transaction of its own. Away or Refused."""
        ...

    async def close(self) -> None:
        """Close what was opened here."""
        ...


@contextmanager
def translated():  # type: ignore[no-untyped-def]
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise Away(str(error) or type(error).__name__) from error
    except Exception as error:
        state = sqlstate(error)
        if state is None and type(error).__module__.partition(".")[0] not in DRIVERS:
            raise
        if state is None or state[:2] in PASSING or state in PASSING_STATES:
            raise Away(_first_line(error)) from error
        raise Refused(_first_line(error), state) from error


def sqlstate(error: BaseException) -> str | None:
    """Of asyncpg's and psycopg's errors, or of one of these that SQLAlchemy wraps."""
    for one in (error, getattr(error, "orig", None), getattr(getattr(error, "orig", None), "__cause__", None)):
        state = getattr(one, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def rows(records: list[asyncpg.Record]) -> Sequence[Row]:
    return [tuple(record) for record in records]


class AsyncpgPool:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                return rows(await self._pool.fetch(query, *arguments))

    async def close(self) -> None:
        pass


class OwnPool:
    """Opened when it is first needed, in the event loop that needs it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._pool: asyncpg.Pool | None = None

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._dsn, min_size=0, max_size=CONNECTIONS, server_settings={"application_name": "rowcast writer"}
            )
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._pool
                return rows(await self._pool.fetch(query, *arguments))

    async def close(self) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except TimeoutError:
            pool.terminate()


class AsyncpgConnection:
    """One connection for all, which nobody else may use at the same time."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        async with self._lock:
            if self._connection.is_in_transaction():
                raise BUSY
            with translated():
                return rows(await self._connection.fetch(query, *arguments, timeout=CALL_TIMEOUT))

    async def close(self) -> None:
        pass


BUSY = Refused("the connection that the writer was given is in a transaction of yours: give it one of its own")
