"""Event, Topic and Cursor, and what a notification says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, NewType

import msgspec

from .errors import InvalidParameter

Position = NewType("Position", int)
"""An event's place in the log: 1, 2, 3, … without gaps."""

Kind = Literal["session", "project", "job"]
Format = Literal["event", "message", "json"]

_ENDS = ("completed", "failed", "cancelled")
_CURSOR = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PATTERN = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?", re.ASCII)


class Cursor(NamedTuple):
    """`<epoch>-<position>`: the SSE `id:`, `Last-Event-ID` and `after=`. Opaque to clients."""

    epoch: str
    position: Position

    @classmethod
    def parse(cls, text: str, parameter: str = "after") -> "Cursor":
        if match := _CURSOR.fullmatch(text):
            return cls(match[1], Position(int(match[2])))
        raise InvalidParameter(parameter, "must be a cursor as received in an event's id")

    def __str__(self) -> str:
        return f"{self.epoch}-{self.position}"


class Topic(NamedTuple):
    """What a client follows."""

    kind: Kind
    id: str

    @classmethod
    def of(cls, kind: Kind, id: str) -> "Topic":
        if not 1 <= len(id) <= 128 or _CONTROL.search(id):
            raise InvalidParameter(f"{kind}_id", "must be 1 to 128 characters without control characters")
        return cls(kind, id)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


class Types:
    """A filter over event types: `ingest.job.*,message.*`; `*` is all."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, text: str = "*") -> None:
        patterns = [pattern.strip() for pattern in text.split(",")]
        if len(text) > 1000 or not all(map(_PATTERN.fullmatch, patterns)):
            raise InvalidParameter("types", "must be types or prefixes like message.*, separated by commas")
        self._exact = frozenset(patterns)
        self._prefixes = tuple(pattern.removesuffix("*") for pattern in patterns if pattern.endswith("*"))

    def __contains__(self, type: str) -> bool:
        return type in self._exact or type.startswith(self._prefixes)


@dataclass(slots=True)
class Event:
    """One row of the log. `payload` is one line of JSON, as PostgreSQL wrote it."""

    cursor: Cursor
    type: str
    session_id: str | None
    project_id: str | None
    job_id: str | None
    created_at: float
    payload: bytes

    @property
    def position(self) -> Position:
        return self.cursor.position

    @property
    def topics(self) -> Iterator[Topic]:
        if self.session_id is not None:
            yield Topic("session", self.session_id)
        if self.project_id is not None:
            yield Topic("project", self.project_id)
        if self.job_id is not None:
            yield Topic("job", self.job_id)

    @property
    def terminal(self) -> bool:
        """Whether this ends a job or a request."""
        family, _, last = self.type.rpartition(".")
        if family in ("ingest.job", "agent.run", "workflow.run", "task"):
            return last in _ENDS or (last == "created" and _status(self.payload) in _ENDS)
        return self.type == "request_update" and _status(self.payload) in ("done", "error")


def _status(payload: bytes) -> object:
    try:
        row = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return None  # numbers that only PostgreSQL can hold
    for noun in ("job", "run"):
        row = row.get(noun, row) if isinstance(row, dict) else row
    return row.get("status") if isinstance(row, dict) else None


class Notice(msgspec.Struct):
    """What a notification on the channel `rowcast` says: an event, an event without its payload, or
    that the log now goes `upto` a position."""

    epoch: str
    position: Position = Position(0)
    upto: Position = Position(0)
    type: str = ""
    session_id: str | None = None
    project_id: str | None = None
    job_id: str | None = None
    created_at: float = 0.0
    payload: msgspec.Raw = msgspec.Raw(b"")

    def event(self) -> Event | None:
        if not self.payload:
            return None
        cursor = Cursor(self.epoch, self.position)
        return Event(cursor, self.type, self.session_id, self.project_id, self.job_id, self.created_at, bytes(self.payload))


decode_notice = msgspec.json.Decoder(Notice).decode  # the payload stays as it is


class Lineage(tuple[Cursor, ...]):
    """The epochs of this log and where each starts, oldest first; the last one is current.

    A promoted standby opens an epoch at its head: what the old epoch numbered up to there is the
    same history, what it numbered above is lost.
    """

    @property
    def epoch(self) -> str:
        return self[-1].epoch

    def locate(self, cursor: Cursor) -> Position | None:
        """The cursor's position in the current epoch, or None where it means nothing any more."""
        for start, following in zip(self, (*self[1:], None), strict=True):
            if start.epoch == cursor.epoch:
                return cursor.position if following is None or cursor.position <= following.position else None
        return None
