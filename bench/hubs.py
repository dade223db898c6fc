"""The hubs that are compared, each started as its users would, and the load: programs in C that are no bottleneck."""

import asyncio
import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rowcast import tokens
from rowcast.process import end_with_parent
from rowcast.settings import Settings
from side_by_side import APPEND, PATIENCE, Database, hub, say

HERE = Path(__file__).parent
LOAD = HERE / "load"
TICKS = os.sysconf("SC_CLK_TCK")

NOTIFY = "SELECT pg_notify($1, $2)"
UPDATE = "UPDATE message SET text = {0} WHERE id = ('00000000-0000-0000-0000-' || lpad($1, 12, '0'))::uuid"
APPENDED = UPDATE.format(APPEND.format("$2"))
"""Rowcast's event is a row that changes; session n has the message n."""
GROWN = UPDATE.format("text || $2")
"""The same where few come to each topic: all frames are alike, and no text gets long."""


SESSION = "00000000-0000-0000-0000-{S}"
STREAM = "/api/stream?from=now[&topic=session:" + SESSION + "]"


@dataclass(frozen=True)
class Hub:
    name: str
    port: int
    path: str
    """`{s}` is the number of a client's topic, `{S}` the same in twelve digits, `[…]` comes once for each of its topics."""
    pid: int
    sql: str = NOTIFY
    channel: str = "events"
    template: str = '{"session":"{s}","m":"{mark}","pad":"{pad}"}'
    mode: str = "sse"
    """Or `ws`, or `nats`: the NATS protocol in WebSocket frames."""
    greeting: str = ""
    """What a client says once it is connected."""

    def by(self, mode: str, path: str = STREAM) -> "Hub":
        """The same, followed by SSE or WebSocket; NATS has one way only."""
        return self if self.mode == "nats" else replace(self, mode=mode, path=path)

    def cpu(self) -> float:
        """Seconds of processor time of the hub and its children so far."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in _tree(self.pid)) / TICKS

    def memory(self) -> float:
        """Resident kilobytes."""
        return sum(int(line.split()[1]) for pid in _tree(self.pid) for line in _lines(pid) if line.startswith("VmRSS"))


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _lines(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _tree(int(child)))]


def build() -> None:
    subprocess.run(["make", "--quiet", "-C", str(LOAD)], check=True)


NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


def present(name: str) -> bool:
    """Whether this peer can run here; says what is missing."""
    missing = None
    if name == "nchan" and not (NCHAN.exists() and shutil.which("nginx")):
        missing = "nginx and libnginx-mod-nchan"
    if name == "broadcaster" and importlib.util.find_spec("broadcaster") is None:
        missing = "the Python package broadcaster"
    if name == "NATS" and not shutil.which("nats-server"):
        missing = "nats-server"
    if missing:
        say(f"without {name}: it needs {missing}")
    return missing is None


@asynccontextmanager
async def running(name: str, database: Database) -> AsyncIterator[Hub]:
    if name.startswith("Rowcast"):
        key = tokens.new_secret() if "with tokens" in name else None
        async with hub(database, asgi="ASGI" in name, workers=2 if "2 workers" in name else 1, key=key) as served:
            path = f"/api/sse/{SESSION}?from=now"
            if key:  # who is told by the database what it belongs to, as by ownership
                path += "&token=" + tokens.make(Settings(database_url="postgresql://", key=key), "load", {"sessions": ["*"]}, 36_000)
            yield Hub(name, urlsplit(served.url).port or 0, path, served.pid, APPENDED, "{s}", "{mark}{pad}")
        return
    port = _free_port()
    async with AsyncExitStack() as stack:
        pid = await PEERS[name](stack, database, port)
        if name == "NATS":
            yield Hub(name, port, "/", pid, mode="nats", greeting=SUBSCRIBE)
        else:
            yield Hub(name, port, "/sse/{s}", pid, channel="ch_{s}" if name == "broadcaster" else "events")


SUBSCRIBE = r'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\n[SUB ev.{s} {s}\r\n]'


async def _nats(stack: AsyncExitStack, database: Database, port: int) -> int:
    """Clients come by WebSocket, the bridge by NATS's own port."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    own = _free_port()
    text = (HERE / "peers/nats.conf").read_text().replace("{websocket}", str(port)).replace("{port}", str(own))
    (folder / "nats.conf").write_text(text)
    process = await _start(stack, port, "nats-server", "-c", folder / "nats.conf")
    bridge = {"conninfo": database.url, "listen": "events", "proto": "nats", "port": own, "path": "ev.{s}"}
    await _start(stack, 0, LOAD / "pgbridge", *_options(bridge))
    return process.pid


async def _nchan(stack: AsyncExitStack, database: Database, port: int) -> int:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    text = (HERE / "peers/nchan.conf").read_text().replace("{port}", str(port)).replace("{folder}", str(folder))
    (folder / "nchan.conf").write_text(("user root;\n" if os.getuid() == 0 else "") + text)
    process = await _start(stack, port, "nginx", "-p", folder, "-c", folder / "nchan.conf")
    bridge = {"conninfo": database.url, "listen": "events", "proto": "http", "port": port, "path": "/pub/{s}", "window": 16}
    await _start(stack, 0, LOAD / "pgbridge", *_options(bridge))
    return process.pid


async def _floor(stack: AsyncExitStack, database: Database, port: int, *options: str) -> int:
    return (await _start(stack, port, LOAD / "floorhub", port, database.url, *options)).pid


async def _uvicorn(stack: AsyncExitStack, database: Database, port: int, app: str) -> int:
    command = (sys.executable, "-m", "uvicorn", "--port", port, "--no-access-log", "--backlog", 4096, "--app-dir", HERE / "peers", app)
    return (await _start(stack, port, *command, env={**os.environ, "DSN": database.url})).pid


PEERS: dict[str, Callable[[AsyncExitStack, Database, int], Awaitable[int]]] = {
    "C floor": _floor,
    "C floor, joined": lambda stack, database, port: _floor(stack, database, port, "--coalesce"),
    "nchan": _nchan,
    "NATS": _nats,
    "broadcaster": functools.partial(_uvicorn, app="broadcaster_app:app"),
}


async def _start(stack: AsyncExitStack, port: int, *command: object, **options: Any) -> Process:
    """A program, until it answers at its port, if it has one."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=DEVNULL, stderr=DEVNULL, preexec_fn=end_with_parent(signal.SIGTERM), **options
    )
    stack.push_async_callback(_stop, process)
    for _ in range(200):
        if process.returncode is not None:
            sys.exit(f"{command[0]} ended with {process.returncode}")
        if not port or _answers(port):
            return process
        await asyncio.sleep(0.05)
    sys.exit(f"{command[0]} did not open its port")


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Clients:
    """hubload: connections that look for marks in what they receive, and count what is lost."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n".encode())
        return await self.answer("RESULT" if command == "STOP" else "STAT")

    async def answer(self, wanted: str) -> dict[str, Any]:
        assert self._process.stdout
        while line := (await asyncio.wait_for(self._process.stdout.readline(), 2 * PATIENCE)).decode():
            kind, _, data = line.partition(" ")
            if kind == wanted:
                return json.loads(data)  # type: ignore[no-any-return]
        sys.exit("the clients ended")

    def reset(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"RESET\n")

    def say(self, text: str, rate: float) -> None:
        """Over WebSocket, one client after the other, so many a second."""
        assert self._process.stdin
        self._process.stdin.write(f"SEND {rate} {text}\n".encode())

    async def arrived(self, frames: int, patience: float = 10.0) -> dict[str, Any]:
        """What there is once so many have arrived, or nothing more does, or it takes for ever."""
        deadline = time.monotonic() + PATIENCE / 2
        while True:
            now = await self.ask("STAT")
            if now["delivered"] - now["dups"] >= frames or now["idle_ms"] > 1000 * patience or time.monotonic() > deadline:
                return now
            await asyncio.sleep(0.05)


@asynccontextmanager
async def connected(
    hub: Hub, clients: int, topics: int = 1, each: int = 1, concurrency: int = 64, stalled: int = 0, path: str = "", rate: float = 0
) -> AsyncIterator[tuple[Clients, dict[str, Any]]]:
    """Clients, all with a stream of `each` topics; and how long that took. The first `stalled` never read. They come
    as many a second as `rate` says, or at once."""
    options: dict[str, object] = {"port": hub.port, "mode": hub.mode, "path": path or hub.path}
    options |= {"conns": clients, "sessions": topics, "each": each}
    options |= {"concurrency": concurrency, "connect-rate": rate, "stall": stalled, "stall-rcvbuf": 4096}
    options |= {"ws-send": hub.greeting} if hub.greeting else {}
    command = (LOAD / "hubload", *_options(options))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, preexec_fn=end_with_parent(signal.SIGKILL))
    try:
        load = Clients(process)
        ready = await load.answer("READY")
        if not ready["ready"]:
            sys.exit(f"{hub.name}: no connection to {options['path']}: {ready['first_error']}")
        if ready["ready"] != clients:
            say(f"{hub.name}: {ready['failed']} of {clients} connections failed: {ready['first_error']}")
        yield load, ready
    finally:
        process.kill()
        await process.wait()


async def publish(database: Database, hub: Hub, topics: int, rate: float, seconds: float, size: int, batch: int = 1) -> dict[str, Any]:
    """pgpub: events as rows or notifications, at a rate, or flat out with rate 0; what it sent. It does not
    wait for the disk (synchronous_commit = off), so that one connection is fast enough."""
    options: dict[str, object] = {"conninfo": f"{database.url}?options=-c%20synchronous_commit%3Doff", "channel": hub.channel}
    options |= {"sql": hub.sql, "template": hub.template, "sessions": topics, "size": size}
    options |= {"rate": rate, "seconds": seconds, "batch": batch}
    process = await asyncio.create_subprocess_exec(LOAD / "pgpub", *_options(options), stdout=PIPE, stderr=PIPE)
    out, error = await process.communicate()
    if process.returncode:
        sys.exit(f"pgpub failed: {error.decode()}{out.decode()[:300]}")
    return json.loads(out)  # type: ignore[no-any-return]


def _options(given: Mapping[str, object]) -> list[str]:
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]
