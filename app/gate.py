"""What every request passes first: which page it comes from, and the log of requests. Pure ASGI, and nothing is held back."""

import logging
import re
from collections.abc import Collection
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from .errors import Forbidden
from .settings import is_loopback
from .transports.entry import SUBJECT

logger = logging.getLogger("rowcast.access")

NAME_MOST = 30
TOKEN = re.compile(r"[\w-]{16,}\.[\w-]{16,}\.[\w-]*")
"""What looks like one, wherever it stands."""
SHOWN = {"topic", "after", "from", "types", "until", "batch", "format", "wait"}
"""Of a query, in the log. Of all others only the name: some are secrets, and some are misspelt."""


class OriginCheck:
    """Refuses what a page of another origin asks for (RFC 6454): cookies go along with it, whoever wrote the page, and
    for WebSocket browsers check nothing by themselves. Programs send no Origin, and have no cookies of others.

    `loopback_only`: everybody is let in, so nobody from beyond this machine may come, and no page whose name an attacker
    has made to point here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], loopback_only: bool) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] in ("http", "websocket") else None
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            error = Forbidden(problem)
            await JSONResponse(error.described, error.http_status)(scope, receive, send)
        else:
            await WebSocketClose()(scope, receive, send)  # not accepted yet: 403

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("Host", "").lower()
        origins = headers.getlist("Origin")
        if any(origin not in self._origins and not _is_of(origin, host) for origin in origins):
            return "a page of another origin asks: name it in ROWCAST_ORIGINS if it may"
        forwarded = "X-Forwarded-For" in headers or "Forwarded" in headers
        if self._loopback_only and (forwarded or not _is_here(scope) or not (not host or is_loopback(_name(host)))):
            return "without authentication the hub serves this machine only, without a proxy, under the name localhost or 127.0.0.1"
        return None


def _is_of(origin: str, host: str) -> bool:
    """Whether the page came from where the request goes. Behind a proxy that ends TLS the scheme is not to be known."""
    scheme, _, authority = origin.lower().partition("://")
    return scheme in ("http", "https") and authority == host != ""


def _is_here(scope: Scope) -> bool:
    """Whether the connection came to a loopback address, or a socket in the file system."""
    server = scope.get("server")
    return server is None or server[1] is None or is_loopback(server[0])


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class AccessLog:
    """A line for each request when its answer begins: who asked, from where, for what, and the status. uvicorn's own
    shows queries, and so what is secret in them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not logger.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return

        accepted = False

        async def noted(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            if status := _status(message, accepted):
                client = scope.get("client")
                who = quote(scope.get(SUBJECT) or "-", safe="@:+ ")
                path = without_tokens(quote(scope["path"], safe="/:@"))
                asked = f"{scope.get('method', 'WS')} {path}{redacted(scope['query_string'].decode('latin-1'))}"
                logger.info('%s %s "%s" %d', quote(client[0], safe=":") if client else "-", who, asked, status)
            await send(message)

        await self._app(scope, receive, noted)


def _status(message: Message, accepted: bool) -> int | None:
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return int(message["status"])
        case "websocket.accept":
            return 101
        case "websocket.close":  # refused before it began, or with a code that says why
            code = int(message.get("code") or 1000)
            return 403 if not accepted else code if code not in (1000, 1012) else None
    return None


def without_tokens(text: str) -> str:
    return TOKEN.sub("…", text) if text.count(".") > 1 else text


def redacted(query: str) -> str:
    """A query for a log: the values of what is known to be harmless, and the names of the rest."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=200)
    except ValueError:
        return "?…"
    told = (f"{quote(name[:NAME_MOST])}={quote(value, safe=':*,') if name in SHOWN else '…'}" for name, value in pairs)
    return without_tokens("?" + "&".join(told)) if pairs else ""


class _Redacting(logging.Filter):
    """On the logs of a uvicorn that is not started by us: addresses with queries, and while it debugs the heads of handshakes."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG and str(record.msg)[:2] in ("< ", "> "):
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_without_secrets(argument) for argument in record.args)
        return True


def _without_secrets(argument: object) -> object:
    if not isinstance(argument, str) or "?" not in argument:
        return argument
    path, _, query = argument.partition("?")
    return without_tokens(path) + redacted(query)


_REDACTING = _Redacting()


def redact_others() -> None:
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_REDACTING)  # once: a filter is not added twice
