"""A client that follows a topic over a stream, and what it is told: server-sent events."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from .events import Cursor, Position, Topic
from .frames import EVERYTHING, Block, Burst, View, sse, sse_message
from .hub import Hub
from .sinks import Sink

From = Literal["recent", "start", "now"]
Reason = Literal["new", "resumed", "truncated", "reset"]

COMMENT = Block(b": keep-alive\n\n")
COMMENT_LINE = Block(b": keep-alive\n")
"""While `retry` is all that was said: a block is not to end before `connected`."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for: where to begin, and what it wants to see."""

    after: Cursor | None = None
    since: From = "recent"
    view: View = EVERYTHING
    until_end: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    position: Position
    reason: Reason
    lost: str | None = None
    """Why the cursor could not be honoured, if so."""


class Home(Protocol):
    """Where a follower catches up, and who knows that it is there."""

    hub: Hub

    def catch_up(self, follower: "Follower") -> Coroutine[None, None, None]: ...
    def remove(self, client: "Follower") -> None: ...


class Follower:
    """Catching up, while its home does that for it in a task, or live."""

    # fmt: off
    __slots__ = ("_catching_up", "_caught_up", "_greeted", "_home", "_hub", "_start",
                 "closed", "epoch", "position", "sink", "topic", "view", "wish")
    # fmt: on

    def __init__(self, home: Home, topic: Topic, wish: Wish, sink: Sink) -> None:
        self._home = home
        self._hub = home.hub
        self.topic = topic
        self.wish = wish
        self.view = wish.view
        self.sink = sink
        self.position = Position(0)
        """Up to here it has everything that it asked for."""
        self.epoch = ""
        """In which the position counts, while it catches up."""
        self._start: Start | None = None
        self._greeted = False
        self._caught_up = False
        self.closed = False
        self._catching_up: asyncio.Task[None] | None = None
        sink.owner = self

    def __repr__(self) -> str:
        state = "closed" if self.closed else "catching up" if self._catching_up else "live"
        return f"<Follower of {self.topic} at {self.position}, {state}, {self.sink}>"

    @property
    def located(self) -> bool:
        return self._greeted or self._start is not None

    def catch_up(self) -> None:
        self._catching_up = asyncio.create_task(self._home.catch_up(self), name=f"catch up {self.topic}")

    def begin(self, start: Start) -> None:
        self._start = start
        self._move(start.position)

    def greet(self) -> None:
        """`connected`, once: its id is our position, never the head, or a cut before the catch-up would lose events."""
        start = self._start
        if start is None:
            return
        self._start, self._greeted = None, True
        cursor = self._hub.cursor(self.position)
        self._tell(
            "connected",
            {
                f"{self.topic.kind}_id": self.topic.id,
                "timestamp": time.time(),
                "cursor": str(cursor),
                "resumed": start.reason == "resumed",
                "reason": start.reason,
            },
            cursor,
        )
        if start.lost:
            self._tell_reset(start.lost)

    def deliver(self, burst: Burst) -> None:
        """While it is live. When its sink is full it leaves the hub, and catches up once that has drained."""
        if self.sink.full:
            self._hub.leave(self)
            self._move(max(self.position, self._hub.position))
            self.catch_up()
        else:
            self.write(burst)

    def write(self, burst: Burst) -> None:
        """The next events, as far as it does not have them."""
        if burst.first <= self.position:  # it read ahead of the hub, in the log
            if burst.last <= self.position:
                return
            burst = Burst([event for event in burst.events if event.position > self.position])
        self.position = burst.last
        block = burst.block(self.view)
        if block is not None:
            self.sink.write(block)

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

    def keep_alive(self, alive: Block) -> None:
        """For live clients `alive` is a comment with the hub's position, so that a quiet one never falls below the floor."""
        if self.closed or self.sink.full:
            return
        if self._catching_up is None and self.position <= self._hub.position:
            self.position = self._hub.position
            self.sink.write(alive)
        else:
            self.sink.write(COMMENT if self._greeted else COMMENT_LINE)

    def bye(self, retry: int) -> None:
        """The process ends; the client comes back to another one, or later."""
        self.sink.write(Block(b"retry: %d\n" % retry))
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
        self._home.remove(self)
        if self._catching_up is not None:
            self._catching_up.cancel()

    def _move(self, position: Position) -> None:
        self.position = position
        self.epoch = self._hub.lineage.epoch

    def _tell_reset(self, reason: str) -> None:
        cursor = self._hub.cursor(self.position)
        self._tell("reset", {"reason": reason, "cursor": str(cursor)}, cursor)

    def _tell(self, type: str, data: dict[str, object], cursor: Cursor | None = None) -> None:
        encode = sse_message if self.view.format == "message" else sse
        self.sink.write(Block(encode(type, msgspec.json.encode(data), cursor)))


class FollowerToTheEnd(Follower):
    """Of one job or request: its last event ends the stream."""

    __slots__ = ()

    def write(self, burst: Burst) -> None:
        end = next((event for event in burst.events if event.terminal), None)
        if end is None:
            super().write(burst)
        elif not self.closed:
            super().write(Burst([event for event in burst.events if event.position <= end.position]))
            self._tell("end", {f"{self.topic.kind}_id": self.topic.id, "cursor": str(end.cursor)}, end.cursor)
            self.close()
