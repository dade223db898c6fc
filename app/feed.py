"""The feed: one way for connect, reconnect and slow client. A follower is catching up, or live.

Catching up is a short task: read the log after the follower's position, write, wait until the sink has
drained, repeat. Once its position has reached the hub's it is live and the task ends; the check and the
switch are one synchronous step, so nothing slips between.
"""

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import Protocol
from weakref import WeakValueDictionary

from .access import Access
from .batching import Window
from .burst import Burst
from .database import TROUBLE, explain
from .errors import DatabaseUnavailable, RowcastError, TooMany
from .events import OF_ITSELF, Cursor, Event, Position, Topic, Topics
from .follower import Follower
from .hub import Hub
from .limits import Limits
from .log import Log
from .sinks import Sink
from .state import State
from .wish import From, Joining, Start, Wish

logger = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.1, 5.0
STALE_KEEPALIVES = 12
TURN = 100
"""Clients that get a keep-alive in one turn of the loop: events do not wait for all of them."""


class Client(Protocol):
    """Whoever is connected: told when the process ends, and that it still lives."""

    topics: Topics

    @property
    def subject(self) -> str | None: ...
    def keep_alive(self, cursor: Cursor | None) -> None: ...
    def bye(self, retry: int) -> None: ...


class Feed:
    """Brings followers from where they are to live, and knows all clients that are connected."""

    def __init__(
        self, hub: Hub, log: Log, state: State, limits: Limits, recent: timedelta, recent_events: int, retry: float, expiring: float
    ) -> None:
        self.hub = hub
        self.limits = limits
        self.expiring = expiring
        self.log = log
        self.state = state
        self._recent = recent
        self._recent_events = recent_events
        self._retry = retry
        self._clients: set[Client] = set()
        self._windows: WeakValueDictionary[int, Window] = WeakValueDictionary()
        self._emptied = asyncio.Event()
        self._identified = asyncio.Event()
        self._closing = False
        self._samples: deque[Position] = deque([Position(0)], maxlen=STALE_KEEPALIVES)
        hub.on_identified = self._identified.set

    def __repr__(self) -> str:
        return f"<Feed {len(self._clients)} clients{', closing' if self._closing else ''}>"

    def retry(self) -> int:
        """Milliseconds after which a client is to reconnect, spread so that they do not all come at once."""
        return int(1000 * self._retry * random.uniform(0.5, 1.5))

    @property
    def clients(self) -> int:
        return len(self._clients)

    def follow(self, topics: Topics, wish: Wish, sink: Sink, access: Access | None, start: Start | None = None) -> Follower:
        """A new client: it is told from where on, what it missed, and what comes, as long as it may."""
        follower = Follower(self, topics, wish, sink, access)
        try:
            self.limits.room(follower.subject, () if follower.doubtful else topics)  # many may have been let in at once
        except TooMany as error:
            follower.refuse(error)
            return follower
        if start is not None:
            follower.begin(start)
        self.add(follower)
        if not follower.closed:
            follower.catch_up()
        return follower

    def window(self, milliseconds: int) -> Window:
        window = self._windows.get(milliseconds)
        if window is None:
            window = self._windows[milliseconds] = Window(milliseconds)
        return window

    def add(self, client: Client) -> None:
        self._clients.add(client)
        self.limits.enter(client, client.subject, client.topics)
        self._emptied.clear()
        if self._closing:
            client.bye(self.retry())

    def remove(self, client: Client) -> None:
        self._clients.discard(client)
        self.limits.leave(client)
        if not self._clients:
            self._emptied.set()

    async def keep_alive(self, interval: float) -> None:
        """One timer for all clients."""
        while True:
            await asyncio.sleep(interval)
            self._samples.append(self.hub.position)
            clients = list(self._clients)
            while clients:
                self._keep_alive(clients[-TURN:])
                del clients[-TURN:]
                await asyncio.sleep(0)

    def _keep_alive(self, clients: list[Client]) -> None:
        cursor = self.hub.cursor(self.hub.position) if self.hub.lineage else None
        for client in clients:
            client.keep_alive(cursor)

    def stale(self, position: Position) -> bool:
        """Whether the hub was beyond this position some keep-alives ago already: a quiet client that
        stayed there would fall below the floor one day."""
        return position < self._samples[0]

    async def drain(self, seconds: float) -> None:
        """Say bye to everybody, and wait until they are gone or the time is over."""
        self._closing = True
        self._identified.set()  # nobody is to wait for a database any more
        for client in tuple(self._clients):
            client.bye(self.retry())
        if self._clients:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()

    async def locate(self, topics: Topics, after: Cursor | None, since: From) -> Start:
        """Where a client begins. Waits until the hub knows its log."""
        await self._identified.wait()
        hub = self.hub
        if not hub.lineage:
            raise DatabaseUnavailable("this process ends")
        start = await self._resume(after) if after is not None else None
        if since == "snapshot" and start is not None and start.position < (await self.log.bounds()).floor:
            start = Start(hub.position, "truncated", "truncated")
        if since == "snapshot" and (start is None or start.lost):
            return await self._snapshot(topics, start)
        if start is not None:
            return start
        if since == "now":
            return Start(hub.position, "new")
        if since == "start":
            return Start((await self.log.bounds()).floor, "new")
        return Start(await self.log.recent(topics, hub.position, self._recent, self._recent_events), "new")

    async def _resume(self, after: Cursor) -> Start:
        hub = self.hub
        position = hub.lineage.locate(after)
        if position is None:
            return Start(hub.position, "reset", "epoch")
        if position > hub.position and position > (await self.log.bounds()).head:
            return Start(hub.position, "reset", "ahead")
        return Start(position, "resumed")

    async def _snapshot(self, topics: Topics, lost: Start | None) -> Start:
        """The state, and the position up to which it holds all that happened."""
        state = await self.state.of(topics[0])
        position = self.hub.lineage.locate(state.cursor)
        if position is None:
            raise DatabaseUnavailable("the log has a new identity")
        if lost is None:
            return Start(position, "new", snapshot=state.body)
        return Start(position, lost.reason, lost.lost, state.body)

    def known(self, cursor: Cursor) -> Position | None:
        """Where a cursor is in the log as this process knows it."""
        return self.hub.lineage.locate(cursor) if self.hub.lineage else None

    async def ended(self, topics: Topics, after: Cursor) -> bool:
        """Whether a client that follows to the end, and has got as far as this cursor, has everything. Where it is
        about one thing, that is so when that ended, and nothing was told of it itself since."""
        hub, position = self.hub, self.known(after)
        if position is None:
            return False
        if len(topics) == 1 and topics[0].kind in OF_ITSELF:
            outcome = await self._outcome(topics[0], position)
            return outcome is not None and outcome.ends is not None and outcome.position <= position
        event = await self.log.event_at(Cursor(hub.lineage.epoch, position), topics)
        return event is not None and event.ends is not None

    async def _outcome(self, topic: Topic, position: Position) -> Event | None:
        """What was told last of a job or request itself."""
        return await self.log.outcome(self.hub.lineage.epoch, topic, max(self.hub.position, position))

    async def catch_up(self, follower: Follower) -> None:
        """Until it is live or gone. A database that is away is waited for: the client stays connected."""
        hub, delay = self.hub, RETRY_FIRST
        while not follower.closed:
            try:
                if follower.access and follower.access.doubtful:
                    await follower.access.ask()
                elif not follower.located:
                    await self._locate(follower)
                elif hub.lineage.locate(Cursor(follower.epoch, follower.position)) is None:
                    follower.reset("epoch")
                elif follower.may_have_ended:
                    await self._end_if_over(follower)
                elif follower.joining:
                    await self._join_topic(follower, follower.joining[0])
                elif self._join(follower):
                    return
                else:
                    await self._read(follower)
                delay = RETRY_FIRST
            except TROUBLE as error:
                logger.debug("%r: %s", follower, explain(error))
                await asyncio.sleep(random.uniform(delay / 2, delay))
                delay = min(delay * 2, RETRY_LAST)
            except RowcastError as error:
                follower.refuse(error)
            except Exception:
                logger.exception("%r failed", follower)
                follower.fail("internal error")

    async def _locate(self, follower: Follower) -> None:
        wish = follower.wish
        if wish.since == "snapshot" and wish.admission:
            await wish.admission.ask()
        start = await self.locate(follower.topics, wish.after, wish.since)
        if start.snapshot and follower.access:
            await follower.access.ask()  # the state may be of after a loss that we have yet to hear of
        follower.begin(start)

    async def _end_if_over(self, follower: Follower) -> None:
        epoch, outcome = self.hub.lineage.epoch, None
        if follower.follows in OF_ITSELF:
            outcome = await self._outcome(follower.topics[0], follower.position)
            over = outcome is not None and outcome.ends is not None and outcome.position <= follower.position
        else:
            over = follower.wish.after is not None and await self.ended(follower.topics, follower.wish.after)
        if epoch == self.hub.lineage.epoch and not (follower.closed or follower.doubtful):
            follower.may_have_ended = False
            follower.ends_from = outcome.position if outcome else Position(0)
            if over:
                follower.end()

    def _join(self, follower: Follower) -> bool:
        """Switch to live if nothing is missing: the check and the switch are one step, without an await."""
        hub = self.hub
        if follower.position < hub.position:
            return False
        follower.live()
        hub.join(follower)
        return True

    async def _read(self, follower: Follower) -> None:
        """One batch of what is missing, once the client has taken what was written before."""
        await follower.sink.drained()
        hub, topics = self.hub, follower.topics
        epoch = hub.lineage.epoch
        batch = await self.log.read(epoch, follower.position, hub.position, topics)
        burst = batch.burst and await self._admitted(follower, batch.burst)
        if hub.lineage.epoch != epoch or follower.closed or follower.doubtful or follower.topics is not topics:
            return
        if batch.pruned:
            follower.reset("truncated")
            return
        follower.greet()
        if burst is not None:
            follower.write(burst)
        follower.position = batch.position

    async def _admitted(self, follower: Follower, burst: Burst) -> Burst | None:
        """As much of it as the client may be told."""
        admission = follower.wish.admission
        if admission is None or not admission.doubts(burst.events):
            return burst
        await admission.ask()
        events = admission.told(burst.events)
        return Burst(events) if events else None

    async def _join_topic(self, follower: Follower, joining: Joining) -> None:
        """What a new topic has up to the position of all the others, which stay there meanwhile."""
        follower.greet()
        hub = self.hub
        topic = (joining.topic,)
        epoch, upto = hub.lineage.epoch, follower.position
        start = await self.locate(topic, joining.after, joining.since)
        position = start.position
        while position < upto and hub.lineage.epoch == epoch and not start.lost:
            await follower.sink.drained()
            batch = await self.log.read(epoch, position, upto, topic)
            if batch.pruned:
                start = Start(position, "truncated", "truncated")
            elif not (follower.closed or follower.doubtful) and joining in (follower.joining or ()):
                follower.write_earlier(batch.events)
                position = batch.position
            else:
                return
        if hub.lineage.epoch == epoch and not follower.doubtful and joining in (follower.joining or ()):
            follower.joined(joining, start.lost)
