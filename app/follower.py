"""A client that follows topics over a stream, and what it is told."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from .access import Access
from .batching import Window
from .burst import Burst, View
from .errors import RowcastError, Unauthorized
from .events import OF_ITSELF, Cursor, Event, Kind, Position, Topic
from .frames import alive
from .hub import Hub
from .merging import merge
from .sinks import Sink
from .wish import Joining, Start, Wish

TIMER_MOST = 86400.0
"""Seconds that a timer is set for: what is further away is looked at again."""

GRACE = 5.0
"""Seconds that one who is refused gets to take what was written."""

HELD, HELD_BYTES = 1000, 1_000_000
"""Bursts that wait for the end of a window, at most, and what is in them. Beyond that they do not wait."""


class Home(Protocol):
    """Where a follower catches up, and who knows that it is there."""

    hub: Hub
    expiring: float
    """Seconds before the end of its access that a follower is told of it."""

    def catch_up(self, follower: "Follower") -> Coroutine[None, None, None]: ...
    def window(self, milliseconds: int) -> Window: ...
    def remove(self, client: "Follower") -> None: ...


class Follower:
    """Catching up, while its home does that for it in a task, or live."""

    # fmt: off
    __slots__ = ("_catching_up", "_caught_up", "_expiry", "_greeted", "_held", "_held_bytes", "_home", "_hub", "_start", "_warned",
                 "_window", "access", "closed", "ends_from", "epoch", "joining", "may_have_ended", "position", "sink", "topics", "view",
                 "wish")
    # fmt: on

    def __init__(self, home: Home, topics: tuple[Topic, ...], wish: Wish, sink: Sink, access: Access | None = None) -> None:
        self.access = access
        """None where everybody may see everything."""
        self._expiry: asyncio.TimerHandle | None = None
        self._warned = False
        self._home = home
        self._hub = home.hub
        self.topics = topics
        self.wish = wish
        self.view = wish.view
        self.sink = sink
        self.position = Position(0)
        """Up to here it has everything that it asked for."""
        self.epoch = ""
        """In which the position counts, while it catches up."""
        self.joining: deque[Joining] | None = None
        self._start: Start | None = None
        self._greeted = False
        self._caught_up = False
        self.closed = False
        self._catching_up: asyncio.Task[None] | None = None
        self._window = home.window(wish.batch) if wish.batch else None
        self._held: list[Burst] | None = None
        """What waits for the end of its window."""
        self._held_bytes = 0
        self.may_have_ended = wish.until_end and (self.follows in OF_ITSELF or wish.after is not None)
        """Up to where it begins; to be found out."""
        self.ends_from = Position(0)
        """What ended before had begun anew."""
        sink.owner = self
        if access:
            access.begin(self.doubt)
            self._mind_expiry(access)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "catching up" if self._catching_up else "live"
        return f"<Follower of {', '.join(map(str, self.topics))} at {self.position}, {state}, {self.sink}>"

    @property
    def follows(self) -> Kind | None:
        """The kind of its topic, if it is one."""
        return self.topics[0].kind if len(self.topics) == 1 else None

    @property
    def subject(self) -> str | None:
        return self.access.grant.subject if self.access else None

    @property
    def doubtful(self) -> bool:
        """Whether it has to ask first if it may be told anything."""
        return self.access is not None and self.access.doubtful

    @property
    def located(self) -> bool:
        return self._greeted or self._start is not None

    @property
    def cursor(self) -> Cursor | None:
        return self._hub.cursor(self.position) if self._greeted else None

    def catch_up(self) -> None:
        self._catching_up = asyncio.create_task(self._home.catch_up(self), name=f"catch up {', '.join(map(str, self.topics))}"[:200])

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
        about = {
            **self.wish.about,
            "timestamp": time.time(),
            "cursor": str(cursor),
            "resumed": start.reason == "resumed",
            "reason": start.reason,
        }
        # Who is cut before it has the snapshot begins with one again.
        self.tell("connected", about, None if start.snapshot else cursor)
        if start.lost:
            self._tell_reset(start.lost)
        if start.snapshot:
            self.tell("snapshot", msgspec.Raw(start.snapshot), cursor)
        if self.access:
            self._warn_in_time(self.access)

    # Its access: in doubt, and at its end.

    def doubt(self) -> None:
        if self._catching_up is not None and not self.closed:
            self._catching_up.cancel()  # it may wait for a client that does not read
            self.catch_up()
        elif not self.closed:
            self._pause()  # with what came before

    def _mind_expiry(self, access: Access) -> None:
        left = access.ends - time.time()
        if left <= 0:
            self.refuse(Unauthorized("the token has expired"))
            return
        self._warn_in_time(access)
        notice = left - self._home.expiring
        delay = min(notice if notice > 0 else left, TIMER_MOST)
        self._expiry = asyncio.get_running_loop().call_later(delay, self._mind_expiry, access)

    def _warn_in_time(self, access: Access) -> None:
        """So that the client renews its token, and comes back with it."""
        if self._greeted and not self._warned and access.ends - time.time() <= self._home.expiring:
            self._warned = True
            self.tell("expiring", {"expires_at": access.ends})

    def deliver(self, burst: Burst) -> None:
        """While it is live. When its sink is full it leaves the hub, and catches up once that has drained."""
        if self.sink.full or (self.wish.admission and self.wish.admission.doubts(burst.events)):
            self.lag()
        elif self._window is None:
            self.write(burst)
        else:
            self._hold(burst, self._window)

    def _hold(self, burst: Burst, window: Window) -> None:
        if self._held is None:
            self._held, self._held_bytes = [], 0
            window.add(self)
        self._held.append(burst)
        self._held_bytes += burst.size
        if len(self._held) > HELD or self._held_bytes > HELD_BYTES:
            self.flush(Burst.joined)

    def lag(self) -> None:
        """It goes back to catching up, from where it is."""
        held, self._held = self._held, None
        self._hub.leave(self)
        self._move(max(self.position, Position(held[0].first - 1) if held else self._hub.position))
        self.catch_up()

    def flush(self, together: Callable[[Sequence[Burst]], Burst]) -> None:
        """The end of its window."""
        held, self._held = self._held, None
        if held and not self.closed:
            if self.sink.full:
                self._held = held
                self.lag()
            else:
                self.write(together(held))

    def write(self, burst: Burst) -> None:
        """The next events, as far as it does not have them."""
        if burst.first <= self.position:  # it read ahead of the hub, in the log
            if burst.last <= self.position:
                return
            burst = Burst([event for event in burst.events if event.position > self.position])
        if self.wish.until_end:
            self._write_to_the_end(burst)
        else:
            self._write(burst)

    def _write(self, burst: Burst) -> None:
        self.position = burst.last
        block = burst.block(self.view)
        if block is not None:
            self.sink.write(block)

    def _write_to_the_end(self, burst: Burst) -> None:
        alone = self.follows if self.follows in OF_ITSELF else None
        end = next(
            (event for event in burst.events if event.ends and alone in (None, event.ends) and event.position >= self.ends_from), None
        )
        if end is None:
            self._write(burst)
        elif not self.closed:
            self._write(Burst([event for event in burst.events if event.position <= end.position]))
            self.end()

    def end(self) -> None:
        """What it follows has ended, and it has everything."""
        self.greet()
        cursor = self._hub.cursor(self.position)
        self.tell("end", {**self.wish.about, "cursor": str(cursor)}, cursor)
        self.close()

    def reset(self, reason: str) -> None:
        """Its position cannot be honoured: it goes on live from the hub's, and rereads the state."""
        self._held = None
        self.may_have_ended = self.wish.until_end and self.follows in OF_ITSELF
        if not self.view.wire.rereads:
            self.close()  # it comes back, and is told the state
        elif self._greeted:
            self._move(self._hub.position)
            self._tell_reset(reason)
            if self.may_have_ended and self._catching_up is None:
                self.lag()
        else:
            self.begin(Start(self._hub.position, "truncated" if reason == "truncated" else "reset", reason))

    def live(self) -> None:
        self.greet()
        self._catching_up = None
        if not self._caught_up:
            self._caught_up = True
            cursor = self._hub.cursor(self.position)
            self.tell("caught_up", {"cursor": str(cursor)}, cursor)

    def keep_alive(self, cursor: Cursor | None) -> None:
        """For live clients with the hub's position, so that a quiet one never falls below the floor."""
        if self.closed or self.sink.full:
            return
        wire = self.view.wire
        if self._catching_up is None and self._held is None and cursor is not None and self.position <= cursor.position:
            self.position = cursor.position
            self.sink.write(alive(wire, cursor))
        elif self._greeted:
            self.sink.write(alive(wire, None))
        else:
            self.sink.write(wire.block(wire.waiting()))

    def bye(self, retry: int) -> None:
        """The process ends; the client comes back to another one, or later."""
        self.sink.write(self.view.wire.block(self.view.wire.bye(retry)))
        self.close(1012)

    def fail(self, problem: str) -> None:
        self.refuse(RowcastError(problem))

    def refuse(self, error: RowcastError) -> None:
        self.tell("error", {"error": str(error), "code": error.code, **self.wish.about})
        self.close(error.websocket_code)
        asyncio.get_running_loop().call_later(GRACE, self.sink.abort)  # who does not read even that

    def close(self, code: int = 1000) -> None:
        """No more events; the sink ends after what was written."""
        self.closed = True
        self._held = None
        self._hub.leave(self)
        self.sink.close(code)

    def gone(self) -> None:
        """The response has ended, whoever ended it."""
        self.close()
        self._home.remove(self)
        if self.access:
            self.access.end()
        if self._expiry:
            self._expiry.cancel()
        if self._catching_up is not None:
            self._catching_up.cancel()

    def _move(self, position: Position) -> None:
        self.position = position
        self.epoch = self._hub.lineage.epoch

    def _tell_reset(self, reason: str) -> None:
        cursor = self._hub.cursor(self.position)
        self.tell("reset", {"reason": reason, "cursor": str(cursor)}, cursor)

    def tell(self, type: str, data: object, cursor: Cursor | None = None) -> None:
        wire = self.view.wire
        if frame := wire.told(type, msgspec.json.encode(data), cursor):
            self.sink.write(wire.block(frame))

    # What a client may change while it is connected.

    def join(self, joining: Joining) -> None:
        """Follow one more topic: it catches up with it first."""
        self._pause()
        if self.joining is None:
            self.joining = deque()
        self.joining.append(joining)

    def joined(self, joining: Joining, lost: str | None) -> None:
        """It has what it wanted of the new topic up to its position, or that is lost."""
        assert self.joining
        self.joining.remove(joining)
        self.topics = tuple(sorted({*self.topics, joining.topic}))
        self.tell("subscribed", {**joining.acknowledgement, "reset": lost}, self._hub.cursor(self.position))

    def unjoin(self, topic: Topic) -> list[Joining]:
        """No longer follow it; those who asked for it and have had no answer yet."""
        self._pause()
        self.topics = tuple(other for other in self.topics if other != topic)
        given_up = [joining for joining in self.joining or () if joining.topic == topic]
        self.joining = deque(joining for joining in self.joining or () if joining.topic != topic)
        return given_up

    def batch(self, milliseconds: int) -> None:
        self._pause()
        self._window = self._home.window(milliseconds) if milliseconds else None
        self.view = View.of(self.view.text, self.view.format, milliseconds > 0, self.view.granted)

    def _pause(self) -> None:
        """It is told what it waits for, and is no longer live: its topics change, or its access."""
        if self._catching_up is None:
            if self._held:
                self.flush(Burst.joined)
            if self._catching_up is None and not self.closed:
                self.lag()

    def write_earlier(self, events: Sequence[Event]) -> None:
        """What a new topic had before the position that it has reached: its cursor stays there."""
        cursor = self._hub.cursor(self.position)
        merged = merge(events) if self.view.merged else events
        frames = b"".join(self.view.wire.event(replace(event, cursor=cursor)) for event in merged if self.view.shows(event))
        if frames:
            self.sink.write(self.view.wire.block(frames))
