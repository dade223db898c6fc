"""What a request's path, query and headers ask for. Malformed ones raise InvalidParameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import HTTPConnection

from ..burst import View
from ..errors import Forbidden, InvalidParameter
from ..events import CURSOR, Cursor
from ..grant import Grant
from ..wish import From, Wish
from .targets import Target

LAST_EVENT_ID = "Last-Event-ID"
BATCH_MOST = 60_000
WAIT_MOST = 30


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a query. Its type is what the text is read as, and its schema in the documents."""

    name: str
    type: Any
    must: str
    says: str

    def of(self, query: Mapping[str, str], default: Any) -> Any:
        try:
            return msgspec.convert(query.get(self.name, default), self.type, strict=False)
        except msgspec.ValidationError:
            raise InvalidParameter(self.name, f"must be {self.must}") from None


# fmt: off
TOPIC = Parameter("topic", list[str], "<kind>:<id>", "what to follow, `<kind>:<id>`; once or several times")
AFTER = Parameter("after", Annotated[str, Meta(pattern=f"^({CURSOR.pattern})?$")], "a cursor",
                  "begin after this cursor; the header Last-Event-ID says the same and wins")
FROM = Parameter("from", From, "recent, start, now or snapshot",
                 "where to begin without a cursor: the last few minutes, all that is kept, now, or (of one session or one job) the state")
FROM_LOG = Parameter("from", Literal["recent", "start", "now"], "recent, start or now",
                     "where to begin without a cursor: the last few minutes, all that is kept, or now")
TYPES = Parameter("types", Annotated[str, Meta(max_length=1000)], "types",
                  "only events of these types, or prefixes such as `message.*`, separated by commas")
FORMAT = Parameter("format", Literal["event", "message"], "event or message",
                   "message: everything under the default event name, for `onmessage`")
UNTIL = Parameter("until", Literal["end", "never"], "end or never",
                  "end: close after the first event that ends a job or a request; so by default where one of these is followed")
BATCH = Parameter("batch", Annotated[int, Meta(ge=0, le=BATCH_MOST)], f"a whole number of milliseconds from 0 to {BATCH_MOST}",
                  "milliseconds in which at most one write is made, of events that are merged")
TICKET = Parameter("ticket", str, "a ticket", "what POST /api/tickets gave, in the place of a token; once")
WAIT = Parameter("wait", Annotated[float, Meta(ge=0, le=WAIT_MOST)], f"a number of seconds from 0 to {WAIT_MOST}",
                 "with nothing new, hold the answer back for at most so many seconds")
# fmt: on


def wish(connection: HTTPConnection, target: Target, grant: Grant) -> Wish:
    """`Last-Event-ID` (what EventSource sends by itself) wins over `after`."""
    query = connection.query_params
    format = "socket" if connection.scope["type"] == "websocket" else FORMAT.of(query, "event")
    batch = BATCH.of(query, 0)
    begin = since(query, snapshot=target.has_state)
    if begin == "snapshot":
        check_state(grant)
    return Wish(
        after=cursor(connection),
        since=begin,
        view=View.of(query.get("types", "*"), format, batch > 0, granted(grant)),
        until_end=UNTIL.of(query, "end" if target.ends and not (target.open and format == "socket") else "never") == "end",
        batch=batch,
        admission=target.admission,
        about=target.about,
    )


def granted(grant: Grant) -> str:
    """The types of events that it allows."""
    return "*" if grant.is_admin else grant.types


def check_state(grant: Grant) -> None:
    """Forbidden where the state, which holds rows of all kinds, would tell more than the events that are allowed."""
    if granted(grant) != "*":
        raise Forbidden("the token allows some types of events only, and the state would tell more")


def cursor(connection: HTTPConnection) -> Cursor | None:
    if header := connection.headers.get(LAST_EVENT_ID):
        return Cursor.parse(header, LAST_EVENT_ID)
    text = connection.query_params.get("after")
    return Cursor.parse(text) if text else None


def since(query: Mapping[str, str], snapshot: bool = False) -> From:
    value: From = FROM.of(query, "recent")
    if value == "snapshot" and not snapshot:
        raise InvalidParameter("from", "snapshot is of one session or one job")
    return value
