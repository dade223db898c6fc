"""WebSocket (RFC 6455): the same events as text frames of JSON, on the socket itself or over any ASGI server."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..access import Access
from ..database import TROUBLE, unavailable
from ..errors import InvalidParameter, NotFound, RowcastError
from ..events import Cursor, Topic
from ..follower import Follower
from ..frames import WIRES, texts
from ..grant import Grant
from ..sinks import AsgiSink
from ..wish import Joining, Wish
from . import entry, query
from .targets import Aim, Target

logger = logging.getLogger(__name__)

FRAME_MOST = 65_536
"""Bytes of one client frame."""

Name = str | int | None


class Frame(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may say. `id` comes back in the answer."""

    action: Literal["subscribe", "unsubscribe", "ping", "cancel"]
    id: Name = None
    topic: str | None = None
    after: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    batch: int | None = None
    job_id: str | None = None


decode_frame = msgspec.json.Decoder(Frame).decode


def websocket(aim: Aim) -> Callable[[WebSocket], Awaitable[None]]:
    """An endpoint that streams what a path aims at, and does what clients ask for."""

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        try:
            entry.handshake(socket)
            grant = await entry.grant(socket, tickets=True)
            target = aim(socket)
            wish = query.wish(socket, target, grant)
            access = await entry.follow(socket, grant, target, patient=True)
            entry.room(socket, grant, target)
        except RowcastError as error:
            await _only(socket, "error", error.described, error.websocket_code)
            return
        rowcast = socket.app.state.rowcast
        offer = socket.scope.get("extensions", {}).get("rowcast.socket")
        if offer and (sink := offer.take(rowcast.settings.buffer)):
            offer.listen(Conversation(rowcast, grant, target, rowcast.feed.follow(target.topics, wish, sink, access)).hear)
        else:
            await _converse(socket, grant, target, wish, access)

    return endpoint


async def _only(socket: WebSocket, type: str, data: object, code: int) -> None:
    """All that there is to say."""
    frame = WIRES["socket"].told(type, msgspec.json.encode(data))
    with suppress(OSError, WebSocketDisconnect):  # the client is gone
        await socket.send_text(next(texts(frame)))
        await socket.close(code)


async def _converse(socket: WebSocket, grant: Grant, target: Target, wish: Wish, access: Access | None) -> None:
    """Until the client is gone."""
    rowcast = socket.app.state.rowcast
    sink = AsgiSink(rowcast.settings.buffer)
    sending = asyncio.create_task(_send(socket, sink), name="send to a websocket")
    try:
        conversation = Conversation(rowcast, grant, target, rowcast.feed.follow(target.topics, wish, sink, access))
        while (message := await socket.receive())["type"] == "websocket.receive":
            await conversation.hear(message)
    finally:
        sending.cancel()
        sink.discard()


async def _send(socket: WebSocket, sink: AsgiSink) -> None:
    with suppress(OSError, WebSocketDisconnect):  # the client is gone
        async for data in sink:
            for text in texts(data):
                await socket.send_text(text)
        await socket.close(sink.code)


class Conversation:
    """What a client says, and what it is answered, in the stream of its events."""

    __slots__ = ("_follower", "_grant", "_rowcast", "_target")

    def __init__(self, rowcast: Any, grant: Grant, target: Target, follower: Follower) -> None:
        self._rowcast = rowcast
        self._grant = grant
        self._target = target
        self._follower = follower

    async def hear(self, message: Message) -> None:
        """One frame, as ASGI has it."""
        follower = self._follower
        text = message.get("text")
        if len(message.get("bytes") or (text or "").encode()) > FRAME_MOST:
            follower.close(1009)
            return
        if follower.sink.full:  # who does not read the answers is not heard
            await follower.sink.drained()
        try:
            await self._answer(text)
        except Exception:
            logger.exception("%r failed", follower)
            follower.fail("internal error")

    async def _answer(self, text: str | None) -> None:
        id: Name = None
        try:
            if text is None:
                raise InvalidFrame("frames are text, not binary")
            frame = decode_frame(text)
            id = frame.id
            await getattr(self, f"_{frame.action}")(frame)
        except msgspec.MsgspecError as error:
            self._refuse(InvalidFrame(str(error)), id)
        except RowcastError as error:
            self._refuse(error, id)
        except TROUBLE as error:
            self._refuse(unavailable(error), id)

    def _refuse(self, error: RowcastError, id: Name) -> None:
        self._follower.tell("error", {**error.described, "id": id})

    async def _ping(self, frame: Frame) -> None:
        self._follower.tell("pong", {"id": frame.id}, self._follower.cursor)

    async def _subscribe(self, frame: Frame) -> None:
        follower = self._follower
        topic = self._topic(frame)
        after = Cursor.parse(frame.after) if frame.after else None
        since = query.since({"from": frame.from_ or "recent"})
        batch = None if frame.batch is None else query.BATCH.of({"batch": str(frame.batch)}, 0)
        acknowledgement = {"topic": str(topic), "id": frame.id}
        wanted = {*follower.topics, *(joining.topic for joining in follower.joining or ())}
        most = self._rowcast.settings.topics
        if len(follower.joining or ()) >= most:
            raise InvalidParameter("topic", f"at most {most} are waited for at once (ROWCAST_TOPICS)")
        if topic not in wanted and len(wanted) >= most:
            raise InvalidParameter("topic", f"at most {most} on one connection (ROWCAST_TOPICS)")
        if topic not in wanted:
            if follower.access:
                await follower.access.more(topic)
            if follower.closed:
                return
            self._rowcast.limits.room(None, (topic,), connections=0)
            self._rowcast.limits.change(follower, more=(topic,))
        if batch is not None:
            follower.batch(batch)
        if topic in follower.topics and not (after or frame.from_):
            since = "now"  # it has what there was
        follower.join(Joining(topic, after, since, acknowledgement))

    async def _unsubscribe(self, frame: Frame) -> None:
        topic = self._topic(frame)
        for joining in self._follower.unjoin(topic):
            self._refuse(GivenUp(str(topic)), joining.acknowledgement["id"])
        if self._follower.access:
            self._follower.access.less(topic)
        self._rowcast.limits.change(self._follower, less=(topic,))
        self._follower.tell("unsubscribed", {"topic": str(topic), "id": frame.id}, self._follower.cursor)

    async def _cancel(self, frame: Frame) -> None:
        job = frame.job_id or self._target.about.get("job_id")
        if job is None:
            raise InvalidParameter("job_id", "is missing; it names the job to cancel")
        await self._check(job)
        if self._rowcast.authority:
            project = self._target.about.get("project_id")
            ways = [(Topic.of("project", project),)] if project else []
            await self._rowcast.authority.examine(self._grant, "cancel", [*ways, (Topic.of("job", job),)])
        asked = await self._rowcast.state.cancel(Topic.of("job", job).id)
        self._follower.tell("cancel", {"job_id": job, "asked": asked, "id": frame.id}, self._follower.cursor)

    async def _check(self, job: str) -> None:
        """Where a project or one of its jobs is followed, other jobs are nobody's to cancel."""
        about = self._target.about
        if "project_id" in about:
            row = (await self._rowcast.state.of(Topic.of("job", job)))["job"]
            if row is None or row["project_id"] != about["project_id"] or job != about.get("job_id", job):
                raise NotFound(f"no such job: {job}")

    def _topic(self, frame: Frame) -> Topic:
        if not self._target.open:
            raise InvalidFrame("the topics of this path are fixed; /api/stream is where they can be changed")
        if frame.topic is None:
            raise InvalidParameter("topic", "is missing; it is <kind>:<id>, such as session:42")
        return Topic.parse(frame.topic)


class InvalidFrame(InvalidParameter):
    """A frame that means nothing here."""

    code = "invalid_frame"

    def __init__(self, problem: str) -> None:
        super().__init__("frame", problem)


class GivenUp(RowcastError):
    """A topic that was given up before it was followed."""

    code = "given_up"

    def __init__(self, topic: str) -> None:
        super().__init__(f"{topic} was unsubscribed meanwhile")
