"""The reaper: ends rows whose lease ran out, for the program that held them is gone. Any number of processes may do it at once."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta

from .database import TROUBLE, Pool, explain

logger = logging.getLogger(__name__)

REAP_INTERVAL = 1.0
REAP_MOST = 1000
"""Rows of each table a call."""

GRACE = 10.0
"""Seconds after the database is there, again or for the first time, in which nothing is reaped: while it was away no writer
could renew its lease, and those that are alive do so first."""

LATE = timedelta(seconds=2)
"""An answer after so long counts as none: a server that was frozen would get to us before it gets to the writers."""

# A schema before version 7, or without the reference tables, has nothing to reap; it may be upgraded.
_LOOK = "SELECT to_regprocedure('rowcast.reap(integer)') IS NOT NULL AS known, clock_timestamp() AS at"
_REAP = "SELECT CASE WHEN clock_timestamp() < $2 THEN rowcast.reap($1) END"


async def reap(pool: Pool, away: Callable[[], str | None]) -> None:
    """For ever. `away` says what is wrong with the database, if anything; whoever that belongs to has logged it."""
    since: float | None = None
    trouble: str | None = None
    while True:
        if away():
            since = None
        else:
            since = since or time.monotonic()
            due = time.monotonic() - since >= GRACE
            failed = await _reap(pool, due)
            if failed and failed != trouble:
                logger.warning("reaping: %s", failed)
            if failed or due:  # a round that does nothing proves nothing
                trouble = failed
            since = None if failed else since
        await asyncio.sleep(REAP_INTERVAL)


async def _reap(pool: Pool, due: bool) -> str | None:
    """What went wrong."""
    try:
        while True:
            asked = time.monotonic()
            look = await pool.fetchrow(_LOOK)
            if not look or time.monotonic() - asked > LATE.total_seconds():
                return "the database did not answer in time"
            if not (due and look["known"]):
                return None
            done = await pool.fetchval(_REAP, REAP_MOST, look["at"] + LATE)
            if done is None:
                return "the database did not answer in time"
            if done < REAP_MOST:
                return None
    except TROUBLE as error:
        return explain(error)
