"""Below ASGI: protocols for uvicorn that let a stream write to its socket itself.

Over ASGI a client costs tasks and a request's objects for as long as it stays, and each frame a
switch to its task. Taken over, a frame costs a `transport.write`, and an idle client next to nothing.
This leans on the insides of uvicorn, whose minor version is pinned for it. Under any other server,
or behind a middleware that changes what is sent, nothing is taken, and the bytes are the same.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from .sinks import SocketSink, WebSocketSink

HEAD_MOST = 65_536
"""Bytes of all that comes before the body of a request."""
HEADER_MOST, HEADERS_MOST = 8000, 100
"""Bytes of one header, and how many there may be: beyond what the WebSocket library takes it does not even answer."""

PINGS = 50
"""At most so many in what is read at once."""

Hear = Callable[[Message], Awaitable[None]]


class Offer:
    """`scope["extensions"]["rowcast.socket"]` of a request. A connection with TLS is never given away."""

    def __init__(self, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.sent: object = None
        """The body of the last message that reached the server."""

    def take(self, first: bytes, limit: int) -> SocketSink | None:
        """The socket, once the response has begun with `first`, that very object: then it was neither
        changed nor held back on its way here. For uvicorn the client is gone from now on."""
        protocol, cycle = self._protocol, self._cycle
        transport = protocol.transport
        if self.sent is not first or cycle.disconnected or transport.is_closing() or transport.get_extra_info("sslcontext"):
            return None
        sink = SocketSink(transport, protocol.connections, protocol.flow.write_paused)  # type: ignore[arg-type]
        protocol.connections.add(sink)  # type: ignore[arg-type]
        protocol.connections.discard(protocol)
        protocol.flow.resume_reading()  # or nobody would notice that the client goes
        protocol.parser = None  # type: ignore[assignment]
        transport.set_protocol(sink)
        transport.set_write_buffer_limits(limit)
        cycle.disconnected = True
        cycle.message_event.set()
        return sink


class Protocol(HttpToolsProtocol):
    """Offers each request its socket. The head of a request is bounded, which it is nowhere else."""

    _head = 0
    """Bytes of a head that is not complete yet."""
    _is_too_large = False

    def data_received(self, data: bytes) -> None:
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > HEAD_MOST and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is longer than {HEAD_MOST} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = max(self._head, 0)
        self._is_too_large = False

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._is_too_large = self._is_too_large or len(name) + len(value) > HEADER_MOST or len(self.headers) > HEADERS_MOST

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()

    def _should_upgrade(self) -> bool:
        return not self._is_too_large and super()._should_upgrade()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        offered = headers_too_large if self._is_too_large else offering(app, Offer(self, cycle))
        super()._start_asgi_task(cycle, offered)  # type: ignore[arg-type]


headers_too_large = PlainTextResponse("A header is too long, or there are too many.", 431)


def offering(app: ASGIApp, offer: Offer) -> ASGIApp:
    async def offered(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            await send(message)
            offer.sent = message.get("body")

        scope["extensions"] = {"rowcast.socket": offer}
        await app(scope, receive, noted)

    return offered


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Offers each WebSocket its socket, to write to. Reading and control frames stay here."""

    _pings = 0
    _sink: WebSocketSink | None = None
    _inbox: "Inbox | None" = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"]["rowcast.socket"] = self  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._pings = 0
        super().data_received(data)

    def handle_ping(self) -> None:
        """They are answered without end, and before all else: who sends them by the thousand is closed."""
        self._pings += 1
        if not self.writable.is_set():
            self.conn.data_to_send()  # who does not read gets no answer
        elif self._pings <= PINGS:
            super().handle_ping()
        elif not self.close_sent:
            self.conn.fail(1008, "too many pings")
            self.handle_parser_exception()

    def take(self, limit: int) -> WebSocketSink | None:
        """What writes to the socket, once the handshake is complete."""
        if not self.handshake_complete or self.disconnected or self.scheme == "wss":
            return None
        self.transport.set_write_buffer_limits(limit)
        self._sink = WebSocketSink(self.transport, not self.writable.is_set(), self._end)
        return self._sink

    def listen(self, hear: Hear) -> None:
        """What the client says goes to `hear` from now on. The application may return: an idle client has no task."""
        heard, self._inbox = self.queue, Inbox(hear, self._hear_more)
        self.queue = self._inbox  # type: ignore[assignment]
        while not heard.empty():
            self._inbox.put_nowait(heard.get_nowait())
        del self.scope, self.request, self.response

    def _hear_more(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    async def run_asgi(self) -> None:
        """As uvicorn does it, but who listens stays when the application returns."""
        try:
            with suppress(ClientDisconnected):
                await self.app(self.scope, self.receive, self.send)
        except Exception:
            self.logger.exception("Exception in ASGI application\n")
        finally:
            self.send_500_response()  # if it is not accepted
            if self._inbox is None and self.close_timer is None:
                self.transport.close()

    async def _end(self, code: int) -> None:
        with suppress(OSError):  # it has gone meanwhile
            await self.send({"type": "websocket.close", "code": code, "reason": ""})

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sink:
            self._sink.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sink:
            self._sink.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sink:
            self._sink.lost()
        super().connection_lost(exc)


class Inbox:
    """Stands in for the queue of what a client says: it is heard as it comes, one frame after the other. Meanwhile
    uvicorn reads no more."""

    __slots__ = ("_frames", "_hear", "_hearing", "_then")

    def __init__(self, hear: Hear, then: Callable[[], None]) -> None:
        self._hear = hear
        self._then = then
        self._frames: deque[Any] = deque()
        self._hearing: asyncio.Task[None] | None = None

    def put_nowait(self, message: Any) -> None:
        if message["type"] == "websocket.receive":
            self._frames.append(message)
            if self._hearing is None:
                self._hearing = asyncio.create_task(self._hear_all(), name="hear a websocket")

    async def _hear_all(self) -> None:
        while self._frames:
            await self._hear(self._frames.popleft())
            await asyncio.sleep(0)  # thousands may have come at once
        self._hearing = None
        self._then()
