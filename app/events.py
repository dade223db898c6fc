"""Event, Topic and Cursor, and what a notification says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NewType

import msgspec

from .errors import InvalidParameter

Position = NewType("Position", int)
"""An event's place in the log: 1, 2, 3, … without gaps."""

Kind = Literal["session", "project", "job", "request", "user", "table"]

AUDIENCES: dict[Kind, str] = {
    "session": "session_id",
    "project": "project_id",
    "job": "job_id",
    "request": "request_id",
    "user": "user_id",
    "table": "table_name",
}
"""The column of the log in which an event names its topic of each kind."""

JOB_FAMILIES = ("ingest.job", "agent.run", "workflow.run", "task")
ENDED = ("completed", "failed", "cancelled")
"""Of a job."""

CREATED = {f"{family}.created" for family in JOB_FAMILIES}

OF_ITSELF: dict[Kind, list[str]] = {
    "job": ["job.deleted", *(f"{family}.{change}" for family in JOB_FAMILIES for change in ("created", "updated", "progress", *ENDED))],
    "request": ["request_update", "request.deleted"],
}
"""The types that tell of a thing itself: the last of them tells whether it has ended."""

ACCESS_CHANGED = "access.changed"
"""Somebody may have lost access. It has no audience: no client is told."""

ID_MOST = 128
CURSOR = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PATTERN = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?", re.ASCII)


class Cursor(NamedTuple):
    """`<epoch>-<position>`: the SSE `id:`, `Last-Event-ID` and `after=`. Opaque to clients."""

    epoch: str
    position: Position

    @classmethod
    def parse(cls, text: str, parameter: str = "after") -> "Cursor":
        if match := CURSOR.fullmatch(text):
            return cls(match[1], Position(int(match[2])))
        raise InvalidParameter(parameter, "must be a cursor as received in an event's id")

    def __str__(self) -> str:
        return f"{self.epoch}-{self.position}"


class Topic(NamedTuple):
    """What a client follows."""

    kind: Kind
    id: str

    @classmethod
    def of(cls, kind: Kind, id: str, parameter: str | None = None) -> "Topic":
        if not 1 <= len(id) <= ID_MOST or _CONTROL.search(id):
            raise InvalidParameter(parameter or AUDIENCES[kind], f"must be 1 to {ID_MOST} characters without control characters")
        return cls(kind, id)

    @classmethod
    def parse(cls, text: str, parameter: str = "topic") -> "Topic":
        """`<kind>:<id>`."""
        kind, colon, id = text.partition(":")
        if not colon or kind not in AUDIENCES:
            raise InvalidParameter(parameter, f"must be <kind>:<id>, where kind is {', '.join(AUDIENCES)}")
        return cls.of(kind, id, parameter)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


Topics = tuple[Topic, ...]


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
    request_id: str | None = None
    user_id: str | None = None
    table_name: str | None = None

    @property
    def position(self) -> Position:
        return self.cursor.position

    @property
    def topics(self) -> Iterator[Topic]:
        for kind, column in AUDIENCES.items():
            if (id := getattr(self, column)) is not None:
                yield Topic(kind, id)

    @property
    def audience(self) -> tuple[str | None, ...]:
        return (self.session_id, self.project_id, self.job_id, self.request_id, self.user_id, self.table_name)

    @property
    def ends(self) -> Kind | None:
        """What has ended by now, or is gone: a job or a request."""
        family, _, last = self.type.rpartition(".")
        if family in JOB_FAMILIES and (last in ENDED or self.row.get("status") in ENDED):
            return "job"
        if self.type == "request_update" and self.row.get("status") in ("done", "error"):
            return "request"
        if self.type == "job.deleted" and self.job_id is not None:
            return "job"
        if self.type == "request.deleted" and self.request_id is not None:
            return "request"
        return None

    @property
    def unsettles(self) -> str | None:
        """What access no longer rests on as it did, `<kind>:<id>`: after this, they ask again whether they may."""
        if self.type == ACCESS_CHANGED and not any(self.audience):
            return str(self.fields.get("of"))
        if self.type == "job.deleted":  # or moved
            return f"job:{self.row.get('id')}"
        if self.type == "request.deleted":
            return f"request:{self.fields.get('request_id')}"
        if self.job_id is not None and self.type in CREATED:
            return f"job:{self.job_id}"  # now it belongs somewhere
        return None

    @property
    def fields(self) -> dict[str, Any]:
        """The payload, decoded; empty where it is no object that Python can hold."""
        try:
            fields = msgspec.json.decode(self.payload)
        except (msgspec.DecodeError, RecursionError):  # numbers or depths that only PostgreSQL can hold
            return {}
        return fields if isinstance(fields, dict) else {}

    @property
    def row(self) -> dict[str, Any]:
        """What the payload tells of a job, under whatever noun, or of a request."""
        fields = self.fields
        for noun in ("job", "run"):
            if isinstance(row := fields.get(noun), dict):
                return row
        return fields


class Notice(msgspec.Struct):
    """What a notification says: an event, an event without its payload, or
    that the log now goes `upto` a position."""

    epoch: str
    position: Position = Position(0)
    upto: Position = Position(0)
    type: str = ""
    session_id: str | None = None
    project_id: str | None = None
    job_id: str | None = None
    created_at: float = 0.0
    request_id: str | None = None
    user_id: str | None = None
    table_name: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"")

    def event(self) -> Event | None:
        if not self.payload:
            return None
        cursor = Cursor(self.epoch, self.position)
        # fmt: off
        return Event(cursor, self.type, self.session_id, self.project_id, self.job_id, self.created_at, bytes(self.payload),
                     self.request_id, self.user_id, self.table_name)
        # fmt: on


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
