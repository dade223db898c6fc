"""Where a transport puts a follower's bytes: over ASGI on any server, or straight on the socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from .frames import Block


class Owner(Protocol):
    def gone(self) -> None:
        """The client is no longer there, whoever ended it."""


class Sink(Protocol):
    """Its buffer is bounded by whoever writes, who looks at `full`."""

    owner: Owner | None

    @property
    def full(self) -> bool: ...
    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet, as far as this process knows."""

    def write(self, block: Block) -> None: ...
    async def drained(self) -> None:
        """Returns once there is room again, or the client is gone."""

    def close(self, code: int = 1000) -> None:
        """End the stream, after what was written; `code` is for WebSocket (RFC 6455, section 7.4)."""

    def abort(self) -> None:
        """End it now, whatever the client has yet to take."""


class AsgiSink:
    """Bytes for one ASGI response: joined to one chunk each time the server takes some."""

    def __init__(self, limit: int) -> None:
        self.owner: Owner | None = None
        self._limit = limit
        self._pending: list[memoryview] = []
        self.buffered = 0
        self.code = 1000
        self._closed = False
        self._written = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def __repr__(self) -> str:
        return f"<AsgiSink {self.buffered} bytes{', closed' if self._closed else ''}>"

    @property
    def full(self) -> bool:
        return self.buffered >= self._limit

    def write(self, block: Block) -> None:
        if not self._closed:
            self._pending.append(block.data)
            self.buffered += len(block)
            self._written.set()
            self._drained.clear()

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self, code: int = 1000) -> None:
        if not self._closed:
            self.code = code
        self._closed = True
        self._written.set()

    def abort(self) -> None:
        self.discard()

    def discard(self) -> None:
        """The client is gone: nobody is to wait for it."""
        self.close()
        self._pending.clear()
        self._drained.set()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.gone()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await self._written.wait()
            self._written.clear()
            if self._pending:
                data = b"".join(self._pending)
                self._pending.clear()
                yield data  # returns when the server has room for more
                self.buffered -= len(data)
            if not self._pending:
                self._drained.set()
                if self._closed:
                    return


class SocketSink(asyncio.Protocol):
    """A client's socket itself, taken over from the server when its response had started.

    It is also the protocol of its transport, so that an idle client is a transport, a follower and
    this, and no task. Each block goes out as one chunk of the response (RFC 9112, section 7.1), with
    a system call of its own; the transport gets what the kernel has no room for.
    """

    __slots__ = ("_fd", "_queued", "_room", "_server", "full", "owner", "transport")

    def __init__(self, transport: asyncio.Transport, server: set[object], full: bool) -> None:
        self.owner: Owner | None = None
        self.full = full
        self.transport = transport
        self._server = server
        # Windows has no descriptors of sockets: there all goes through the transport.
        self._fd: int = transport.get_extra_info("socket").fileno() if os.name == "posix" else -1
        self._queued = True
        self._room: asyncio.Event | None = None

    def __repr__(self) -> str:
        closing = ", closing" if self.transport.is_closing() else ""
        return f"<SocketSink {self.buffered} bytes{closing}>"

    @property
    def buffered(self) -> int:
        return self.transport.get_write_buffer_size()

    def write(self, block: Block) -> None:
        if self._queued:
            self._queued = self.buffered > 0
        if self._queued:
            self._queue(block.wire)
            return
        wire = block.wire
        try:
            sent = os.write(self._fd, wire)
        except OSError:  # no room, or an error that the transport will find out about as well
            sent = 0
        if sent < len(wire):
            self._queue(memoryview(wire)[sent:])  # not a copy: a thousand clients may be slow at once

    def _queue(self, data: bytes | memoryview) -> None:
        if self.transport.is_closing():
            self._fd = -1  # nothing may follow half a block
        else:
            self._queued = True
            self.transport.write(data)

    async def drained(self) -> None:
        await asyncio.sleep(0)
        if self.full:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def close(self, code: int = 1000) -> None:
        if not self.transport.is_closing():
            self._queue(b"0\r\n\r\n")
            self.transport.close()
            self._fd = -1

    def abort(self) -> None:
        self.transport.abort()

    def shutdown(self) -> None:
        """The server ends, and this connection is one of its."""
        self.close()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._room is not None:
            self._room.set()

    def data_received(self, data: bytes) -> None:
        """Nothing more can be asked for on a connection that streams."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._fd = -1  # closed after this, and soon another client's
        self._server.discard(self)
        self.resume_writing()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.gone()


class WebSocketSink(SocketSink):
    """A client's socket beside the server's WebSocket protocol, which goes on reading it, answers pings and
    closes it. Both write whole frames."""

    __slots__ = ("_end", "_ending")

    def __init__(self, transport: asyncio.Transport, full: bool, end: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        super().__init__(transport, set(), full)
        self._end = end
        self._ending: asyncio.Task[None] | None = None

    def write(self, block: Block) -> None:
        if self._ending is None and not self.transport.is_closing():
            self._queued = True  # the server may have written: look
            super().write(block)

    def close(self, code: int = 1000) -> None:
        if self._ending is None and not self.transport.is_closing():
            self._ending = asyncio.create_task(self._end(code), name="close a websocket")

    def lost(self) -> None:
        """The connection is gone, or about to be closed by the server."""
        self.connection_lost(None)
