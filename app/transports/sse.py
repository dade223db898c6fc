"""Server-sent events (HTML standard, section 9.2) over any ASGI server.

sse-starlette is imported here and nowhere else: importing it replaces uvicorn's signal handler.
"""

import asyncio

from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..database import TROUBLE
from ..events import Topic
from ..feed import Feed
from ..follower import Follower, Wish
from ..sinks import AsgiSink
from . import query

HEADERS = {"Cache-Control": "no-cache, no-store, no-transform"}


class EventStream(EventSourceResponse):
    """Streams what a follower is told. It ends when the client goes or the follower closes, and with nothing else."""

    def __init__(self, feed: Feed, follower: Follower, sink: AsgiSink) -> None:
        super().__init__(sink, headers=HEADERS, ping=0)
        self._feed = feed
        self._follower = follower
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            self._feed.add(self._follower)
            if not self._follower.closed:
                self._follower.open(self._feed.retry())
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.remove(self._follower)
            self._follower.gone()
            self._sink.discard()

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        # The library's own signal is global and stays set; ours is Feed.drain().
        await asyncio.Event().wait()


async def session_stream(request: Request) -> Response:
    """GET /api/sse/{session_id}"""
    feed: Feed = request.app.state.rowcast.feed
    topic, wish = query.session_topic(request), query.wish(request)
    if wish.until_end and await _ended(feed, topic, wish):
        return Response(status_code=204)  # tells EventSource to stay away
    sink = AsgiSink(request.app.state.rowcast.settings.buffer)
    return EventStream(feed, feed.follow(topic, wish, sink), sink)


async def _ended(feed: Feed, topic: Topic, wish: Wish) -> bool:
    """Whether the client's cursor is that of a terminal event: it has everything."""
    if wish.after is None or feed.hub.lineage.locate(wish.after) is None:
        return False
    try:
        event = await feed.log.event_at(wish.after, topic)
    except TROUBLE:
        return False
    return event is not None and event.terminal
