"""The composition root: what a process consists of, and its web application."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from . import reference
from . import settings as settings_module
from .access import Authority, Check, load_check
from .auth import Verifier
from .database import create_pool
from .errors import ConfigurationError, RowcastError, TooMany, Unauthorized
from .feed import Feed
from .gate import AccessLog, OriginCheck, redact_others
from .hub import Hub
from .limits import Limits
from .listener import Listener
from .log import Log
from .pruner import prune
from .reaper import reap
from .sequencer import Sequencer
from .settings import Settings
from .state import State
from .supervisor import Supervisor
from .tickets import Tickets
from .transports import entry, targets
from .transports.credentials import cookie, no_cookie, ticket
from .transports.poll import poll
from .transports.sessions import session_state
from .transports.sse import stream
from .transports.tasks import task_cancel, task_state, task_stream
from .transports.websocket import websocket

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0
RETRY_AFTER = 10
"""Seconds."""

NO_KEY = """\
there is no key to check tokens with, and without one everybody could read everything. Set ROWCAST_KEY to a secret of 32 bytes
or more (`rowcast key` makes one) or to the public key of whoever issues your tokens; or ROWCAST_KEY_FILES, or ROWCAST_JWKS_URL.
To let everybody in, on loopback only: --no-auth"""

PAGE = Path(__file__).parent / "console" / "index.html"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    # Nothing but what is in it, and never inside another page.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Rowcast:
    """One process, made inside its event loop: a listener, a sequencer, a small pool, and any number of clients."""

    def __init__(self, settings: Settings, verifier: Verifier | None, check: Check | None) -> None:
        self.settings = settings
        self.verifier = verifier
        """None where everybody may do everything."""
        direct = settings.listen_url or settings.database_url
        self.pool = create_pool(settings.database_url, settings.pool_size, pooled=settings.listen_url is not None)
        self.log = Log(self.pool)
        self.hub = Hub()
        self.state = State(self.pool)
        self.limits = Limits(settings.connections, settings.user_connections, settings.session_connections, settings.handshakes)
        self.tickets = Tickets(self.pool, settings.claim)
        self.authority = Authority(self.pool, self.hub.grounds, check, settings.leeway) if verifier else None
        self.feed = Feed(
            self.hub,
            self.log,
            self.state,
            self.limits,
            timedelta(seconds=settings.recent_seconds),
            settings.recent_events,
            settings.retry,
            settings.expiring,
        )
        self.sequencer = Sequencer(direct, settings.tick)
        self.listener = Listener(direct, self.log, self.hub, settings.heartbeat, self.sequencer.ring)
        self.supervisor = Supervisor()

    def __repr__(self) -> str:
        return f"<Rowcast {self.hub} {self.feed} {self.listener} {self.sequencer}>"

    @property
    def trouble(self) -> str | None:
        """Why this process is not ready, if so."""
        if self.supervisor.died:
            return "; ".join(self.supervisor.died.values())
        keys = self.verifier.trouble if self.verifier else None
        return self.listener.trouble or self.sequencer.trouble or (keys and f"keys: {keys}")

    async def start(self) -> None:
        await self.pool  # opens nothing yet
        settings = self.settings
        self.supervisor.start("listener", self.listener.run)
        self.supervisor.start("sequencer", self.sequencer.run)
        self.supervisor.start("pruner", lambda: prune(self.log, self.sequencer, timedelta(seconds=settings.retention)))
        self.supervisor.start("reaper", lambda: reap(self.pool, lambda: self.listener.trouble or self.sequencer.trouble))
        self.supervisor.start("server watch", self._watch_server)
        if self.verifier:
            self.supervisor.start("keys", self.verifier.run)
        self.supervisor.start("keep-alive", lambda: self.feed.keep_alive(settings.keepalive))

    async def _watch_server(self) -> None:
        """A plain `uvicorn rowcast.main:app` waits for open streams before it ends the lifespan. Its
        handler of SIGTERM leads to it, and it tells when it wants to end."""
        while True:
            server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            if getattr(server, "should_exit", False):
                await self.drain()
                return
            await asyncio.sleep(0.2)

    async def drain(self) -> None:
        """End all streams, with a `bye`. New ones get theirs at once."""
        await self.feed.drain(self.settings.drain)

    async def stop(self) -> None:
        await self.drain()
        self.sequencer.stop()
        await self.supervisor.finish("sequencer", CLOSE_TIMEOUT)
        await self.supervisor.stop()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Starlette does not run the lifespan of a mounted application: enter this one in your own."""
    redact_others()
    app.state.rowcast = Rowcast(app.state.settings, app.state.verifier, app.state.check)
    await app.state.rowcast.start()
    try:
        yield
    finally:
        await app.state.rowcast.stop()


async def livez(request: Request) -> Response:
    return PlainTextResponse("ok")


async def readyz(request: Request) -> Response:
    """The cause may name hosts and roles, and is for whoever may see everything; all others find it in the log."""
    trouble = request.app.state.rowcast.trouble
    if not trouble:
        return JSONResponse({"status": "ready"})
    try:
        open = (await entry.grant(request)).is_admin
    except RowcastError:
        open = False
    return JSONResponse({"status": "not ready", **({"cause": trouble} if open else {})}, 503)


async def page(request: Request) -> Response:
    return FileResponse(PAGE, headers=PAGE_HEADERS)


async def on_rowcast_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RowcastError)
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 6750, section 3
    if isinstance(error, TooMany):
        headers["Retry-After"] = str(RETRY_AFTER)
    return JSONResponse(error.described, error.http_status, headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def on_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, 500)


class IdConvertor(StringConvertor):
    """An id as Topic allows it, or not: it may hold a slash, and what is wrong with it gets 400, not 404."""

    regex = r"(?s:.*)"


register_url_convertor("id", IdConvertor())


def streams(path: str, aim: targets.Aim) -> list[BaseRoute]:
    """The same events as server-sent events and over WebSocket."""
    return [Route(path, stream(aim)), WebSocketRoute(path, websocket(aim))]


def cross_origin(origins: list[str]) -> list[Middleware]:
    """The headers with which browsers let pages of these use the hub. Those of its own origin need none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Last-Event-ID", "If-None-Match", "Cache-Control", "Content-Type"),
            expose_headers=("ETag", "Retry-After"),
            allow_credentials=True,
        )
    ]


def create_verifier(settings: Settings) -> Verifier | None:
    """None under `no_auth`. ConfigurationError where nothing says whom to let in."""
    verifier = Verifier(settings)
    if verifier.has_keys and settings.no_auth:
        raise ConfigurationError("ROWCAST_NO_AUTH (--no-auth) lets everybody in, and there is a key: take away one of them")
    if not (verifier.has_keys or settings.no_auth):
        raise ConfigurationError(NO_KEY)
    return None if settings.no_auth else verifier


def create_app(settings: Settings | None = None) -> Starlette:
    """A Starlette application; while it runs, `app.state.rowcast` is the process behind it."""
    settings = settings or settings_module.load()
    verifier = create_verifier(settings)
    check = load_check(settings.authorize) if settings.authorize else None
    app = Starlette(
        routes=[
            *streams("/api/stream", targets.topics),
            *streams("/api/stream/projects/{project_id:id}/ingest/{job_id:id}", targets.job("ingest")),
            *streams("/api/stream/projects/{project_id:id}/agent-runs/{job_id:id}", targets.job("agent")),
            *streams("/api/stream/projects/{project_id:id}/workflows/runs/{job_id:id}", targets.job("workflow")),
            *streams("/api/stream/projects/{project_id:id}", targets.project),
            Route("/api/sse/{session_id:id}", stream(targets.session)),
            Route("/api/poll", poll(targets.topics)),
            Route("/api/poll/{session_id:id}", poll(targets.session)),
            Route("/api/sessions/{session_id:id}", session_state),
            Route("/api/v1/tasks/{task_id:id}/stream", task_stream),
            Route("/api/v1/tasks/{task_id:id}/cancel", task_cancel, methods=["POST"]),
            Route("/api/v1/tasks/{task_id:id}", task_state),
            Route("/api/tickets", ticket, methods=["POST"]),
            Route("/api/cookie", cookie, methods=["POST"]),
            Route("/api/cookie", no_cookie, methods=["DELETE"]),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/openapi.json", reference.serve(reference.openapi)),
            Route("/asyncapi.json", reference.serve(reference.asyncapi)),
            Route("/", page),
        ],
        exception_handlers={RowcastError: on_rowcast_error, HTTPException: on_http_error, Exception: on_bug},
        middleware=[
            Middleware(AccessLog),
            Middleware(OriginCheck, origins=settings.allowed_origins, loopback_only=settings.no_auth),
            *cross_origin(settings.allowed_origins),
        ],
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.verifier = verifier
    app.state.check = check
    return app


def __getattr__(name: str) -> Starlette:
    """`uvicorn rowcast.main:app`: made when it is asked for, not on import."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
