"""What a request's path, query and headers ask for. Malformed ones raise InvalidParameter."""

from typing import get_args

from starlette.requests import Request

from ..errors import InvalidParameter
from ..events import Cursor, Topic
from ..follower import From, Wish
from ..frames import View

LAST_EVENT_ID = "Last-Event-ID"


def session_topic(request: Request) -> Topic:
    return Topic.of("session", request.path_params["session_id"])


def wish(request: Request) -> Wish:
    """`Last-Event-ID` (what EventSource sends by itself) wins over `after`."""
    query = request.query_params
    after = None
    if header := request.headers.get(LAST_EVENT_ID):
        after = Cursor.parse(header, LAST_EVENT_ID)
    elif text := query.get("after"):
        after = Cursor.parse(text)
    return Wish(
        after=after,
        since=_one_of(request, "from", get_args(From), "recent"),  # type: ignore[arg-type]
        view=View.of(query.get("types", "*"), _one_of(request, "format", ("event", "message"), "event")),
        until_end=_one_of(request, "until", ("end", ""), "") == "end",
    )


def seconds(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidParameter(name, f"must be a number of seconds from 0 to {most:g}")
    return value


def _one_of(request: Request, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in allowed:
        raise InvalidParameter(name, f"must be {' or '.join(filter(None, allowed))}")
    return value
