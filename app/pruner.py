"""The pruner: deletes what is no longer needed, beside the sequencer and over the pool, so that sequencing does not wait for it."""

import asyncio
import logging
import time
from datetime import timedelta

from .database import TROUBLE, explain
from .log import Log
from .sequencer import Sequencer

logger = logging.getLogger(__name__)

PRUNE_INTERVAL, PRUNE_IDLE_INTERVAL = 1.0, 60.0


async def prune(log: Log, sequencer: Sequencer, keep: timedelta) -> None:
    """Soon after this process sequenced something, and now and then for what has grown old."""
    seen, last = -1, 0.0
    while True:
        if not sequencer.trouble and (sequencer.sequenced != seen or time.monotonic() - last > PRUNE_IDLE_INTERVAL):
            seen, last = sequencer.sequenced, time.monotonic()
            try:
                await log.prune(keep)
            except TROUBLE as error:
                logger.warning("pruning: %s", explain(error))
        await asyncio.sleep(PRUNE_INTERVAL)
