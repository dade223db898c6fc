"""The uvicorn server around the application: how it drains, what it logs, and its worker processes.

uvicorn waits for open connections before the lifespan ends, so the streams are ended first, here.
"""

import gc
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from . import takeover
from .errors import ConfigurationError
from .main import create_app
from .process import Child, keep_running
from .settings import Settings, is_loopback
from .transports.websocket import FRAME_MOST

logger = logging.getLogger(__name__)

BACKLOG = 4096
FILES = 1_000_000
LAST_GRACE = 1
"""Seconds that uvicorn gives what is still open after the drain."""


class Server(uvicorn.Server):
    """Drains before it shuts down, and exits 0 when it was asked to end."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._app.state.rowcast.drain()
        if self._app.state.rowcast.feed.clients:
            for connection in list(self.server_state.connections):
                connection.transport.abort()  # whoever does not read even now
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # or uvicorn raises them again, and exits 143


def create_server(settings: Settings) -> Server:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # uvicorn's prints query strings
        http=takeover.Protocol,
        ws=takeover.WebSocketProtocol,
        ws_max_size=FRAME_MOST,
        ws_ping_interval=None,  # a ping waits behind what a slow client has still to read, and would end it
        ws_per_message_deflate=False,  # a compressor a client: more memory than all the rest of it
        forwarded_allow_ips=settings.proxies,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_GRACE,
        lifespan="on",
    )
    return Server(config, app)


def check_exposure(settings: Settings) -> None:
    """Where everybody may read everything, nobody else is to reach it."""
    if settings.no_auth and not is_loopback(settings.host):
        raise ConfigurationError(f"--no-auth works on loopback only, not on {settings.host}")


def allow_files() -> None:
    """A client is a file. Most systems allow a process 1,024 unless it asks for more, as far as it may."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES) if hard > 0 else FILES, hard))


def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    check_exposure(settings)
    create_app(settings)  # says what is wrong before anything is bound, and before workers would each say the same
    allow_files()
    sock = bind(settings.host, settings.port)
    host, port = sock.getsockname()[:2]
    if settings.workers > 1 and sys.platform == "win32":
        raise ConfigurationError("workers share a socket, which Windows cannot: start several `rowcast serve` on ports of their own")
    # Held by us: while a worker starts anew, its connections wait.
    sockets = spread(sock, settings.workers) if settings.workers > 1 else [sock]
    shown = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%d (pid %d)", shown, port, os.getpid())
    if settings.workers > 1:
        keep_running([worker(settings, own) for own in sockets])
    else:
        serve_socket(settings, sock)


def serve_socket(settings: Settings, sock: socket.socket) -> None:
    server = create_server(settings)
    gc.collect()
    gc.freeze()  # what is there now stays: to look through it again and again would hold up events for 40 ms
    server.run(sockets=[sock])
    if not server.started:
        sys.exit(3)


def spread(sock: socket.socket, workers: int) -> list[socket.socket]:
    """A socket for each worker. Where the kernel can, each has its own (socket(7), SO_REUSEPORT), and it
    spreads the connections evenly: one that is shared goes to whoever wakes first."""
    if sys.platform != "linux":
        return [sock] * workers
    host, port = sock.getsockname()[:2]
    sock.close()  # first bound without: that port was free, and is not one that another hub spreads over
    return [bind(host, port, socket.SO_REUSEPORT) for _ in range(workers)]


def bind(host: str, port: int, *options: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    for option in (socket.SO_REUSEADDR, *options):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"cannot bind {host}:{port}: {error.strerror or error}") from None
    sock.listen(BACKLOG)
    return sock


def worker(settings: Settings, sock: socket.socket, name: str = "worker") -> Child:
    """A process of its own on a socket that is ours."""
    return Child(name, [sys.executable, "-m", "rowcast.cli", "worker", str(sock.fileno())], _environment(settings), [sock.fileno()])


def _environment(settings: Settings) -> dict[str, str]:
    """Settings as given here, for a process that reads them again."""
    given = settings.model_dump(exclude_none=True)
    url = given.pop("database_url")
    if settings.key is not None:
        given["key"] = settings.key.get_secret_value()
    return {"DATABASE_URL": url, **{f"ROWCAST_{name.upper()}": str(value) for name, value in given.items()}}
