"""One job as a task: its state, its progress as server-sent events that end by themselves, and a way to ask it to stop."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..burst import View
from ..database import TROUBLE, unavailable
from ..errors import DatabaseUnavailable, NotFound
from ..events import ENDED, Cursor, Position, Topic
from ..feed import Feed
from ..frames import NO_TASK, WIRES, sse, task
from ..state import Snapshot, State
from ..wish import Start, Wish
from . import entry, query
from .sse import EventStream, in_band, only
from .targets import Target

RETRIES = (0.1, 0.3, 0.9)
"""Seconds between attempts to read the state."""


def _topic(request: Request) -> Topic:
    return Topic.of("job", request.path_params["task_id"], "task_id")


async def task_state(request: Request) -> Response:
    """GET /api/v1/tasks/{task_id}"""
    grant = await entry.grant(request)
    topic = _topic(request)
    query.check_state(grant)
    await entry.check(request, grant, "stream", topic)
    job = await _job(request, topic)
    await entry.check(request, grant, "stream", topic)  # still, now that we have it
    return JSONResponse({**job, "status": task(job)[1]["status"]}, headers={"Cache-Control": "no-store"})


async def task_cancel(request: Request) -> Response:
    """POST /api/v1/tasks/{task_id}/cancel: asks, and does not wait. A task that has ended answers 409."""
    grant = await entry.grant(request)
    topic = _topic(request)
    await entry.check(request, grant, "cancel", topic)
    try:
        asked = await request.app.state.rowcast.state.cancel(topic.id)
    except TROUBLE as error:
        raise unavailable(error) from error
    return JSONResponse({"id": topic.id, "cancel_requested": asked}, 202 if asked else 409)


async def _job(request: Request, topic: Topic) -> dict[str, Any]:
    try:
        job = (await request.app.state.rowcast.state.of(topic))["job"]
    except TROUBLE as error:
        raise unavailable(error) from error
    if job is None:
        raise NotFound("Task not found")
    return dict(job)


async def _task_stream(request: Request) -> Response:
    """GET /api/v1/tasks/{task_id}/stream: the first frame is the state now, so nothing needs to be sent again."""
    rowcast = request.app.state.rowcast
    feed: Feed = rowcast.feed
    entry.handshake(request)
    grant = await entry.grant(request, tickets=True)
    topic, after = _topic(request), query.cursor(request)
    query.check_state(grant)
    target = Target((topic,), {})
    try:
        access = await entry.follow(request, grant, target, patient=False)
        entry.room(request, grant, target)
        snapshot = await _patiently(rowcast.state, topic)
        if access:
            await access.ask()  # still, now that we have it
        position = feed.known(snapshot.cursor)
        if position is None:
            raise DatabaseUnavailable("not ready yet")
        job = snapshot["job"]
        if job is None:
            return Response(status_code=204) if after else only(feed, sse("error", NO_TASK, snapshot.cursor))
        topics = (topic._replace(id=job["id"]),)
        if job["status"] in ENDED:
            told = after is not None and await _told(feed, topics[0], after, position)
            return Response(status_code=204) if told else only(feed, WIRES["task"].told("snapshot", snapshot.body, snapshot.cursor))
    except TROUBLE as error:
        return only(feed, sse("error", msgspec.json.encode(unavailable(error).described)))
    wish = Wish(view=View.of(format="task"), until_end=True)
    return EventStream(feed, topics, wish, rowcast.settings.buffer, access, Start(position, "new", snapshot=snapshot.body))


task_stream = in_band(_task_stream)


async def _patiently(state: State, topic: Topic) -> Snapshot:
    for pause in RETRIES:
        try:
            return await state.of(topic)
        except TROUBLE:
            await asyncio.sleep(pause)
    return await state.of(topic)


async def _told(feed: Feed, topic: Topic, after: Cursor, now: Position) -> bool:
    """Whether a client that has got as far as `after` knows how the task ended: nothing came later."""
    position = feed.known(after)
    if position is None or position < (await feed.log.bounds()).floor:
        return False
    outcome = await feed.log.outcome(feed.hub.lineage.epoch, topic, now)
    return outcome is None or outcome.position <= position
