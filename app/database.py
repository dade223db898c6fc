"""Connections to PostgreSQL, and what their errors mean."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from .errors import DatabaseUnavailable

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 10.0

# The log is read in the order of an index, a few hundred rows at a time. A planner that does not know how large
# it is would fetch and sort all that is left, again for each of these reads.
READING = {"enable_seqscan": "off", "enable_bitmapscan": "off", "random_page_cost": "1", "jit": "off"}

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection, Pool = asyncpg.Connection, asyncpg.Pool

TROUBLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, DatabaseUnavailable)
"""What using a database that is away, restarting or not ours to use can raise."""


def explain(error: BaseException) -> str:
    """One line for a person, without a password."""
    if isinstance(error, TimeoutError):
        return "the database does not answer"
    if isinstance(error, asyncpg.InternalClientError):
        return "the connection was lost in the middle of a call"
    lines = str(error).strip().splitlines()
    return f"{lines[0]}" if lines else type(error).__name__


def unavailable(error: BaseException) -> DatabaseUnavailable:
    """What a client is told: nothing of hosts and roles, which causes may name. `/readyz` and the log tell those."""
    return error if isinstance(error, DatabaseUnavailable) else DatabaseUnavailable("the database cannot be used right now")


async def connect(url: str, name: str, command_timeout: float | None = None, **server_settings: str) -> Connection:
    """A connection of its own, with keepalives that find a half-open one in seconds instead of hours."""
    connection = await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT,
        command_timeout=command_timeout,
        server_settings={"application_name": name, "default_transaction_isolation": "read committed", **server_settings},
    )
    _keep_alive(connection)
    return connection


def _keep_alive(connection: Connection) -> None:
    # asyncpg has no public way to its socket.
    sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
    if sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@asynccontextmanager
async def connected(url: str, name: str, command_timeout: float | None = None, **server_settings: str) -> AsyncIterator[Connection]:
    """A connection for a while. After trouble it is cut: to close it in good order may take for ever then."""
    connection = await connect(url, name, command_timeout, **server_settings)
    try:
        yield connection
        await connection.close(timeout=1)
    finally:
        connection.terminate()


def create_pool(url: str, size: int, pooled: bool) -> Pool:
    """A pool that opens nothing until it is used, and replaces what breaks. Where a pooler stands in
    between (`pooled`), prepared statements would be looked for in sessions that do not have them."""
    return asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=CONNECT_TIMEOUT,
        command_timeout=READ_TIMEOUT,
        statement_cache_size=0 if pooled else 100,
        server_settings={"application_name": "rowcast", **({} if pooled else READING)},
    )


def create_engine(url: str) -> AsyncEngine:
    """SQLAlchemy over the same connections: its own reading of a URL stumbles over `?sslmode=`."""
    return create_async_engine(URL.create("postgresql+asyncpg"), async_creator=lambda: connect(url, "rowcast migrate"), poolclass=NullPool)
