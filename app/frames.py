"""The bytes that events become: encoded once, and shared by all clients that see them alike."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from .events import Cursor, Event, Format, Types

VIEWS = 4
"""For which a burst keeps its block. Clients can ask for any number; each further one pays for itself."""


class Block:
    """Frames that are written together, as one chunk of a response (RFC 9112, section 7.1)."""

    __slots__ = ("chunk", "data")

    def __init__(self, data: bytes) -> None:
        self.chunk = b"%x\r\n%b\r\n" % (len(data), data)
        self.data = memoryview(self.chunk)[-2 - len(data) : -2]
        """The frames alone; the same memory."""

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"<Block {len(self)} bytes>"


class View:
    """What a client sees of events: which types, in which format. One object for all that see alike."""

    __slots__ = ("format", "types")

    def __init__(self, types: Types, format: Format) -> None:
        self.types = types
        self.format = format

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, types: str = "*", format: Format = "event") -> "View":
        return cls(Types(types), format)


EVERYTHING = View.of()


class Burst:
    """Consecutive events of a topic that came together, at least one. What a few views show of them is kept."""

    __slots__ = ("_blocks", "events", "first", "last")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.first = events[0].position
        self.last = events[-1].position
        self._blocks: dict[View, Block | None] = {}

    def __repr__(self) -> str:
        return f"<Burst {self.first} to {self.last}>"

    def block(self, view: View) -> Block | None:
        """All that the view shows of it, in one piece, or None."""
        try:
            return self._blocks[view]
        except KeyError:
            frames = [frame(event, view.format) for event in self.events if event.type in view.types]
            block = Block(b"".join(frames)) if frames else None
            if len(self._blocks) < VIEWS:
                self._blocks[view] = block
            return block


def frame(event: Event, format: Format) -> bytes:
    """One event for one kind of client."""
    return _ENCODERS[format](event)


def sse(type: str, data: bytes, cursor: Cursor | None = None) -> bytes:
    """One server-sent event (HTML standard, 9.2.5). `data` has no line break."""
    id = b"" if cursor is None else b"id: %b\n" % str(cursor).encode()
    return b"%bevent: %b\ndata: %b\n\n" % (id, type.encode(), data)


def sse_message(type: str, data: bytes, cursor: Cursor | None = None, **envelope: object) -> bytes:
    """The same under the default event name, for clients that only have `onmessage`."""
    id = b"" if cursor is None else b"id: %b\n" % str(cursor).encode()
    return b"%bdata: %b\n\n" % (id, _enveloped(type, data, cursor, **envelope))


def _enveloped(type: str, data: bytes, cursor: Cursor | None, **envelope: object) -> bytes:
    fields = {"cursor": cursor and str(cursor), "type": type, **envelope, "data": msgspec.Raw(data)}
    return msgspec.json.encode(fields)


def _envelope(event: Event) -> dict[str, object]:
    at = datetime.fromtimestamp(event.created_at, UTC).isoformat()
    return {"timestamp": at, "session_id": event.session_id, "project_id": event.project_id}


_ENCODERS: dict[Format, Callable[[Event], bytes]] = {
    "event": lambda e: sse(e.type, e.payload, e.cursor),
    "message": lambda e: sse_message(e.type, e.payload, e.cursor, **_envelope(e)),
    "json": lambda e: _enveloped(e.type, e.payload, e.cursor, **_envelope(e)),
}
