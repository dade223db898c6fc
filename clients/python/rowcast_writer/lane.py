"""One output of a message that has several."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

BUFFER = 2**20
"""Code points that an output keeps back before write() waits for it."""

Call = Callable[[], Awaitable[Any]]


class Handle(Protocol):
    """A message of either kind."""

    async def __aenter__(self) -> Any: ...
    async def acknowledge(self, text: str) -> None: ...
    async def progress(self, text: str) -> None: ...
    async def write(self, chunk: str) -> None: ...
    async def complete(self, text: str | None = None, metadata: dict[str, Any] | None = None) -> None: ...
    async def fail(self, user_text: str | None = None, metadata: dict[str, Any] | None = None) -> None: ...


class Lane:
    """One output of a message, which does what it is told in order, and without holding up the other."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.error: Exception | None = None
        """Why it takes no more."""
        self._told: deque[tuple[Call, int]] = deque()
        self._end: tuple[Call, Call] | None = None
        self._kept = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return self._kept > BUFFER

    def tell(self, call: Call, size: int = 0) -> None:
        if not self.error:
            self._told.append((call, size))
            self._kept += size
            self._work()

    def end(self, call: Call, fail: Call) -> None:
        """The last thing to do: `call`, or `fail` if something has failed until then."""
        self._end = (call, fail)
        self._work()

    async def done(self) -> None:
        """When all is done. A program that ends cancels its tasks, and then another one goes on here."""
        while self._told or self._end or (self._task and not self._task.done()):
            await asyncio.wait([self._work()])

    def _work(self) -> "asyncio.Task[None]":
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="output of a message")
        return self._task

    async def _run(self) -> None:
        while self._told:
            call, size = self._told.popleft()
            try:
                await call()
            except Exception as error:
                self.error = error
                self._told.clear()
                self._kept = size
            finally:
                self._kept -= size
        if self._end:
            call, fail = self._end
            try:
                await (fail if self.error else call)()
            except Exception as error:
                self.error = self.error or error
            self._end = None  # and not before: whoever is cancelled meanwhile does it again
