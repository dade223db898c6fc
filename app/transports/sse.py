"""Server-sent events (HTML standard, section 9.2), on the socket itself or over any ASGI server.

sse-starlette is imported here and nowhere else: importing it replaces uvicorn's signal handler.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..access import Access
from ..errors import RowcastError
from ..events import Topics
from ..feed import Feed
from ..frames import sse
from ..sinks import AsgiSink, SocketSink
from ..wish import Start, Wish
from . import entry, query
from .targets import Aim, ended

REFUSED_RETRY = 5
"""Times as long until one that was refused comes back."""

HEADERS = {"Cache-Control": "no-cache, no-store, no-transform"}


class EventStream(EventSourceResponse):
    """Streams what a follower is told. It ends when the client goes or the follower closes, and with nothing else."""

    def __init__(self, feed: Feed, topics: Topics, wish: Wish, limit: int, access: Access | None, start: Start | None = None) -> None:
        super().__init__(iter(()), headers=HEADERS)
        self._feed = feed
        self._topics = topics
        self._wish = wish
        self._limit = limit
        self._access = access
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        first = b"retry: %d\n" % self._feed.retry()  # `connected` completes the block
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        if sink := self._socket(scope, first):
            self._feed.follow(self._topics, self._wish, sink, self._access, self._start)
        else:
            await self._stream(receive, send)

    def _socket(self, scope: Scope, first: bytes) -> SocketSink | None:
        """The client's socket, if the server offers it (server.py does) and nothing stands in between."""
        offer = scope.get("extensions", {}).get("rowcast.socket")
        return offer.take(first, self._limit) if offer else None

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Two tasks a client, where the library has five: this one, and one that notices when the client goes."""
        sink = AsgiSink(self._limit)
        watching = asyncio.create_task(_until_gone(receive, sink), name="client of a stream")
        try:
            self._feed.follow(self._topics, self._wish, sink, self._access, self._start)
            with suppress(OSError):  # what newer servers raise when the client is gone
                async for data in sink:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watching.cancel()
            sink.discard()


async def _until_gone(receive: Receive, sink: AsgiSink) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        sink.discard()


def stream(aim: Aim) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that streams what a path aims at."""

    async def endpoint(request: Request) -> Response:
        rowcast = request.app.state.rowcast
        entry.handshake(request)
        grant = await entry.grant(request, tickets=True)
        target = aim(request)
        wish = query.wish(request, target, grant)
        access = await entry.follow(request, grant, target, patient=True)
        entry.room(request, grant, target)
        if await ended(rowcast.feed, target.topics, wish):
            return Response(status_code=204)  # tells EventSource to stay away
        return EventStream(rowcast.feed, target.topics, wish, rowcast.settings.buffer, access)

    return in_band(endpoint)


def in_band(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """An EventSource gives up for good on any status but 200 (HTML standard, 9.2.3), and sees none: what passes is
    told in a stream of one frame, with a time after which it comes back by itself."""

    async def told(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RowcastError as error:
            if error.passes and "text/event-stream" in request.headers.get("Accept", ""):
                return only(request.app.state.rowcast.feed, sse("error", msgspec.json.encode(error.described)), REFUSED_RETRY)
            raise

    return told


def only(feed: Feed, frame: bytes, retry: float = 1) -> Response:
    """A stream of one frame; `retry` times as long as usual until the client comes back."""
    content = b"retry: %d\n" % (retry * feed.retry()) + frame
    return Response(content, media_type="text/event-stream", headers={**HEADERS, "X-Accel-Buffering": "no"})
