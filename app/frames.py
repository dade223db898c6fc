"""The bytes of frames, for each kind of client: server-sent events, the same for `onmessage`, for one task, and WebSocket."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec

from .events import JOB_FAMILIES, Cursor, Event

Format = Literal["event", "message", "task", "socket"]

KEEP_ALIVE = b": keep-alive\n"
TOP_LEVEL = ("ingest.", "agent.", "workflow.")
"""Types whose payload stands at the top level of a WebSocket frame, as their front ends expect."""

TASK = {"id", "name", "status", "progress", "message", "result", "error"}
"""What is told of a job to those who follow it as a task."""

NO_TASK = b'{"error":"Task not found"}'


class Block:
    """Frames that are written together."""

    __slots__ = ("data", "wire")

    def __init__(self, data: bytes, chunked: bool = True) -> None:
        # Over HTTP they are one chunk of the response (RFC 9112, section 7.1).
        self.wire = b"%x\r\n%b\r\n" % (len(data), data) if chunked else data
        self.data = memoryview(self.wire)[-2 - len(data) : -2] if chunked else memoryview(data)
        """The frames alone; the same memory."""

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"<Block {len(self)} bytes>"


class Wire(ABC):
    """How one kind of client is told things."""

    rereads = True
    """Whether the client knows what to do about a `reset`."""

    @abstractmethod
    def event(self, event: Event) -> bytes:
        """An event of the log; empty if it is not for such clients."""

    @abstractmethod
    def told(self, type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
        """What the stream says of itself; `data` is one line of JSON."""

    def alive(self, cursor: Cursor | None) -> bytes:
        """A keep-alive. The id moves the client's cursor and dispatches nothing (HTML standard, 9.2.6)."""
        return KEEP_ALIVE + (b"\n" if cursor is None else b"id: %b\n\n" % str(cursor).encode())

    def waiting(self) -> bytes:
        """The same while `retry` is all that was said: a block is not to end before `connected`."""
        return KEEP_ALIVE

    def bye(self, retry: int) -> bytes:
        return b"retry: %d\n" % retry + self.told("bye", b'{"retry":%d}' % retry)

    def block(self, data: bytes) -> Block:
        return Block(data)


class Named(Wire):
    """Server-sent events by name."""

    def event(self, event: Event) -> bytes:
        return sse(event.type, event.payload, event.cursor)

    def told(self, type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
        return sse(type, data, cursor)


class Unnamed(Wire):
    """Server-sent events under the default name, for clients that only have `onmessage`."""

    def event(self, event: Event) -> bytes:
        return _sse(b"", enveloped(event), event.cursor)

    def told(self, type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
        return _sse(b"", _told(type, data, cursor), cursor)


class OfTask(Wire):
    """Server-sent events about one job, whatever its kind: `progress`, and how it ended."""

    rereads = False

    def event(self, event: Event) -> bytes:
        if event.type == "job.deleted":
            return sse("error", NO_TASK, event.cursor)
        known = event.type.rpartition(".")[0] in JOB_FAMILIES and event.row.keys() >= TASK  # not one of emit(), or one too large
        return self._state(event.row, event.cursor) if known else b""

    def told(self, type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
        if type == "snapshot":
            return self._state(msgspec.json.decode(data)["job"], cursor)
        return sse(type, data, cursor) if type in ("error", "expiring", "bye") else b""

    def _state(self, job: dict[str, Any], cursor: Cursor | None) -> bytes:
        type, state = task(job)
        return sse(type, msgspec.json.encode(state), cursor)


class WebSocket(Wire):
    """Text frames of JSON (RFC 6455)."""

    def event(self, event: Event) -> bytes:
        whole = envelope(event)
        payload = whole.pop("data")
        keys = event.fields.keys() if event.type.startswith(TOP_LEVEL) else set()
        if keys and whole.keys() & keys <= {"timestamp"}:  # the same
            head = {key: value for key, value in whole.items() if key not in keys}
            return text_frame(b"%b,%b" % (msgspec.json.encode(head)[:-1], bytes(payload).lstrip()[1:]))
        return text_frame(enveloped(event))

    def told(self, type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
        return text_frame(_told(type, data, cursor))

    def alive(self, cursor: Cursor | None) -> bytes:
        return self.told("keepalive", b"{}", cursor)

    def waiting(self) -> bytes:
        return self.alive(None)

    def bye(self, retry: int) -> bytes:
        return self.told("bye", b'{"retry":%d}' % retry)

    def block(self, data: bytes) -> Block:
        return Block(data, chunked=False)


WIRES: dict[Format, Wire] = {"event": Named(), "message": Unnamed(), "task": OfTask(), "socket": WebSocket()}


@lru_cache(maxsize=16)
def alive(wire: Wire, cursor: Cursor | None) -> Block:
    """Made once for all clients of a kind."""
    return wire.block(wire.alive(cursor))


def sse(type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
    """One server-sent event (HTML standard, 9.2.5). `data` has no line break."""
    return _sse(b"event: %b\n" % type.encode(), data, cursor)


def _sse(name: bytes, data: bytes, cursor: Cursor | None) -> bytes:
    id = b"" if cursor is None else b"id: %b\n" % str(cursor).encode()
    return b"%b%bdata: %b\n\n" % (id, name, data)


def enveloped(event: Event) -> bytes:
    """An event as one JSON object."""
    return msgspec.json.encode(envelope(event))


def envelope(event: Event) -> dict[str, Any]:
    return {
        "cursor": str(event.cursor),
        "type": event.type,
        "timestamp": datetime.fromtimestamp(event.created_at, UTC).isoformat(),
        "session_id": event.session_id,
        "project_id": event.project_id,
        "data": msgspec.Raw(event.payload),
    }


def _told(type: str, data: bytes, cursor: Cursor | None) -> bytes:
    return msgspec.json.encode({"cursor": cursor and str(cursor), "type": type, "data": msgspec.Raw(data)})


def task(job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A job as those see it who follow it as a task: the name of the frame, and what is in it."""
    status = "processing" if job["status"] == "running" else job["status"]
    if status == "completed":
        return "completed", {"status": status, **{key: job[key] for key in ("id", "name", "progress", "result")}}
    state = {"status": status, **{key: job[key] for key in ("id", "progress", "message", "result", "error")}}
    return status if status in ("failed", "cancelled") else "progress", state


def text_frame(text: bytes) -> bytes:
    """A whole text message of a server: a header and the payload (RFC 6455, section 5.2)."""
    n = len(text)
    if n < 126:
        return b"\x81%c%b" % (n, text)
    if n < 65536:
        return b"\x81\x7e%b%b" % (n.to_bytes(2, "big"), text)
    return b"\x81\x7f%b%b" % (n.to_bytes(8, "big"), text)


def texts(frames: bytes) -> Iterator[str]:
    """What is in such frames, for servers that make them themselves."""
    at = 0
    while at < len(frames):
        size = frames[at + 1]
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(frames[at : at + width], "big")
            at += width
        yield frames[at : at + size].decode()
        at += size
