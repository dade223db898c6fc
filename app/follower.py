"""A client that follows a topic over a stream, and what it is told: server-sent events."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from .events import Cursor, Event, Format, Position, Topic, Types, sse, sse_message
from .hub import Hub
from .sinks import Sink

From = Literal["recent", "start", "now"]
Reason = Literal["new", "resumed", "truncated", "reset"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for: where to begin, and what it wants to see."""

    after: Cursor | None = None
    since: From = "recent"
    types: Types = field(default_factory=Types)
    format: Format = "event"
    until_end: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    position: Position
    reason: Reason
    lost: str | None = None
    """Why the cursor could not be honoured, if so."""


class Follower:
    """Catching up, while `catch_up` runs for it, or live."""

    def __init__(self, hub: Hub, topic: Topic, wish: Wish, sink: Sink, catch_up: "CatchUp") -> None:
        self._hub = hub
        self._catch_up = catch_up
        self.topic = topic
        self.wish = wish
        self.sink = sink
        self.position = Position(0)
        self.epoch = ""
        """In which the position counts, while it catches up."""
        self._start: Start | None = None
        self._greeted = False
        self._caught_up = False
        self.closed = False
        self._catching_up: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else "catching up" if self._catching_up else "live"
        return f"<Follower of {self.topic} at {self.position}, {state}, {self.sink}>"

    @property
    def full(self) -> bool:
        return self.sink.full

    @property
    def located(self) -> bool:
        return self._start is not None

    def open(self, retry: int) -> None:
        self.sink.write(b"retry: %d\n" % retry)  # `connected` completes the block
        self.catch_up()

    def catch_up(self) -> None:
        self._catching_up = asyncio.create_task(self._catch_up(self), name=f"catch up {self.topic}")

    def begin(self, start: Start) -> None:
        self._start = start
        self._move(start.position)

    def greet(self) -> None:
        """`connected`, once: its id is our position, never the head, or a cut before the catch-up would lose events."""
        if self._greeted or self._start is None:
            return
        self._greeted = True
        cursor = self._hub.cursor(self.position)
        self._tell(
            "connected",
            {
                f"{self.topic.kind}_id": self.topic.id,
                "timestamp": time.time(),
                "cursor": str(cursor),
                "resumed": self._start.reason == "resumed",
                "reason": self._start.reason,
            },
            cursor,
        )
        if self._start.lost:
            self._tell_reset(self._start.lost)

    def deliver(self, event: Event) -> None:
        if self.closed:
            return
        if event.type in self.wish.types:
            self.sink.write(event.frame(self.wish.format))
        if self.wish.until_end and event.terminal:
            self._tell("end", {f"{self.topic.kind}_id": self.topic.id, "cursor": str(event.cursor)}, event.cursor)
            self.close()

    def lagged(self) -> None:
        self._move(self.position)
        self.catch_up()

    def reset(self, reason: str) -> None:
        """Its position cannot be honoured: it goes on live from the hub's, and rereads the state."""
        if self._greeted:
            self._move(self._hub.position)
            self._tell_reset(reason)
        else:
            self.begin(Start(self._hub.position, "truncated" if reason == "truncated" else "reset", reason))

    def live(self) -> None:
        self.greet()
        self._catching_up = None
        if not self._caught_up:
            self._caught_up = True
            cursor = self._hub.cursor(self.position)
            self._tell("caught_up", {"cursor": str(cursor)}, cursor)

    def keep_alive(self) -> None:
        """A comment; for live clients also the hub's position, so that a quiet one never falls below the floor."""
        if self.closed or self.full:
            return
        if self._catching_up is None:
            self.position = Position(max(self.position, self._hub.position))
            self.sink.write(b": keep-alive\nid: %b\n\n" % str(self._hub.cursor(self.position)).encode())
        else:
            self.sink.write(b": keep-alive\n\n" if self._greeted else b": keep-alive\n")

    def bye(self, retry: int) -> None:
        """The process ends; the client comes back to another one, or later."""
        self.sink.write(b"retry: %d\n" % retry)
        self._tell("bye", {"retry": retry})
        self.close()

    def fail(self, problem: str) -> None:
        self._tell("error", {"error": problem, f"{self.topic.kind}_id": self.topic.id})
        self.close()

    def close(self) -> None:
        """No more events; the sink ends after what was written."""
        self.closed = True
        self._hub.leave(self)
        self.sink.close()

    def gone(self) -> None:
        """The response has ended, whoever ended it."""
        self.close()
        if self._catching_up is not None:
            self._catching_up.cancel()

    def _move(self, position: Position) -> None:
        self.position = position
        self.epoch = self._hub.lineage.epoch

    def _tell_reset(self, reason: str) -> None:
        cursor = self._hub.cursor(self.position)
        self._tell("reset", {"reason": reason, "cursor": str(cursor)}, cursor)

    def _tell(self, type: str, data: dict[str, object], cursor: Cursor | None = None) -> None:
        encode = sse_message if self.wish.format == "message" else sse
        self.sink.write(encode(type, msgspec.json.encode(data), cursor))


CatchUp = Callable[[Follower], Coroutine[None, None, None]]
