"""The feed: one way for connect, reconnect and slow client. A follower is catching up, or live.

Catching up is a short task: read the log after the follower's position, write, wait until the sink has
drained, repeat. Once its position has reached the hub's it is live and the task ends; the check and the
switch are one synchronous step, so nothing slips between.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, Protocol

import msgspec

from .database import TROUBLE, explain
from .events import Cursor, Event, Format, Position, Topic, Types, sse, sse_message
from .hub import Hub
from .log import Log

logger = logging.getLogger(__name__)

From = Literal["recent", "start", "now"]
Reason = Literal["new", "resumed", "truncated", "reset"]

RETRY_FIRST, RETRY_LAST = 0.1, 5.0
STALE_KEEPALIVES = 12


class Sink(Protocol):
    """Where a transport puts a follower's bytes. Its buffer is bounded by whoever writes, who looks at `full`."""

    @property
    def full(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    async def drained(self) -> None:
        """Returns once all has been handed on, or the client is gone."""

    def close(self) -> None:
        """End the stream, after what was written."""


class AsgiSink:
    """Bytes for one ASGI response: joined to one chunk each time the server takes some."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: list[bytes] = []
        self._buffered = 0
        self._closed = False
        self._written = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def __repr__(self) -> str:
        return f"<AsgiSink {self._buffered} bytes{', closed' if self._closed else ''}>"

    @property
    def full(self) -> bool:
        return self._buffered >= self._limit

    def write(self, data: bytes) -> None:
        if not self._closed:
            self._pending.append(data)
            self._buffered += len(data)
            self._written.set()
            self._drained.clear()

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self) -> None:
        self._closed = True
        self._written.set()

    def discard(self) -> None:
        """The client is gone: nobody is to wait for it."""
        self.close()
        self._pending.clear()
        self._drained.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await self._written.wait()
            self._written.clear()
            if self._pending:
                data = b"".join(self._pending)
                self._pending.clear()
                yield data  # returns when the server has room for more
                self._buffered -= len(data)
            if not self._pending:
                self._drained.set()
                if self._closed:
                    return


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for: where to begin, and what it wants to see."""

    after: Cursor | None = None
    since: From = "recent"
    types: Types = field(default_factory=Types)
    format: Format = "event"
    until_end: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    position: Position
    reason: Reason
    lost: str | None = None
    """Why the cursor could not be honoured, if so."""


class Client(Protocol):
    """Whoever is connected: told when the process ends, and that it still lives."""

    def keep_alive(self) -> None: ...
    def bye(self, retry: int) -> None: ...


class Follower:
    """One client that follows one topic over a stream, and what it is told: server-sent events."""

    def __init__(self, feed: "Feed", topic: Topic, wish: Wish, sink: Sink) -> None:
        self._feed = feed
        self.topic = topic
        self.wish = wish
        self.sink = sink
        self.position = Position(0)
        self.epoch = ""
        """In which the position counts, while it catches up."""
        self._start: Start | None = None
        self._greeted = False
        self._caught_up = False
        self.closed = False
        self._catching_up: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else "catching up" if self._catching_up else "live"
        return f"<Follower of {self.topic} at {self.position}, {state}, {self.sink}>"

    @property
    def full(self) -> bool:
        return self.sink.full

    @property
    def located(self) -> bool:
        return self._start is not None

    def open(self) -> None:
        self.sink.write(b"retry: %d\n" % self._feed.retry())  # `connected` completes the block
        self.catch_up()

    def catch_up(self) -> None:
        self._catching_up = asyncio.create_task(self._feed.catch_up(self), name=f"catch up {self.topic}")

    def begin(self, start: Start) -> None:
        self._start = start
        self._move(start.position)

    def greet(self) -> None:
        """`connected`, once: its id is our position, never the head, or a cut before the catch-up would lose events."""
        if self._greeted or self._start is None:
            return
        self._greeted = True
        cursor = self._feed.cursor(self.position)
        self._tell(
            "connected",
            {
                f"{self.topic.kind}_id": self.topic.id,
                "timestamp": time.time(),
                "cursor": str(cursor),
                "resumed": self._start.reason == "resumed",
                "reason": self._start.reason,
            },
            cursor,
        )
        if self._start.lost:
            self._tell_reset(self._start.lost)

    def deliver(self, event: Event) -> None:
        if self.closed:
            return
        if event.type in self.wish.types:
            self.sink.write(event.frame(self.wish.format))
        if self.wish.until_end and event.terminal:
            self._tell("end", {f"{self.topic.kind}_id": self.topic.id, "cursor": str(event.cursor)}, event.cursor)
            self.close()

    def lagged(self) -> None:
        self._move(self.position)
        self.catch_up()

    def reset(self, reason: str) -> None:
        """Its position cannot be honoured: it goes on live from the hub's, and rereads the state."""
        if self._greeted:
            self._move(self._feed.hub.position)
            self._tell_reset(reason)
        else:
            self.begin(Start(self._feed.hub.position, "truncated" if reason == "truncated" else "reset", reason))

    def live(self) -> None:
        self.greet()
        self._catching_up = None
        if not self._caught_up:
            self._caught_up = True
            cursor = self._feed.cursor(self.position)
            self._tell("caught_up", {"cursor": str(cursor)}, cursor)

    def keep_alive(self) -> None:
        """A comment; for live clients also the hub's position, so that a quiet one never falls below the floor."""
        if self.closed or self.full:
            return
        if self._catching_up is None:
            self.position = Position(max(self.position, self._feed.hub.position))
            self.sink.write(b": keep-alive\nid: %b\n\n" % str(self._feed.cursor(self.position)).encode())
        else:
            self.sink.write(b": keep-alive\n\n" if self._greeted else b": keep-alive\n")

    def bye(self, retry: int) -> None:
        """The process ends; the client comes back to another one, or later."""
        self.sink.write(b"retry: %d\n" % retry)
        self._tell("bye", {"retry": retry})
        self.close()

    def fail(self, problem: str) -> None:
        self._tell("error", {"error": problem, f"{self.topic.kind}_id": self.topic.id})
        self.close()

    def close(self) -> None:
        """No more events; the sink ends after what was written."""
        self.closed = True
        self._feed.hub.leave(self)
        self.sink.close()

    def gone(self) -> None:
        """The response has ended, whoever ended it."""
        self.close()
        if self._catching_up is not None:
            self._catching_up.cancel()

    def _move(self, position: Position) -> None:
        self.position = position
        self.epoch = self._feed.hub.lineage.epoch

    def _tell_reset(self, reason: str) -> None:
        cursor = self._feed.cursor(self.position)
        self._tell("reset", {"reason": reason, "cursor": str(cursor)}, cursor)

    def _tell(self, type: str, data: dict[str, object], cursor: Cursor | None = None) -> None:
        encode = sse_message if self.wish.format == "message" else sse
        self.sink.write(encode(type, msgspec.json.encode(data), cursor))


class Feed:
    """Brings followers from where they are to live, and knows all clients that are connected."""

    def __init__(self, hub: Hub, log: Log, recent: timedelta, recent_events: int, retry: float) -> None:
        self.hub = hub
        self.log = log
        self._recent = recent
        self._recent_events = recent_events
        self._retry = retry
        self._clients: set[Client] = set()
        self._emptied = asyncio.Event()
        self._identified = asyncio.Event()
        self._closing = False
        self._samples: deque[Position] = deque([Position(0)], maxlen=STALE_KEEPALIVES)
        hub.on_identified = self._identified.set

    def __repr__(self) -> str:
        return f"<Feed {len(self._clients)} clients{', closing' if self._closing else ''}>"

    def cursor(self, position: Position) -> Cursor:
        return Cursor(self.hub.lineage.epoch, position)

    def retry(self) -> int:
        """Milliseconds after which a client is to reconnect, spread so that they do not all come at once."""
        return int(1000 * self._retry * random.uniform(0.5, 1.5))

    def add(self, client: Client) -> None:
        self._clients.add(client)
        self._emptied.clear()
        if self._closing:
            client.bye(self.retry())

    def remove(self, client: Client) -> None:
        self._clients.discard(client)
        if not self._clients:
            self._emptied.set()

    async def keep_alive(self, interval: float) -> None:
        """One timer for all clients."""
        while True:
            await asyncio.sleep(interval)
            self._samples.append(self.hub.position)
            for client in tuple(self._clients):
                client.keep_alive()

    def stale(self, position: Position) -> bool:
        """Whether the hub was beyond this position some keep-alives ago already: a quiet client that
        stayed there would fall below the floor one day."""
        return position < self._samples[0]

    async def drain(self, seconds: float) -> None:
        """Say bye to everybody, and wait until they are gone or the time is over."""
        self._closing = True
        for client in tuple(self._clients):
            client.bye(self.retry())
        if self._clients:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()

    async def locate(self, topic: Topic, after: Cursor | None, since: From) -> Start:
        """Where a client begins. Waits until the hub knows its log."""
        await self._identified.wait()
        hub = self.hub
        if after is not None:
            position = hub.lineage.locate(after)
            if position is None:
                return Start(hub.position, "reset", "epoch")
            if position > hub.position and position > (await self.log.bounds()).head:
                return Start(hub.position, "reset", "ahead")
            return Start(position, "resumed")
        if since == "now":
            return Start(hub.position, "new")
        if since == "start":
            return Start((await self.log.bounds()).floor, "new")
        return Start(await self.log.recent(topic, hub.position, self._recent, self._recent_events), "new")

    async def catch_up(self, follower: Follower) -> None:
        """Until it is live or gone. A database that is away is waited for: the client stays connected."""
        delay = RETRY_FIRST
        while not follower.closed:
            try:
                if not follower.located:
                    follower.begin(await self.locate(follower.topic, follower.wish.after, follower.wish.since))
                if self._join(follower):
                    return
                await self._read(follower)
                delay = RETRY_FIRST
            except TROUBLE as error:
                logger.debug("%r: %s", follower, explain(error))
                await asyncio.sleep(random.uniform(delay / 2, delay))
                delay = min(delay * 2, RETRY_LAST)
            except Exception:
                logger.exception("%r failed", follower)
                follower.fail("internal error")

    def _join(self, follower: Follower) -> bool:
        """Switch to live if nothing is missing: the check and the switch are one step, without an await."""
        hub = self.hub
        position = hub.lineage.locate(Cursor(follower.epoch, follower.position))
        if position is None:
            follower.reset("epoch")
        elif position < hub.position:
            return False
        follower.live()
        hub.join(follower)
        return True

    async def _read(self, follower: Follower) -> None:
        """One batch of what is missing, written and taken by the client's side."""
        hub = self.hub
        epoch = hub.lineage.epoch
        batch = await self.log.read(epoch, follower.position, hub.position, follower.topic)
        if hub.lineage.epoch != epoch or follower.closed:
            return
        if batch.pruned:
            follower.reset("truncated")
            return
        follower.greet()
        for event in batch.events:
            follower.deliver(event)
        follower.position = batch.position
        await follower.sink.drained()
