"""How a client is let in: what it shows, whether that allows what it asks for, and whether there is room."""

import asyncio
from typing import Any

from starlette.requests import HTTPConnection

from ..access import Access
from ..database import TROUBLE, unavailable
from ..errors import Unauthorized
from ..events import Topic
from ..grant import EVERYBODY, Grant, Right
from .targets import Target

PATIENCE = 2.0
"""Seconds for which a stream waits for the database before it begins. Then it begins, and asks before anything is told."""

SUBJECT = "rowcast.subject"
"""Where the access log finds in a scope who it was."""


async def grant(connection: HTTPConnection, tickets: bool = False) -> Grant:
    """What the client may, by the first of these that it shows: `Authorization: Bearer`, a ticket (on streams), a token
    in the query (if that is switched on), a cookie. Unauthorized where it shows none, or one that does not hold."""
    rowcast = connection.app.state.rowcast
    if rowcast.verifier is None:
        return EVERYBODY
    query = connection.query_params
    if token := bearer(connection):
        found: Grant = await rowcast.verifier.verify(token)
    elif "ticket" in query:
        if not tickets:
            raise Unauthorized("a ticket is for one stream, by server-sent events or WebSocket, and for nothing else")
        found = await _redeemed(rowcast, query["ticket"])
    elif "token" in query:
        if not rowcast.settings.query_token:
            raise Unauthorized("a token in the query is not taken here (ROWCAST_QUERY_TOKEN): use a ticket")
        found = await rowcast.verifier.verify(query["token"])
    elif token := connection.cookies.get(rowcast.settings.cookie):
        found = await rowcast.verifier.verify(token)
    else:
        raise Unauthorized("there is no token: Authorization: Bearer <token>, or the cookie")
    connection.scope[SUBJECT] = found.subject
    return found


def bearer(connection: HTTPConnection) -> str | None:
    """RFC 6750, section 2.1. Other schemes are somebody else's."""
    given = [value.partition(" ") for value in connection.headers.getlist("Authorization")]
    tokens = [token.strip() for scheme, _, token in given if scheme.lower() == "bearer"]
    if len(tokens) > 1 or tokens == [""]:
        raise Unauthorized("Authorization: Bearer is there twice" if tokens[1:] else "Authorization: Bearer has no token")
    return tokens[0] if tokens else None


async def _redeemed(rowcast: Any, ticket: str) -> Grant:
    try:
        found: Grant = await rowcast.tickets.redeem(ticket)
    except TROUBLE as error:
        raise unavailable(error) from error
    return found


async def follow(connection: HTTPConnection, shown: Grant, target: Target, patient: bool) -> Access | None:
    """Whether it may follow the target. None: anybody may. Who is patient waits for a database that is away, and asks
    before anything is told."""
    rowcast = connection.app.state.rowcast
    access = Access(rowcast.authority, shown, target.ways) if rowcast.authority else None
    if access is None and target.admission is None:
        return None
    try:
        async with asyncio.timeout(PATIENCE):
            if access:
                await access.ask()
            if target.admission:
                await target.admission.ask()
    except TROUBLE as error:
        if not patient:
            raise unavailable(error) from error
    return access


async def check(connection: HTTPConnection, shown: Grant, right: Right, topic: Topic) -> None:
    """Whether it may do this to that now."""
    rowcast = connection.app.state.rowcast
    if rowcast.authority:
        try:
            await rowcast.authority.examine(shown, right, [(topic,)])
        except TROUBLE as error:
            raise unavailable(error) from error


def room(connection: HTTPConnection, shown: Grant, target: Target) -> None:
    """TooMany where there is none for one who stays. Asked once it is let in: nobody else learns how full a session is."""
    connection.app.state.rowcast.limits.room(shown.subject, target.topics)


def address(connection: HTTPConnection) -> str | None:
    return connection.client.host if connection.client else None


def handshake(connection: HTTPConnection) -> None:
    """TooMany where too many come from where this one does."""
    connection.app.state.rowcast.limits.handshake(address(connection))
