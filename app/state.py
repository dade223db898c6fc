"""The state now, as the reference tables have it, and the cursor at which that is true."""

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from .database import Pool
from .errors import DatabaseUnavailable, NotFound
from .events import Cursor, Topic

ROWS = 1000
"""Of each kind, the newest ones."""

PATIENCE = 3.0
"""Seconds that a cancel waits for the others before it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """It holds what all events up to the cursor did, and perhaps more: applying later ones again is harmless."""

    cursor: Cursor
    body: bytes
    """One line of JSON, which begins with the cursor."""
    fields: dict[str, msgspec.Raw]

    def __getitem__(self, name: str) -> Any:
        return msgspec.json.decode(self.fields[name])


class State:
    """Reads through a small pool, each time one snapshot of the database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._cancelling = asyncio.Lock()
        """One at a time: it may wait for a row, and no read may wait for that."""

    async def of(self, topic: Topic) -> Snapshot:
        """Of a session or a job, which need not be there. NotFound without the reference tables."""
        if topic.kind == "session":
            return await self._read("SELECT rowcast.session_state($1, $2)", topic.id, ROWS)
        return await self._read("SELECT rowcast.job_state($1)", topic.id)

    async def _read(self, query: str, *arguments: object) -> Snapshot:
        try:
            fields = msgspec.json.decode(await self._ask(query, *arguments), type=dict[str, msgspec.Raw])
        except RecursionError:
            raise DatabaseUnavailable("the state is nested too deep to be read") from None
        cursor = Cursor(msgspec.json.decode(fields.pop("epoch")), msgspec.json.decode(fields.pop("position")))
        return Snapshot(cursor, msgspec.json.encode({"cursor": str(cursor), **fields}), fields)

    async def cancel(self, job: str) -> bool:
        """Ask the one who works on a job to stop; it sees an event and decides. False: the job has ended.

        DatabaseUnavailable where another transaction holds the job's row for longer than a second.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                await self._cancelling.acquire()
        except TimeoutError:
            raise DatabaseUnavailable("other tasks wait to be cancelled: try again") from None
        try:
            asked = await self._ask("SELECT rowcast.cancel($1)", job)
        except asyncpg.LockNotAvailableError:
            raise DatabaseUnavailable("another transaction holds the row of this task: try again") from None
        finally:
            self._cancelling.release()
        if asked is None:
            raise NotFound("no such job")
        return bool(asked)

    async def _ask(self, query: str, *arguments: object) -> Any:
        try:
            return await self._pool.fetchval(query, *arguments)
        except asyncpg.UndefinedFunctionError:
            raise NotFound("this database does not have Rowcast's reference tables, or not yet in this version") from None
