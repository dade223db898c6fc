"""What the tests of the writer are made of: pipelines, what reads them, and bad wires."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from rowcast_writer import Writer as RowWriter
from rowcast_writer.connections import AsyncpgPool, Away

from .rig import Seen, Stream


@asynccontextmanager
async def writing(target: Any, **options: Any) -> AsyncIterator[RowWriter]:
    async with RowWriter(target, **{"interval": 0.02, "lease": 30.0, "patience": 10.0, **options}) as made:
        yield made
    assert not made._flusher.rows
    assert made._flusher.buffered == 0


async def row(db: asyncpg.Connection, table: str, id: object) -> dict[str, Any]:
    found = await db.fetchrow(f"SELECT * FROM {table} WHERE id = $1", id)
    assert found is not None
    return {name: json.loads(value) if name in ("metadata", "state", "result") and value else value for name, value in found.items()}


class Reader:
    """What a page does with the events of messages."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.ended: dict[str, Any] = {}

    def apply(self, event: Seen) -> None:
        if not event.type.startswith(("message.", "agent.message.")):
            return
        message = event.data.get("message", {})
        id = message.get("id") or event.data["message_id"]
        assert id not in self.ended, f"{event} after the end"
        if "text" in message:
            self.texts[id] = message["text"]
        elif "delta" in event.data:
            offset = event.data["offset"]
            assert len(self.texts[id]) >= offset, f"a hole before {event}"
            self.texts[id] = self.texts[id][:offset] + event.data["delta"]
        if event.type in ("message.completed", "message.failed"):
            self.ended[id] = message


async def follow(stream: Stream, ends: int = 1) -> Reader:
    reader = Reader()
    while len(reader.ended) < ends:
        event = await stream.next()
        assert event, "the stream ended"
        reader.apply(event)
    return reader


class Broken(Exception):
    pass


PROGRAM = """
import asyncio, sys
from rowcast_writer import Lost, Writer

database, session, seconds, lease, goes_on = sys.argv[1:]

async def pipeline(rows):
    try:
        async with rows.message(session) as message:
            await message.write("half")
            print("begun", flush=True)
            while goes_on == "True":
                await asyncio.sleep(0.01)
                await message.write(".")
            await asyncio.Event().wait()
    except Lost as lost:
        print(f"{lost.reason}: the lease ran out", flush=True)

async def main():
    rows = Writer(database, interval=min(60, float(lease) / 10), lease=float(lease))
    task = asyncio.create_task(pipeline(rows))
    await asyncio.wait([task], timeout=float(seconds))

asyncio.run(main())
"""


@asynccontextmanager
async def program(
    database: str, session: str, seconds: float, lease: float = 600, goes_on: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A pipeline in a process of its own, that has begun."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", PROGRAM, database, session, str(seconds), str(lease), str(goes_on)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert await process.stdout.readline() == b"begun\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Wire:
    """A database at the end of a bad wire."""

    def __init__(self, pool: asyncpg.Pool, seed: int | None = None) -> None:
        self._database = AsyncpgPool(pool)
        self._random = random.Random(seed)
        self.is_cut = False
        self.fault_rate = 0.0
        self.late: set[asyncio.Task[Any]] = set()
        self.held_back: str | None = None
        """The next call with this in its arguments seems to fail, and is done when `released` is called."""
        self.paused: str | None = None
        """Calls with this in their text wait for `resumed`."""
        self.resumed = asyncio.Event()
        self.unanswered: str | None = None
        """Calls with this in their text are done, and nobody is told before `resumed`."""

    async def call(self, query: str, *arguments: object) -> Sequence[Sequence[Any]]:
        if self.is_cut:
            raise Away("the wire is cut")
        if self.unanswered and self.unanswered in query:
            answer = await self._database.call(query, *arguments)
            await self.resumed.wait()
            return answer
        if self.paused and self.paused in query:
            await self.resumed.wait()
        if self.held_back and self.held_back in str(arguments[0]):
            self.held_back = None
            self._held = (query, *arguments)
            raise Away("it takes too long")
        if self._random.random() >= self.fault_rate:
            return await self._database.call(query, *arguments)
        match self._random.randrange(3):
            case 0:
                raise Away("nothing was sent")
            case 1:
                await self._database.call(query, *arguments)
                raise Away("the answer was lost")
            case _:
                # Done later, when others have been done that were asked after it.
                task = asyncio.create_task(self._late(query, *arguments))
                self.late.add(task)
                raise Away("it takes too long")

    async def released(self) -> None:
        """Do what was held back."""
        await self._database.call(*self._held)

    async def _late(self, query: str, *arguments: object) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.1))
        await self._database.call(query, *arguments)

    def forget(self) -> None:
        pass

    async def close(self) -> None:
        await asyncio.gather(*self.late)


def at_the_end_of(wire: Wire, **options: Any) -> RowWriter:
    rows = RowWriter("postgresql://", **{"interval": 0.02, "lease": 30.0, "patience": 10.0, **options})
    rows._flusher.database = wire
    return rows
