"""What a browser shows instead of a token, since EventSource and WebSocket send no headers there: a ticket or a cookie."""

import time

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..database import TROUBLE, unavailable
from ..errors import Forbidden, InvalidParameter, Unauthorized
from ..events import Topic
from ..settings import is_loopback
from ..tickets import LIFE
from . import entry

BODY_MOST = 65_536
"""Bytes of a body."""
COOKIE_MOST = 4000
UNCACHED = {"Cache-Control": "no-store"}


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """For what a ticket is."""

    topics: list[str]


async def ticket(request: Request) -> Response:
    """POST /api/tickets: a ticket for these topics, which whoever asks may follow itself."""
    rowcast = request.app.state.rowcast
    entry.handshake(request)
    if rowcast.authority is None:
        raise Forbidden("there is no authentication here, and no need for tickets")
    grant = await entry.grant(request)
    topics = tuple(Topic.parse(text) for text in (await _asked(request)).topics)
    if not 1 <= len(topics) <= rowcast.settings.topics:
        raise InvalidParameter("topics", f"must be 1 to {rowcast.settings.topics}")
    try:
        await rowcast.authority.examine(grant, "stream", [topics])
        issued = await rowcast.tickets.issue(grant, topics)
    except TROUBLE as error:
        raise unavailable(error) from error
    return JSONResponse({"ticket": issued, "expires_in": LIFE}, 201, UNCACHED)


async def _asked(request: Request) -> Asked:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_MOST:
            raise InvalidParameter("body", f"is longer than {BODY_MOST} bytes")
    try:
        return msgspec.json.decode(body, type=Asked)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise InvalidParameter("body", 'must be JSON such as {"topics": ["session:42"]}') from None


async def cookie(request: Request) -> Response:
    """POST /api/cookie: the token of `Authorization: Bearer` as a cookie that no script can read."""
    rowcast = request.app.state.rowcast
    entry.handshake(request)
    token = entry.bearer(request)
    if token is None:
        raise Unauthorized("Authorization: Bearer has to hold the token that becomes the cookie")
    if len(token) > COOKIE_MOST:
        raise InvalidParameter("token", f"is longer than {COOKIE_MOST} characters, more than browsers keep in a cookie")
    grant = await entry.grant(request)
    response = Response(status_code=204, headers=UNCACHED)
    if rowcast.verifier:
        _set(request, response, token, max(int(grant.expires - time.time()), 0))
    return response


async def no_cookie(request: Request) -> Response:
    """DELETE /api/cookie: signs out of this browser. The token itself is good until its end, or rowcast.revoke()."""
    response = Response(status_code=204, headers=UNCACHED)
    _set(request, response, "", 0)
    return response


def _set(request: Request, response: Response, token: str, age: int) -> None:
    # Over plain HTTP browsers keep no Secure cookie, except some from loopback: there it may go without.
    plain = request.url.scheme == "http" and is_loopback(request.url.hostname or "")
    response.set_cookie(request.app.state.settings.cookie, token, max_age=age, path="/", secure=not plain, httponly=True, samesite="strict")
