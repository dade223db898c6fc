"""Where a transport puts a follower's bytes. The socket's own sink will stand here beside ASGI's."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol


class Sink(Protocol):
    """Its buffer is bounded by whoever writes, who looks at `full`."""

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
