"""The sequencer: wakes on the doorbell when quiet, polls when busy, as network drivers do.

While it polls it holds DOORBELL, so that writers stay silent: a transaction that NOTIFYs takes a
lock of the whole cluster at commit. Every process runs one; whoever has SEQUENCER works.
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

import asyncpg

from .database import TROUBLE, Connection, connected, explain

logger = logging.getLogger(__name__)

# Advisory locks; 3 (sequence) and 4 (prune) are taken inside the functions, 5 by migrations.
SEQUENCER = "7499639, 1"
DOORBELL = "7499639, 2"

DOORBELL_CHANNEL = "rowcast_doorbell"
HANDOVER = "handover"
"""The doorbell's payload when a process that was polling ends."""

FIRST_LIMIT, LAST_LIMIT = 2000, 50_000
"""Rows a call. It grows while calls come back full, or a backlog would take quadratic time."""

BUSY_EVENTS, QUIET_EVENTS, WINDOW = 20, 5, 0.1
"""Busy: this many events within so many seconds; quiet: fewer than the second. Rounds would not do: where
many writers ring, a call waits for their NOTIFY lock, and each round finds more."""

POLL_INTERVAL, POLL_INTERVALS, POLL_MOST = 0.001, 2, 0.01
"""We rest that long for each event that the last look found, up to so many: few events are to arrive soon,
many are cheaper together. And as long as the look took, up to POLL_MOST, so that others get the processor too."""

WITNESS_INTERVAL = 0.02
SECOND_LOOK = 0.1
PING_INTERVAL, PING_TIMEOUT = 1.0, 2.0
CALL_TIMEOUT = 10.0
"""After which a connection counts as half open. A call that is too slow for it is tried again with fewer rows."""

RECONNECT = 0.25
BELL_PATIENCE = 1.0

# So that the locks of a process that is frozen or cut off are free within 5 s.
SERVER_SETTINGS = {
    "idle_session_timeout": "5000",
    "idle_in_transaction_session_timeout": "5000",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "statement_timeout": "8000",  # below CALL_TIMEOUT: what we give up, the server gives up too
    "plan_cache_mode": "force_generic_plan",
}

_SEQUENCE = "SELECT rowcast.sequence($1)"
_SEQUENCE_IF_FREE = f"SELECT CASE WHEN pg_try_advisory_lock({SEQUENCER}) THEN rowcast.sequence($1) END"

# Who may have looked at the bell while it was silent. A writer takes this lock before it looks, and
# its rows are visible before it gives the lock back; a prepared transaction has no process.
_WITNESSES = """
    SELECT virtualtransaction FROM pg_locks
     WHERE relation = 'rowcast.outbox'::regclass AND mode = 'RowExclusiveLock' AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND pid IS NOT NULL AND pid <> pg_backend_pid()
"""


class Sequencer:
    """Gives outbox rows their positions. `ring()` wakes it."""

    def __init__(self, url: str, tick: float) -> None:
        self._url = url
        self._tick = tick
        self._rung = asyncio.Event()
        self._recent: deque[float] = deque(maxlen=BUSY_EVENTS)
        """When the last events were sequenced."""
        self._bell_wanted_since: float | None = None
        self._limit = FIRST_LIMIT
        """With how many rows a drain begins: fewer after a call that took too long."""
        self._stopping = False
        self._inherits = False
        """Whether another process may have been polling before us: its witnesses are ours then."""
        self.polling = False
        """Whether we hold DOORBELL."""
        self.witnesses: set[str] = set()
        """Transactions that may have found the bell silent; we look for their rows until they end."""
        self.sequenced = 0
        self.trouble: str | None = "not connected yet"

    def __repr__(self) -> str:
        state = self.trouble or ("polling" if self.polling else "asleep")
        return f"<Sequencer {state}, {self.sequenced} sequenced, {len(self.witnesses)} witnesses>"

    def ring(self, payload: str = "") -> None:
        if payload == HANDOVER:
            self._inherits = True
        self._rung.set()

    def stop(self) -> None:
        """End in good order: the next writer's bell finds another process, if there is one."""
        self._stopping = True
        self._rung.set()

    async def run(self) -> None:
        while not self._stopping:
            try:
                await self._connected()
            except TROUBLE as error:
                if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
                    self._limit = max(self._limit // 4, 1)
                if self.trouble is None:
                    logger.warning("sequencer: %s", explain(error))
                self.trouble = explain(error)
                await asyncio.sleep(RECONNECT)

    async def _connected(self) -> None:
        self.polling, self.witnesses = False, set()
        async with connected(self._url, "rowcast sequencer", CALL_TIMEOUT, **SERVER_SETTINGS) as connection:
            self.ring(HANDOVER)  # whatever was rung, or was not, while we were away
            await self._serve(connection)
            if self.polling or self.witnesses:
                # Another process looks for what we would have found.
                await connection.execute(f"SELECT pg_advisory_unlock_all(), pg_notify('{DOORBELL_CHANNEL}', '{HANDOVER}')")

    async def _serve(self, connection: Connection) -> None:
        ticked = time.monotonic()
        again = False  # a second look, after somebody else had SEQUENCER: it may have been about to end
        while not self._stopping:
            rung = await self._sleep(SECOND_LOOK if again else min(PING_INTERVAL, self._tick))
            due = time.monotonic() - ticked >= self._tick
            if not (rung or due or again):
                await connection.execute("SELECT 1", timeout=PING_TIMEOUT)
                continue
            worked = await self._work(connection, unasked=due)
            again = rung and not worked
            if due:
                ticked = time.monotonic()

    async def _sleep(self, seconds: float) -> bool:
        """Whether the bell was rung before the time was over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        return self._rung.is_set()

    async def _work(self, connection: Connection, unasked: bool) -> bool:
        """Sequence all there is, polling while busy. False if another process is on it.

        SEQUENCER only saves work: on the slow tick we sequence without it (`unasked`), for whoever
        holds it may be frozen; sequence() has a lock of its own.
        """
        self._rung.clear()
        done = await self._call(connection, _SEQUENCE_IF_FREE, self._limit)
        if done is None:
            if unasked:
                await self._drain(connection)
            return False
        if done[1]:
            await self._drain(connection)
        while self._rung.is_set() or self._busy() or self._inherits:
            self._rung.clear()
            if self._inherits:
                self._inherits = False
                self.witnesses = await self._holders(connection)
            await self._drain(connection)
            if self._busy() or self.witnesses:
                await self._poll(connection)
        await connection.execute(f"SELECT pg_advisory_unlock({SEQUENCER})")
        return True

    async def _drain(self, connection: Connection) -> None:
        """Call until nothing is left; `more` also after a half-done snapshot, for that one was old."""
        limit = self._limit
        while True:
            done = await self._call(connection, _SEQUENCE, limit)
            assert done is not None
            if not done[1]:
                self._limit = FIRST_LIMIT
                return
            if done[0] == limit:
                limit = min(limit * 2, LAST_LIMIT)

    async def _call(self, connection: Connection, query: str, limit: int) -> tuple[int, bool] | None:
        try:
            done: tuple[int, bool] | None = await connection.fetchval(query, limit)
        except asyncpg.PostgresError as error:
            if error.sqlstate != "RC001":
                raise
            await connection.execute("SELECT rowcast.adopt()")  # restored or copied under our feet
            return (0, True) if query is _SEQUENCE else await self._call(connection, query, limit)
        self.trouble = None
        if done and done[0]:
            self.sequenced += done[0]
            self._recent.extend([time.monotonic()] * min(done[0], BUSY_EVENTS))
        return done

    def _busy(self) -> bool:
        return len(self._recent) == BUSY_EVENTS and time.monotonic() - self._recent[0] < WINDOW

    def _quiet(self) -> bool:
        return len(self._recent) < QUIET_EVENTS or time.monotonic() - self._recent[-QUIET_EVENTS] > WINDOW

    async def _poll(self, connection: Connection) -> None:
        """Look every few milliseconds, holding DOORBELL if it can be had, until it is quiet and all
        that may have found the bell silent are gone."""
        while not self._stopping:
            if not self.polling and self._busy():
                await self._silence(connection)
            elif self.polling and self._quiet():
                await connection.execute(f"SELECT pg_advisory_unlock({DOORBELL})")
                self.polling = False
                self.witnesses = await self._holders(connection)
            elif self.witnesses:
                self.witnesses &= await self._holders(connection)
            elif not self.polling:
                return  # the caller drains once more
            self._rung.clear()
            began, before = time.monotonic(), self.sequenced
            await self._drain(connection)
            if not self.polling and not self.witnesses and not self._busy():
                return
            await self._sleep(_rest(self.sequenced - before, time.monotonic() - began) if self.polling else WITNESS_INTERVAL)

    async def _silence(self, connection: Connection) -> None:
        self.polling = await connection.fetchval(f"SELECT pg_try_advisory_lock({DOORBELL})")
        if self.polling:
            self._bell_wanted_since = None
            return
        now = time.monotonic()
        since = self._bell_wanted_since = self._bell_wanted_since or now
        if now - since > BELL_PATIENCE:
            logger.warning("the advisory lock (%s) cannot be had: some other session holds it; writers keep ringing", DOORBELL)
            self._bell_wanted_since = now + 60

    async def _holders(self, connection: Connection) -> set[str]:
        return {row[0] for row in await connection.fetch(_WITNESSES)}


def _rest(found: int, took: float) -> float:
    return min(max(POLL_INTERVAL * min(max(found, 1), POLL_INTERVALS), took), POLL_MOST)
