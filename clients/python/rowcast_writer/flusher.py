"""The one task of a writer: gathers all rows that changed and writes them in one statement a table, again and again.

A flush need not wait for the disk: what it wrote may be lost in a crash of the database. So each row keeps what is not
stored for good and writes it again with the next flush, which changes nothing where it is there already; and one flush
a second does wait, as each does that ends a row.
"""

import asyncio
import logging
import math
import os
import random
from contextlib import suppress

from .connections import CONNECTIONS, Away, Busy, Database
from .errors import Lost, NotSaved, Refused, WriterError
from .held import Held, Write
from .statements import LOST, ORDER, start_row, write_rows

logger = logging.getLogger(__name__)

DURABLE_INTERVAL = 1.0
"""Seconds between flushes that wait for the disk."""

RENEWAL = 0.4
"""Of the lease, after which it is renewed; functions of the schema renew what is less than two thirds."""

TOOK_TOO_LONG = "57014"
"""The SQLSTATE of a statement that was cancelled, by statement_timeout maybe."""

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 2.0


class Flusher:
    """Runs while rows are held."""

    def __init__(self, database: Database, interval: float, lease: float, patience: float, buffer: int) -> None:
        self.database = database
        self.lease = lease
        self.renewal = lease * RENEWAL
        self.patience = patience
        """Seconds after which a caller is told that something is not stored."""
        self.is_closed = False
        self._interval = interval
        self._buffer = buffer
        self.flushes = 0
        self.statements = 0
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        """The process and the event loop whose rows are held."""
        self._settle()

    def _settle(self) -> None:
        self.buffered = 0
        """Code points of text that rows keep because they are not stored for good."""
        self.trouble: str | None = None
        """Why nothing can be written at the moment."""
        self._rows: dict[int, Held] = {}
        self._dirty: set[Held] = set()
        self._starts: set[asyncio.Task[None]] = set()
        self._starters = asyncio.Semaphore(CONNECTIONS - 1)  # one connection is for those that have started
        self._urgent = False
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flushed_at = self._stored_at = -math.inf
        self._is_flushing = False
        self._failures = 0
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"<Flusher {len(self._rows)} rows, {len(self._dirty)} dirty, {self.buffered} buffered, {self.trouble or 'well'}>"

    def _enter(self) -> None:
        """Belong to the process and the event loop that call, if no other has rows here."""
        home = (os.getpid(), asyncio.get_running_loop())
        if self._home == home:
            return
        if self._home and self._home[0] == home[0] and not self._home[1].is_closed() and (self._rows or self._starts):
            raise WriterError("this writer is in use in another event loop: make one for each")
        if self._home:
            self.database.forget()
            self._settle()
        self._home = home

    @property
    def rows(self) -> list[Held]:
        return list(self._rows.values())

    def hold(self, row: Held) -> None:
        self._rows[id(row)] = row
        self._ensure()

    def drop(self, row: Held) -> None:
        self._rows.pop(id(row), None)
        self._dirty.discard(row)
        row.forget()
        self._flushed.set()
        self._wake.set()

    def wake(self, row: Held, urgent: bool) -> None:
        """Something of the row changed; `urgent`: it does not wait for the interval."""
        if urgent or not self._dirty:
            self._urgent |= urgent
            self._wake.set()
        self._dirty.add(row)
        if self._task is None or self._task.done():
            self._ensure()

    @property
    def is_held_up(self) -> bool:
        """Whether a flush is under way or overdue: who writes and never waits for anything would let it wait for ever."""
        return self._is_flushing or asyncio.get_running_loop().time() - self._flushed_at > self._interval

    def is_full_for(self, row: Held) -> bool:
        """Whether there is more than may be kept, and it is this row's share too: one that cannot be written does not
        hold up the others."""
        return self.buffered > self._buffer and row.kept > self._buffer / len(self._rows)

    async def room(self, row: Held) -> None:
        """Wait until there is room for more text. NotSaved if that takes longer than our patience."""
        try:
            async with asyncio.timeout(self.patience):
                while self.is_full_for(row) and not row.error:
                    self._flushed.clear()
                    self.wake(row, urgent=False)  # what is kept may be there, and only not known to be stored
                    await self._flushed.wait()
        except TimeoutError:
            raise NotSaved(f"{row.name}: nothing could be stored for {self.patience:g} s, and no more can be kept: {row.why_not}") from None

    async def waited(self, event: asyncio.Event) -> bool:
        """Whether it happened within our patience."""
        self._ensure()
        try:
            async with asyncio.timeout(self.patience):
                await event.wait()
        except TimeoutError:
            return False
        return True

    def start(self, row: Held) -> "asyncio.Task[None]":
        """Create or take a row, trying again while the database is away. The task goes on when nobody waits for it."""
        if self.is_closed:
            raise WriterError(f"{row.name}: the writer is closed")
        self._enter()
        task = asyncio.create_task(self._start(row), name=f"start of {row.name}")
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # which is no news if nobody waits
        return task

    async def _start(self, row: Held) -> None:
        give_up = asyncio.get_running_loop().time() + self.patience
        failures = 0
        while True:
            try:
                async with self._starters:
                    answer = await start_row(self.database, row.table, row.id, row.fence, self.lease, **row.first_values)
                row.begun(answer)
                return
            except Busy as error:
                raise Refused(str(error)) from error
            except Refused as error:
                if error.code in LOST:
                    raise Lost(row.name, LOST[error.code], str(error)) from error
                raise
            except Away as error:
                failures += 1
                delay = backoff(failures)
                if asyncio.get_running_loop().time() + delay > give_up:
                    raise NotSaved(f"{row.name}: the database was away for {self.patience:g} s: {error}") from error
                self._away(error)
            await asyncio.sleep(delay)

    async def finish(self) -> None:
        """Fail what is open, wait until all that ends is stored, and close the database."""
        self.is_closed = True
        if self._home == (os.getpid(), asyncio.get_running_loop()):
            if self._starts:
                await asyncio.wait(self._starts, timeout=self.patience)
            await asyncio.gather(*(row.fail() for row in self.rows if row.final is None), return_exceptions=True)
            await asyncio.gather(*(self.waited(row.finished) for row in self.rows))
            for row in self.rows:
                self.drop(row)
            if self._task:
                self._task.cancel()
                await asyncio.wait([self._task])
            await self.database.close()

    def _ensure(self) -> None:
        if self._rows and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="rowcast writer")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            # As when a program ends: asyncio.run() cancels all tasks, and those that hold a row want to end it.
            if any(row.final is not None for row in self._rows.values()):
                self._ensure()
        elif error := task.exception():
            logger.error("the writer's flusher died", exc_info=error)
            for row in self.rows:
                row.lose(WriterError(f"{row.name}: the writer's flusher died: {error!r}"))
                self.drop(row)

    async def _run(self) -> None:
        while self._rows:
            self._wake.clear()
            delay = self._delay()
            if delay <= 0:
                self._is_flushing = True
                try:
                    await self._flush()
                finally:
                    self._is_flushing = False
                continue
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _delay(self) -> float:
        """Seconds until the next flush."""
        now = asyncio.get_running_loop().time()
        if self._failures:
            return self._retry_at - now
        if self._urgent:
            return 0
        due = now if self._dirty else min(row.due_at() for row in self._rows.values())
        return max(due, self._flushed_at + self._interval) - now

    async def _flush(self) -> None:
        now = asyncio.get_running_loop().time()
        rows = [row for row in self._rows.values() if row.retry_at <= now and (row in self._dirty or row.due_at() <= now)]
        # All at one moment: what changes while they are being written is for the next flush.
        writes = {row: row.take() for row in rows}
        durable = (
            any(write.ends for write in writes.values()) or now - self._stored_at >= DURABLE_INTERVAL or self.buffered > self._buffer // 2
        )
        self._dirty.difference_update(rows)
        self._urgent = False
        self._flushed_at = now
        self.flushes += 1
        try:
            for table in ORDER:
                await self._write(table, self._of(table, writes), durable)
        except BaseException as error:
            self._dirty.update(row for row in rows if row.is_dirty and not row.is_finished)
            if not isinstance(error, Away):
                raise
            self._failures += 1
            self._retry_at = asyncio.get_running_loop().time() + backoff(self._failures)
            self._away(error)
            return
        self._failures, self.trouble = 0, None
        if durable:
            self._stored_at = now
        self._flushed.set()

    def _of(self, table: str, writes: dict[Held, Write]) -> dict[Held, Write]:
        """Those of one table. A job whose steps could not be written ends later."""
        held_back = [row for row in writes if row.table == table and row.is_held_back]
        for row in held_back:
            row.trouble = "one of its steps could not be written"
        self._dirty.update(held_back)
        return {row: write for row, write in writes.items() if row.table == table and row not in held_back}

    def _away(self, error: Away) -> None:
        if self.trouble is None:
            logger.warning("the database is away, trying again: %s", error)
        self.trouble = str(error)

    async def _write(self, table: str, writes: dict[Held, Write], durable: bool) -> None:
        """Write rows of one table. One that the database refuses is found, and loses nothing for the others."""
        if not writes:
            return
        rows = list(writes)
        try:
            self.statements += 1
            outcomes = await write_rows(self.database, table, [write.values for write in writes.values()], self.lease, durable)
        except (Refused, Away) as error:
            if isinstance(error, Away) and error.code != TOOK_TOO_LONG:
                raise
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]) if len(rows) > 1 else ():
                await self._write(table, {row: writes[row] for row in half}, durable)
            if len(rows) == 1 and isinstance(error, Refused):
                await self._refused(rows[0], error)
            elif len(rows) == 1:
                rows[0].trouble = str(error)
                rows[0].retry_at = asyncio.get_running_loop().time() + LAST_BACKOFF
                self._dirty.add(rows[0])
            return
        for row, write in writes.items():
            outcome, *more = outcomes[row.id]
            row.answered(write, outcome, durable, *more)
            if row.is_finished:
                self.drop(row)
            elif row.is_dirty or row.trouble:
                self._dirty.add(row)

    async def _refused(self, row: Held, error: Refused) -> None:
        """Nothing more can be written of it, but that it failed: that alone may be taken."""
        if failure := row.failure():
            with suppress(Refused):
                last = {"id": str(row.id), "fence": str(row.fence), **failure}
                await write_rows(self.database, row.table, [last], self.lease, durable=True)
        row.lose(Refused(f"{row.name}: {error}", error.code))
        self.drop(row)


def backoff(failures: int) -> float:
    """Seconds until the next try."""
    most: float = min(FIRST_BACKOFF * 2 ** min(failures - 1, 10), LAST_BACKOFF)
    return most * random.uniform(0.5, 1.0)
