"""What a request's path, query and headers ask for. Malformed ones raise InvalidParameter."""

from collections.abc import Mapping, Sequence
from typing import get_args

from starlette.requests import HTTPConnection

from ..burst import View
from ..errors import InvalidParameter
from ..events import Cursor
from ..follower import From, Wish
from ..frames import Format
from .targets import Target

LAST_EVENT_ID = "Last-Event-ID"
BATCH_MOST = 60_000


def wish(connection: HTTPConnection, target: Target, formats: Sequence[Format] = ("event", "message")) -> Wish:
    """`Last-Event-ID` (what EventSource sends by itself) wins over `after`."""
    query = connection.query_params
    format: Format = one_of(query, "format", formats, formats[0])  # type: ignore[assignment]
    batch = milliseconds(query.get("batch", "0"))
    return Wish(
        after=cursor(connection),
        since=since(query, snapshot=target.has_state),
        view=View.of(query.get("types", "*"), format, target.project, batch > 0),
        until_end=one_of(query, "until", ("end", "never"), "end" if target.ends else "never") == "end",
        batch=batch,
        about=target.about,
    )


def cursor(connection: HTTPConnection) -> Cursor | None:
    if header := connection.headers.get(LAST_EVENT_ID):
        return Cursor.parse(header, LAST_EVENT_ID)
    text = connection.query_params.get("after")
    return Cursor.parse(text) if text else None


def since(query: Mapping[str, str], snapshot: bool = False) -> From:
    allowed = get_args(From)
    if query.get("from") == "snapshot" and not snapshot:
        raise InvalidParameter("from", "snapshot is of one session or one job")
    return one_of(query, "from", allowed, "recent")  # type: ignore[return-value]


def milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= BATCH_MOST):
        raise InvalidParameter("batch", f"must be a whole number of milliseconds from 0 to {BATCH_MOST}")
    return int(text)


def seconds(connection: HTTPConnection, name: str, most: float) -> float:
    text = connection.query_params.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidParameter(name, f"must be a number of seconds from 0 to {most:g}")
    return value


def one_of(query: Mapping[str, str], name: str, allowed: Sequence[str], default: str) -> str:
    value = query.get(name, default)
    if value not in allowed:
        raise InvalidParameter(name, f"must be {' or '.join(allowed)}")
    return value
