"""What a client asks for, and where that begins."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from .burst import EVERYTHING, View
from .events import Cursor, Event, Position, Topic

From = Literal["recent", "start", "now", "snapshot"]
Reason = Literal["new", "resumed", "truncated", "reset"]


class Admission(Protocol):
    """Whether a client may be told of what it asked for, where that is not known in advance."""

    def doubts(self, events: Sequence[Event]) -> bool:
        """Whether to ask, anew, before these are told."""

    async def ask(self) -> None:
        """A RowcastError: nothing more may be told."""

    def told(self, events: Sequence[Event]) -> list[Event]:
        """Those that may be told, once that was asked."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for: where to begin, and what it wants to see."""

    after: Cursor | None = None
    since: From = "recent"
    view: View = EVERYTHING
    until_end: bool = False
    """The first event that ends a job or a request ends the stream."""
    batch: int = 0
    """Milliseconds in which at most one write is made; 0: each event at once."""
    admission: Admission | None = None
    about: dict[str, str] = field(default_factory=dict)
    """What the client follows, as `connected` names it."""


@dataclass(frozen=True, slots=True)
class Start:
    position: Position
    reason: Reason
    lost: str | None = None
    """Why the cursor could not be honoured, if so."""
    snapshot: bytes | None = None
    """The state at the position, if that was asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Joining:
    """A topic that a client wants to follow from now on, and from where in it."""

    topic: Topic
    after: Cursor | None
    since: From
    acknowledgement: dict[str, Any]
