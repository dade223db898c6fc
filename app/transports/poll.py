"""Polling, for whoever cannot stream: the same events by the same cursor."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha256

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..access import Access
from ..burst import Burst, View
from ..database import TROUBLE, unavailable
from ..errors import InvalidParameter
from ..events import Cursor, Event, Position, Topics
from ..feed import Feed
from ..frames import enveloped
from ..log import Batch
from ..wish import Wish
from . import entry, query
from .targets import Aim

LOCATE_TIMEOUT = 5.0
HEADERS = {"Cache-Control": "private, no-cache"}


class Waiter:
    """A poll that waits until there is something for it. It holds no connection and no events."""

    def __init__(self, topics: Topics, view: View, position: Position, subject: str | None) -> None:
        self.topics = topics
        self.subject = subject
        self._position = position
        self._view = view
        self._woken = asyncio.Event()
        self.ended = False

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    def deliver(self, burst: Burst) -> None:
        if any(self._view.shows(event) for event in burst.events if event.position > self._position):
            self.wake()

    def wake(self) -> None:
        self._woken.set()

    def reset(self, reason: str) -> None:
        self.wake()

    def bye(self, retry: int) -> None:
        self.ended = True
        self.wake()

    def fail(self, problem: str) -> None:
        self.wake()

    def keep_alive(self, cursor: Cursor | None) -> None: ...


def poll(aim: Aim) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with what a path aims at."""

    async def endpoint(request: Request) -> Response:
        grant = await entry.grant(request)
        target = aim(request)
        wish, wait = query.wish(request, target, grant), query.WAIT.of(request.query_params, 0)
        if wish.since == "snapshot":
            raise InvalidParameter("from", "a poll has no snapshot: GET /api/sessions/{session_id} has the state and its cursor")
        access = await entry.follow(request, grant, target, patient=False)
        return _answer(request, await _poll(request.app.state.rowcast.feed, target.topics, wish, wait, access))

    return endpoint


async def _poll(feed: Feed, topics: Topics, wish: Wish, wait: float, access: Access | None) -> bytes:
    deadline = time.monotonic() + wait
    try:
        async with asyncio.timeout(LOCATE_TIMEOUT):
            start = await feed.locate(topics, wish.after, wish.since)
    except TROUBLE as error:
        raise unavailable(error) from error
    if start.lost:
        return _body(feed, start.position, reset=start.lost)
    here = feed.hub.cursor(start.position)
    subject = access.grant.subject if access else None
    while True:
        if access and access.due:
            await _ask(access)
        position = feed.hub.lineage.locate(here)
        if position is None:
            return _body(feed, feed.hub.position, reset="epoch")
        if position < feed.hub.position:
            batch = await _read(feed, topics, position)
            if access and access.due:
                continue
            if batch.pruned:
                return _body(feed, feed.hub.position, reset="truncated")
            here = here._replace(position=batch.position)
            if events := [event for event in batch.events if wish.view.shows(event)]:
                return _body(feed, batch.position, events, more=not batch.complete)
        elif not await _wait(feed, Waiter(topics, wish.view, position, subject), deadline - time.monotonic(), access):
            # Where nothing is new the cursor stays, so that the answer is the same again.
            return _body(feed, position if feed.stale(start.position) else start.position)


async def _ask(access: Access) -> None:
    try:
        await access.ask()
    except TROUBLE as error:
        raise unavailable(error) from error


async def _read(feed: Feed, topics: Topics, position: Position) -> Batch:
    try:
        return await feed.log.read(feed.hub.lineage.epoch, position, feed.hub.position, topics)
    except TROUBLE as error:
        raise unavailable(error) from error


async def _wait(feed: Feed, waiter: Waiter, seconds: float, access: Access | None) -> bool:
    """Whether to look again."""
    if seconds <= 0:
        return False
    feed.limits.room(waiter.subject, waiter.topics)
    feed.hub.join(waiter)
    feed.add(waiter)
    try:
        if access:
            access.begin(waiter.wake)
            seconds = 0 if access.doubtful else min(seconds, access.ends - time.time())
        await waiter.wait(seconds)
    finally:
        if access:
            access.end()
        feed.remove(waiter)
        feed.hub.leave(waiter)
    return not waiter.ended


def _body(feed: Feed, position: Position, events: Sequence[Event] = (), *, more: bool = False, reset: str | None = None) -> bytes:
    return msgspec.json.encode(
        {
            "events": [msgspec.Raw(enveloped(event)) for event in events],
            "cursor": str(feed.hub.cursor(position)),
            "more": more,
            "reset": reset and {"reason": reset},
        }
    )


def _answer(request: Request, content: bytes) -> Response:
    etag = f'"{sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "ETag": etag}
    if etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)
