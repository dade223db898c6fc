"""The listener: one LISTEN connection, from which the hub gets every event, in order.

LISTEN first, then read the log up to its head, then live. Positions have no gaps, so a notification
that is not the next one means: read the log. Losing any notification costs latency, never an event.

Any role can LISTEN and NOTIFY on a channel that it can name. Events come on one whose name only the hub's role
can read. A schema before version 6 has none, and sends them on `rowcast`: what is heard there is never told to
anybody, and only makes us ask the log.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable

import msgspec

from . import schema
from .database import TROUBLE, Connection, connected, explain
from .errors import DatabaseUnavailable, NotificationsLost, StandbyServer
from .events import Event, Notice, Position, decode_notice
from .hub import Hub
from .log import Log, head, identify
from .sequencer import DOORBELL_CHANNEL

logger = logging.getLogger(__name__)

PUBLIC_CHANNEL = "rowcast"
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 5.0
DOUBT_PAUSE = 0.1
"""How long we rest when we were told that there is something new, asked, and there was nothing: anybody can say so."""
DROP_SILENCE = 60.0
"""Seconds between two lines about notifications that were dropped."""

_LOOK = "SELECT (SELECT epoch FROM rowcast.epoch ORDER BY id DESC LIMIT 1), (SELECT max(position) FROM rowcast.head)"


class Listener:
    def __init__(self, url: str, log: Log, hub: Hub, heartbeat: float, on_doorbell: Callable[[str], None]) -> None:
        self._url = url
        self._log = log
        self._hub = hub
        self._heartbeat = heartbeat
        self._on_doorbell = on_doorbell
        self._beat_channel = f"rowcast_beat_{secrets.token_hex(8)}"
        self._heard = asyncio.Event()
        self._behind = asyncio.Event()
        self._doubt = asyncio.Event()
        self._channel = PUBLIC_CHANNEL
        self._epoch = ""
        self._head = Position(0)
        """Where the log ended when we last asked."""
        self._reading = True
        self._arrived: list[Event] = []
        """Events that came in this turn of the loop, the ones after the hub's position."""
        self._told = Position(0)
        """The highest position that a notification spoke of."""
        self._silent_until = 0.0
        self.dropped = 0
        """Notifications that made no sense."""
        self.reconnects = 0
        self.trouble: str | None = "not connected yet"

    def __repr__(self) -> str:
        return f"<Listener {self.trouble or 'live'} at {self._hub.position}, {self.reconnects} reconnects, {self.dropped} dropped>"

    async def run(self) -> None:
        backoff = BACKOFF_FIRST
        while True:
            try:
                await self._connected()
            except TROUBLE as error:
                if self.trouble is None:  # it was up
                    backoff = BACKOFF_FIRST
                self._report(explain(error))
            self.reconnects += 1
            await asyncio.sleep(random.uniform(backoff / 2, backoff))
            backoff = min(backoff * 2, BACKOFF_LAST)

    def _report(self, trouble: str | None) -> None:
        """One line a change of state, however often we try."""
        if trouble != self.trouble:
            if trouble is None:
                logger.info("listener: live at position %d", self._hub.position)
            else:
                logger.warning("listener: %s", trouble)
        self.trouble = trouble

    async def _connected(self) -> None:
        async with connected(self._url, "rowcast listener") as connection:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await self._listen(connection)
            work = {"heartbeat": self._beat(connection), "log": self._read_behind(), "connection": self._end(lost)}
            tasks = [asyncio.create_task(run, name=f"listener: {name}") for name, run in work.items()]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, lost: asyncio.Event) -> None:
        await lost.wait()
        raise DatabaseUnavailable("the LISTEN connection ended")

    async def _listen(self, connection: Connection) -> None:
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise StandbyServer(StandbyServer.__doc__)
        await schema.check(connection)
        self._reading = True  # what is heard from here on waits for the log to be read
        self._channel = await _find_channel(connection)
        await connection.add_listener(self._channel, self._on_event)
        await connection.add_listener(DOORBELL_CHANNEL, lambda *a: self._on_doorbell(str(a[3])))
        await connection.add_listener(self._beat_channel, lambda *_: self._heard.set())
        await self._probe(connection)
        await self._identify(connection)
        self._on_doorbell("")  # nobody may have heard those that rang while we were away

    async def _probe(self, connection: Connection) -> None:
        """A NOTIFY round trip: proves that the connection lives and that notifications arrive on it."""
        self._heard.clear()
        await connection.execute("SELECT pg_notify($1, '')", self._beat_channel, timeout=self._heartbeat)
        try:
            async with asyncio.timeout(self._heartbeat):
                await self._heard.wait()
        except TimeoutError:
            raise NotificationsLost(" ".join((NotificationsLost.__doc__ or "").split())) from None

    async def _identify(self, connection: Connection) -> None:
        lineage = await identify(connection)
        if lineage.epoch != self._epoch:
            self._epoch, self._told = lineage.epoch, Position(0)
        # Read last: what was notified before we knew the epoch, and so not understood, is not above it.
        self._head = await head(connection)
        self._hub.identify(lineage, self._head)
        self._told = Position(max(self._told, self._head))
        self._behind.set()

    async def _beat(self, connection: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(self._heartbeat):
                    await self._doubt.wait()
            except TimeoutError:
                await self._probe(connection)
            asked = self._doubt.is_set()
            self._doubt.clear()  # what is heard from here on may be of after this look
            grown = await self._look(connection)
            if asked and not grown:
                await asyncio.sleep(DOUBT_PAUSE)

    async def _look(self, connection: Connection) -> bool:
        """Ask the database itself; whether the log has grown since we last did. If nothing follows a notification
        that is lost, this finds what it told of."""
        if await _find_channel(connection, self._heartbeat) != self._channel:
            raise DatabaseUnavailable("events are sent on another channel now")
        epoch, end = await connection.fetchrow(_LOOK, timeout=self._heartbeat) or (None, Position(0))
        if epoch != self._epoch:
            raise DatabaseUnavailable("the log has a new identity")
        grown, self._head = end > self._head, Position(end)
        self._hear_of(self._head)
        return grown

    def _on_event(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        """Called by the driver for each notification; it must not block."""
        notice = self._understood(str(payload))
        if notice is None:
            return
        said = Position(max(notice.position, notice.upto))
        if channel == PUBLIC_CHANNEL:
            if said > self._head:
                self._doubt.set()
            return
        self._told = Position(max(self._told, said))
        here = self._hub.position + len(self._arrived)
        if self._reading or self._told <= here:
            return
        event = notice.event() if notice.position == here + 1 else None
        if event is not None:
            if not self._arrived:
                asyncio.get_running_loop().call_soon(self._publish)
            self._arrived.append(event)
        else:
            self._read_on()

    def _understood(self, payload: str) -> Notice | None:
        try:
            notice = decode_notice(payload)
        except msgspec.MsgspecError:
            self._drop("that is not ours")
            return None
        except RecursionError:
            self._drop("that is nested too deep for Python")
            self._doubt.set()  # the log has it as text
            return None
        if notice.epoch == self._epoch:
            return notice
        if self._epoch:  # else we do not know it yet
            self._drop("of another log")
        self._doubt.set()
        return None

    def _drop(self, which: str) -> None:
        """Whoever floods us does not flood the log, and writes nothing into it."""
        self.dropped += 1
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + DROP_SILENCE
            logger.warning("listener: dropped a notification %s, %d so far", which, self.dropped)

    def _hear_of(self, position: Position) -> None:
        """The log goes up to here."""
        self._told = Position(max(self._told, position))
        if not self._reading and self._told > self._hub.position + len(self._arrived):
            self._read_on()

    def _read_on(self) -> None:
        self._publish()
        self._reading = True
        self._behind.set()

    def _publish(self) -> None:
        """All that came together goes to a client in one write."""
        if self._arrived:
            events, self._arrived = self._arrived, []
            self._hub.publish(events)

    async def _read_behind(self) -> None:
        """Whenever a notification was not simply the next event: read the log until nothing is missing."""
        while True:
            await self._behind.wait()
            self._behind.clear()
            while self._hub.position < self._told:
                # What is heard from here on counts anew: it may be of after this read.
                upto, self._told = self._told, self._hub.position
                batch = await self._log.read(self._epoch, self._hub.position, upto)
                if batch.pruned:
                    bounds = await self._log.bounds()
                    self._hub.skip(bounds.floor)
                    self._told = Position(max(self._told, upto))
                    continue
                if batch.events:
                    self._hub.publish(batch.events)
                if not batch.complete:
                    self._told = Position(max(self._told, upto))
                await asyncio.sleep(0)
            self._reading = False
            self._report(None)


async def _find_channel(connection: Connection, timeout: float | None = None) -> str:
    """On which this schema sends events."""
    if await connection.fetchval("SELECT to_regclass('rowcast.secret') IS NULL", timeout=timeout):
        return PUBLIC_CHANNEL
    channel: str | None = await connection.fetchval("SELECT channel FROM rowcast.secret", timeout=timeout)
    if channel is None:
        raise DatabaseUnavailable("the channel of events has no name: rowcast.secret is empty")
    return channel
