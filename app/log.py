"""The log: reading after a position, its head and floor, and pruning it."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from . import queries
from .burst import VIEWS, Burst
from .database import Connection, Pool
from .events import OF_ITSELF, Cursor, Event, Lineage, Position, Topic, Topics
from .queries import READ_BYTES, READ_EVENTS

KEPT_BYTES, KEPT_SECONDS = 32_000_000, 10.0
"""What was just read is kept for others that come for the same, up to here."""

EVENT_BYTES, BATCH_BYTES = 1000, 1000
"""What objects take, about, besides the payloads."""

PRUNE_EVENTS = 2000
PRUNE_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What a read found. `position` is how far the reader is now; `complete` means that nothing up
    to where it asked is left; `pruned` that events after its position are gone."""

    burst: Burst | None
    position: Position
    complete: bool
    pruned: bool = False
    size: int = BATCH_BYTES
    """Bytes that it takes in memory at most, with a block for each view that its burst keeps."""

    @property
    def events(self) -> Sequence[Event]:
        return self.burst.events if self.burst else ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Cursors from `floor` to `head` can be honoured."""

    floor: Position
    head: Position


Answer = TypeVar("Answer")


@dataclass(slots=True)
class Shared:
    """A read that several wait for."""

    task: asyncio.Task[Any]
    waiting: int = 0


class Log:
    """Reads through a small pool: nobody holds a connection while it waits. Many clients come for the
    same at once, after a restart say; it is read for them once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._reading: dict[Hashable, Shared] = {}
        self._batches: dict[Hashable, Batch] = {}
        self._kept = 0

    def __repr__(self) -> str:
        return f"<Log pool {self._pool.get_size()}, {len(self._reading)} reads, {self._kept} bytes kept>"

    async def read(self, epoch: str, after: Position, upto: Position, topics: Topics | None = None) -> Batch:
        """Events with after < position ≤ upto, in order; of these topics, or all. `epoch` is for their cursors.
        `upto` must not be above the head: what is kept would hide what comes there."""
        if topics is None:
            return await self._read(epoch, after, upto, None)
        key = (epoch, after, topics)
        batch = self._batches.get(key)
        if batch is None or (batch.complete and batch.position < upto):
            batch = await self._once(key, lambda: self._read_and_keep(key, upto))
        return batch

    async def _read_and_keep(self, key: tuple[str, Position, Topics], upto: Position) -> Batch:
        """What the log holds is never changed: as long as nothing can be missing behind it, it is as good as read anew."""
        batch = await self._read(key[0], key[1], upto, key[2])
        if not batch.pruned:
            if not self._batches:
                asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget_all)
            self._forget(key)
            self._batches[key] = batch
            self._kept += batch.size
            while self._kept > KEPT_BYTES:
                self._forget(next(iter(self._batches)))
        return batch

    def _forget(self, key: Hashable) -> None:
        if batch := self._batches.pop(key, None):
            self._kept -= batch.size

    def _forget_all(self) -> None:
        self._batches.clear()
        self._kept = 0

    async def _once(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Whoever asks for what is being read already waits for the same answer. It is given up when nobody waits any more."""
        shared = self._reading.get(key)
        if shared is None:
            shared = self._reading[key] = Shared(asyncio.create_task(call(), name=f"read {key}"))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.task.done() or not shared.waiting:
                shared.task.cancel()
                if self._reading.get(key) is shared:
                    del self._reading[key]

    async def _read(self, epoch: str, after: Position, upto: Position, topics: Topics | None) -> Batch:
        rows = await self._fetch(after, upto, topics)
        if rows[0]["floor"] > after:
            return Batch(None, after, complete=False, pruned=True)
        events = [
            Event(Cursor(epoch, row[2]), row[3], row[6], row[7], row[8], row[4], row[5].encode(), *row[9:])
            for row in rows
            if row[2] is not None
        ]
        if not events:
            return Batch(None, upto, complete=True)
        size = rows[-1]["size"]
        complete = len(events) < READ_EVENTS and size < READ_BYTES
        weight = BATCH_BYTES + EVENT_BYTES * len(events) + (1 + VIEWS) * size
        return Batch(Burst(events), upto if complete else events[-1].position, complete, size=weight)

    async def _fetch(self, after: Position, upto: Position, topics: Topics | None) -> Sequence[Any]:
        if topics is None:
            return await self._pool.fetch(queries.READ_ALL, after, upto)
        if len(topics) == 1:
            return await self._pool.fetch(queries.READ_TOPIC[topics[0].kind], after, upto, topics[0].id)
        return await self._pool.fetch(queries.READ_SEVERAL, after, upto, *queries.ids(topics))

    async def recent(self, topics: Topics, upto: Position, age: timedelta, most: int) -> Position:
        """The position before the topics' recent events, or one up to which they have none."""
        return await self._once(("recent", topics), lambda: self._recent(topics, upto, age, most))

    async def _recent(self, topics: Topics, upto: Position, age: timedelta, most: int) -> Position:
        found = await self._pool.fetchval(queries.RECENT, upto, most, age, *queries.ids(topics))
        return upto if found is None else Position(found)

    async def outcome(self, epoch: str, topic: Topic, upto: Position) -> Event | None:
        """The newest event that is kept and tells of the job or request itself."""
        return await self._once(("outcome", topic, upto), lambda: self._outcome(epoch, topic, upto))

    async def _outcome(self, epoch: str, topic: Topic, upto: Position) -> Event | None:
        position = await self._pool.fetchval(queries.OUTCOME[topic.kind], topic.id, upto, OF_ITSELF[topic.kind])
        return position and await self.event_at(Cursor(epoch, position), (topic,))

    async def bounds(self) -> Bounds:
        row = await self._pool.fetchrow("SELECT floor, (SELECT max(position) FROM rowcast.head) AS head FROM rowcast.pruned")
        assert row is not None
        return Bounds(Position(row["floor"]), Position(row["head"]))

    async def event_at(self, cursor: Cursor, topics: Topics) -> Event | None:
        """The topics' event at a cursor, which may be anything that a client sent."""
        batch = await self._read(cursor.epoch, Position(cursor.position - 1), cursor.position, topics)
        return batch.events[0] if batch.events else None

    async def prune(self, keep: timedelta) -> int:
        """Delete what is no longer needed, in small batches; how many events went."""
        total = 0
        while True:
            n: int = await self._pool.fetchval("SELECT rowcast.prune($1, $2)", keep, PRUNE_EVENTS, timeout=PRUNE_TIMEOUT)
            total += n
            if n < PRUNE_EVENTS:
                return total


async def identify(connection: Connection) -> Lineage:
    """Take over this log if it is a copy; its epochs."""
    await connection.execute("SELECT rowcast.adopt()")
    rows = await connection.fetch("SELECT epoch, start FROM rowcast.epoch ORDER BY id")
    return Lineage(Cursor(row["epoch"], Position(row["start"])) for row in rows)


async def head(connection: Connection) -> Position:
    return Position(await connection.fetchval("SELECT max(position) FROM rowcast.head"))
