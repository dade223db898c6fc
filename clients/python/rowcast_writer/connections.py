"""The database behind one call, whatever was handed in. Drivers' errors are translated here and nowhere else."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
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
    """The database cannot be reached, or not now. What was asked may have happened or not. `code` is the SQLSTATE, if any."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Busy(Away):
    """The one connection that there is, is in a transaction of the user's."""

    def __init__(self) -> None:
        super().__init__("the connection that the writer was given is in a transaction of yours: give it one of its own")


class Database(Protocol):
    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        """Run one statement with `$1`, `$2`, … (each once, in order) in a transaction of its own. Away or Refused."""
        ...

    def forget(self) -> None:
        """Leave what was opened here to another event loop or process."""

    async def close(self) -> None:
        """Close what was opened here."""


async def within_time(work: Coroutine[Any, Any, Any], cut: Callable[[], None]) -> Any:
    """The result of `work`, or TimeoutError after CALL_TIMEOUT: then `cut()` is called, and nothing waited for. Drivers wait
    for the server's answer before they let go of a statement, and a server that is cut off never answers."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=CALL_TIMEOUT)
    except asyncio.CancelledError:
        asyncio.get_running_loop().call_later(CALL_TIMEOUT, _give_up, task, cut)
        raise
    if not done:
        _give_up(task, cut)
        raise TimeoutError(f"no answer within {CALL_TIMEOUT:g} s")
    return task.result()


def _give_up(task: "asyncio.Future[Any]", cut: Callable[[], None]) -> None:
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # which is then no news
    if not task.done():
        cut()
        task.cancel()


@contextmanager
def translated() -> Iterator[None]:
    """Drivers' errors, as Away and Refused."""
    try:
        yield
    except (Away, Refused):
        raise
    except ValueError as error:  # as of a DSN that is none
        raise Refused(_first_line(error)) from error
    except (OSError, TimeoutError) as error:
        raise Away(str(error) or type(error).__name__) from error
    except Exception as error:
        state = sqlstate(error)
        if state is None and type(error).__module__.partition(".")[0] not in DRIVERS:
            raise
        if state is None or state[:2] in PASSING or state in PASSING_STATES:
            raise Away(_first_line(error), state) from error
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


def cut(connections: list[Any]) -> None:
    for connection in connections:
        connection.terminate()


class AsyncpgPool:
    def __init__(self, pool: asyncpg.Pool | None) -> None:
        self._pool = pool

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        taken: list[Any] = []

        async def fetch() -> Sequence[Row]:
            async with (await self._opened()).acquire() as connection:
                taken.append(connection)
                return [tuple(record) for record in await connection.fetch(query, *arguments)]

        with translated():
            found: Sequence[Row] = await within_time(fetch(), lambda: cut(taken))
            return found

    async def _opened(self) -> asyncpg.Pool:
        assert self._pool
        return self._pool

    def forget(self) -> None:
        pass

    async def close(self) -> None:
        pass


class OwnPool(AsyncpgPool):
    """Opened when it is first needed, in the event loop that needs it."""

    def __init__(self, dsn: str) -> None:
        super().__init__(None)
        self._dsn = dsn

    async def _opened(self) -> asyncpg.Pool:
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._dsn, min_size=0, max_size=CONNECTIONS, server_settings={"application_name": "rowcast writer"}
            )
        await self._pool
        return self._pool

    def forget(self) -> None:
        self._pool = None

    async def close(self) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(2):
                await pool.close()
        except TimeoutError:
            pool.terminate()


class OneAtATime:
    """One connection for all, which nobody else may use at the same time."""

    def __init__(self, run: Callable[[str, Sequence[object]], Awaitable[Sequence[Row]]], cut: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._cut = cut
        self._lock = asyncio.Lock()

    async def call(self, query: str, *arguments: object) -> Sequence[Row]:
        async def alone() -> Sequence[Row]:
            async with self._lock:  # until it is done, also when nobody waits for it any more
                return await self._run(query, arguments)

        with translated():
            found: Sequence[Row] = await within_time(alone(), self._cut)
            return found

    def forget(self) -> None:
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        pass


def one_asyncpg_connection(connection: asyncpg.Connection) -> Database:
    async def run(query: str, arguments: Sequence[object]) -> Sequence[Row]:
        if connection.is_in_transaction():
            raise Busy
        return [tuple(record) for record in await connection.fetch(query, *arguments)]

    return OneAtATime(run, connection.terminate)
