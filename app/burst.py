"""What a client sees of events that came together, encoded once for all that see alike."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from .events import Event, Types
from .frames import WIRES, Block, Format
from .merging import merge

VIEWS = 4
"""For which a burst keeps its block. Clients can ask for any number; each further one pays for itself."""


class View:
    """What a client sees: which types, of those that it may see, merged or each, in which format. One object for all
    that see alike."""

    __slots__ = ("_granted", "format", "granted", "merged", "text", "types", "wire")

    def __init__(self, text: str, format: Format, merged: bool, granted: str) -> None:
        self.text = text
        self.types = Types(text)
        self.granted = granted
        self._granted = Types(granted)
        self.format = format
        self.wire = WIRES[format]
        self.merged = merged

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, types: str = "*", format: Format = "event", merged: bool = False, granted: str = "*") -> "View":
        return cls(types, format, merged, granted)

    def as_frames(self, events: Iterable[Event]) -> bytes:
        shown = [event for event in events if self.shows(event)]
        return b"".join(map(self.wire.event, merge(shown) if self.merged else shown))

    def shows(self, event: Event) -> bool:
        return event.type in self.types and event.type in self._granted


EVERYTHING = View.of()


class Burst:
    """Consecutive events of a follower's topics that came together, at least one. What a few views show of them is kept."""

    __slots__ = ("_blocks", "events", "first", "last")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.first = events[0].position
        self.last = events[-1].position
        self._blocks: dict[View, Block | None] = {}

    def __repr__(self) -> str:
        return f"<Burst {self.first} to {self.last}>"

    @property
    def size(self) -> int:
        """Bytes of the payloads."""
        return sum(len(event.payload) for event in self.events)

    @classmethod
    def joined(cls, bursts: Sequence["Burst"]) -> "Burst":
        """Of several topics, or of a while: each event once, in the order of positions."""
        if len(bursts) == 1:
            return bursts[0]
        events = {event.position: event for burst in bursts for event in burst.events}
        return cls([events[position] for position in sorted(events)])

    def block(self, view: View) -> Block | None:
        """All that the view shows of it, in one piece, or None."""
        try:
            return self._blocks[view]
        except KeyError:
            block = self._encode(view)
            if len(self._blocks) < VIEWS:
                self._blocks[view] = block
            return block

    def _encode(self, view: View) -> Block | None:
        data = view.as_frames(self.events)
        return view.wire.block(data) if data else None
