"""Reads an event stream until it ends, or until somebody asks for the end of the job."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Self

from ..errors import JobCancelled
from ..jobs import Job
from .events import Event

logger = logging.getLogger(__name__)


class Watch:
    """Waits for events, and stops waiting as soon as the end of the job is asked for. The stream is read by the task
    that called, in its context, and is interrupted as asyncio.timeout() interrupts."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waits = self._fired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task
        self._task = task
        self._watcher = asyncio.create_task(self._watch(), name="rowcast writer: end of the job")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()

    async def _watch(self) -> None:
        await self._job.cancelled.wait()
        if self._waits:
            self._fired = True
            self._task.cancel()

    async def next(self, stream: AsyncIterator[Event]) -> Event | None:
        """The next event, or None at the end. JobCancelled."""
        self._job.raise_if_cancelled()
        cancels = self._task.cancelling()
        self._waits = True
        try:
            event = await anext(stream, None)
        except BaseException as error:
            if self._fired and self._task.uncancel() <= cancels:
                raise JobCancelled(f"the end of {self._job.name} was asked for") from error
            raise
        finally:
            self._waits = False
        if self._fired:
            self._task.uncancel()
            self._job.raise_if_cancelled()
        return event


async def close(stream: AsyncIterator[Event]) -> None:
    """Close it as `async for` does not. How it ended is known by then; what goes wrong here changes nothing."""
    if aclose := getattr(stream, "aclose", None):
        try:
            await aclose()
        except Exception as error:
            logger.warning("the event stream could not be closed: %r", error)
