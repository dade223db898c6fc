"""What tests are made of: writers, hubs on real sockets, and clients of them."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import jwt
from rowcast import server
from rowcast.embedded import EmbeddedPostgres
from rowcast.main import Rowcast
from rowcast.settings import Settings

PATIENCE = 20.0


@contextmanager
def postgres(folder: Path, **options: str) -> Iterator[EmbeddedPostgres]:
    """A private server that leaves nothing behind."""
    server = EmbeddedPostgres(folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def on_database(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def until(true: Callable[[], object], patience: float = PATIENCE) -> None:
    """For what announces itself in no other way: look often, fail late."""
    deadline = asyncio.get_running_loop().time() + patience
    while not true():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not true within {patience} s: {true}")
        await asyncio.sleep(0.005)


async def until_sql(db: asyncpg.Connection, query: str, *arguments: object, patience: float = PATIENCE) -> None:
    deadline = asyncio.get_running_loop().time() + patience
    while not await db.fetchval(query, *arguments):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not true within {patience} s: {query}")
        await asyncio.sleep(0.005)


class Writer:
    """Writes rows, as any program would."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self.db = db

    async def session(self, project: UUID | None = None) -> str:
        return str(await self.db.fetchval("INSERT INTO session (project_id) VALUES ($1) RETURNING id", project))

    async def project(self) -> UUID:
        id: UUID = await self.db.fetchval("INSERT INTO project DEFAULT VALUES RETURNING id")
        return id

    async def message(self, session: str, text: str = "", **columns: Any) -> UUID:
        return await self.insert("message", session_id=session, text=text, **columns)

    async def insert(self, table: str, **columns: Any) -> UUID:
        names = ", ".join(columns)
        values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
        id: UUID = await self.db.fetchval(f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING id", *columns.values())
        return id

    async def update(self, table: str, id: UUID, **columns: Any) -> None:
        sets = ", ".join(f"{name} = ${n}" for n, name in enumerate(columns, 2))
        await self.db.execute(f"UPDATE {table} SET {sets} WHERE id = $1", id, *columns.values())

    async def outbox(self) -> list[asyncpg.Record]:
        rows = await self.db.fetch("SELECT *, payload::text AS text FROM rowcast.outbox ORDER BY id")
        await self.db.execute("DELETE FROM rowcast.outbox")
        return list(rows)


@dataclass
class Seen:
    """One server-sent event as a client parsed it."""

    type: str
    data: Any
    id: str | None

    @property
    def position(self) -> int:
        assert self.id is not None
        return int(self.id.rpartition("-")[2])


class Stream:
    """A client of server-sent events over a raw socket, parsing as the HTML standard says."""

    opened: ClassVar[list["Stream"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        Stream.opened.append(self)
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_id: str | None = None
        self.retry: int | None = None
        self.comments = 0
        self.bytes = 0
        self.ended = False
        """By the last chunk, and not by a cut."""
        self._buffer = b""

    @classmethod
    async def open(cls, url: str, after: str | None = None, method: str = "GET", limit: int | None = None, **headers: str) -> "Stream":
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit or 2**20)
        stream = cls(reader, writer)
        stream.last_id = after
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        header = f"Last-Event-ID: {after}\r\n" if after else ""
        header += _lines({"Accept": "text/event-stream", **headers})
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{header}\r\n".encode())
        try:
            stream.status = int((await reader.readline()).split()[1])
            while line := (await reader.readline()).decode().strip():
                name, _, value = line.partition(":")
                stream.headers[name.lower()] = value.strip()
        except BaseException:
            stream.abort()
            raise
        return stream

    async def chunk(self) -> bytes:
        """The next piece of the body, b"" at its end."""
        if self.headers.get("transfer-encoding") != "chunked":
            size = 0 if self.ended else int(self.headers.get("content-length", 0))
            self.ended = True
            return await self._reader.readexactly(size)
        line = await self._reader.readline()
        if not line:
            return b""  # cut
        size = int(line.removesuffix(b"\r\n"), 16)
        data = await self._reader.readexactly(size)
        assert await self._reader.readexactly(2) == b"\r\n", "no chunk (RFC 9112, section 7.1)"
        self.ended = not data
        self.bytes += size
        return data

    async def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return await self.chunk()
        parts = []
        while data := await self.chunk():
            parts.append(data)
        return b"".join(parts)

    async def line(self) -> str | None:
        while b"\n" not in self._buffer:
            data = await self.chunk()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode().rstrip("\r")

    async def next(self, patience: float = PATIENCE) -> Seen | None:
        """The next event, or None at the end of the stream."""
        async with asyncio.timeout(patience):
            return await self._next()

    async def _next(self) -> Seen | None:
        type, data = "message", []
        while (line := await self.line()) is not None:
            if not line:
                if data:
                    return Seen(type, json.loads("\n".join(data)), self.last_id)
                type = "message"
                continue
            if line.startswith(":"):
                self.comments += 1
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "id":
                    self.last_id = value
                case "event":
                    type = value
                case "data":
                    data.append(value)
                case "retry":
                    self.retry = int(value)
        return None

    async def expect(self, *types: str) -> list[Seen]:
        """The next events, which must have these types."""
        seen = []
        for type in types:
            event = await self.next()
            assert event is not None, f"the stream ended before {type}"
            assert event.type == type, f"{event} instead of {type}"
            seen.append(event)
        return seen

    async def until(self, type: str) -> list[Seen]:
        """All up to and with the next event of a type."""
        seen = []
        while True:
            event = await self.next()
            assert event is not None, f"the stream ended before {type}, after {seen[-3:]}"
            seen.append(event)
            if event.type == type:
                return seen

    async def rest(self) -> list[Seen]:
        seen = []
        while event := await self.next():
            seen.append(event)
        return seen

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    @classmethod
    async def close_all(cls) -> None:
        """Those that a test left open."""
        for stream in cls.opened:
            stream.close()
        cls.opened.clear()
        await asyncio.sleep(0)

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())


async def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One ordinary request, over a connection of its own."""
    return await call("GET", url, **headers)


async def call(method: str, url: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = _lines({"Host": parts.netloc, "Connection": "close", **({"Content-Length": str(len(body))} if body else {}), **headers})
    writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body)
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in rest}, body


SECRET = "a secret of the tests, long enough"


def token(subject: str = "alice", allowed: dict[str, Any] | None = None, lives: float = 600, key: Any = SECRET, **claims: Any) -> str:
    """A token. `allowed` is what it names; without, ownership decides."""
    now = time.time()
    named = {} if allowed is None else {"rowcast": allowed}
    algorithm = claims.pop("algorithm", "HS256")
    header = claims.pop("header", None)
    given = {"sub": subject, "iat": now, "exp": now + lives, **named, **claims}
    return jwt.encode({name: value for name, value in given.items() if value is not None}, key, algorithm, header)


def bearer(*arguments: Any, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*arguments, **claims)}"}


SETTINGS: dict[str, Any] = {"port": 0, "keepalive": 0.2, "heartbeat": 1.0, "tick": 1.0, "drain": 5.0, "handshakes": 0}
KEYS = {"key", "key_files", "jwks_url"}


def settled(settings: dict[str, Any]) -> dict[str, Any]:
    """With what tests want by default. Without a key everybody is let in."""
    return {**SETTINGS, "no_auth": not KEYS & settings.keys(), **settings}


class Sinks:
    """How hubs that a test starts write: on the socket itself, as `rowcast serve` does, or as under any other server."""

    asgi = False
    PLAIN = "from rowcast import cli, takeover; takeover.Protocol = takeover.HttpToolsProtocol; cli.main()"


class Hub:
    """A hub inside the test's process, on a real socket."""

    def __init__(self, database: str, **settings: Any) -> None:
        self.settings = Settings(_env_file=None, database_url=database, **settled(settings))  # type: ignore[call-arg]
        self._server = server.create_server(self.settings)
        if Sinks.asgi:
            self._server.config.http = "httptools"
        self._sock = server.bind("127.0.0.1", 0)
        self._task: asyncio.Task[None] | None = None
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"

    @property
    def rowcast(self) -> Rowcast:
        rowcast: Rowcast = self._server._app.state.rowcast
        return rowcast

    async def start(self, ready: bool = True) -> "Hub":
        self._task = asyncio.create_task(self._server._serve([self._sock]))
        await until(lambda: self._server.started)
        if ready:
            await until(lambda: self.rowcast.trouble is None)
        return self

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task:
            await self._task

    async def __aenter__(self) -> "Hub":
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def follow(self, session: str, last_event_id: str | None = None, **query: str) -> Stream:
        return await Stream.open(self.sse(session, **query), last_event_id)

    async def open(self, path: str, shown: str | None = None, after: str | None = None, **headers: str) -> Stream:
        """A stream of any path, for whoever shows this token."""
        given = {"Authorization": f"Bearer {shown}"} if shown else {}
        return await Stream.open(self.url + path, after, **given, **headers)

    async def call(self, method: str, path: str, shown: str | None = None, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """The status, and what the answer holds."""
        given = {"Authorization": f"Bearer {shown}"} if shown else {}
        status, got, answer = await call(method, self.url + path, body, **given, **headers)
        return status, json.loads(answer) if got.get("content-type") == "application/json" else answer

    def sse(self, session: str, **query: str) -> str:
        return f"{self.url}/api/sse/{session}{_query(query)}"

    async def poll(self, session: str, **query: str) -> Any:
        status, _, body = await get(f"{self.url}/api/poll/{session}{_query(query)}")
        assert status == 200, body
        return json.loads(body)


def _query(query: dict[str, str]) -> str:
    return "?" + "&".join(f"{name.rstrip('_')}={value}" for name, value in query.items()) if query else ""


@dataclass
class HubProcess:
    """A hub in a process of its own, to be killed, frozen or told to end."""

    database: str
    settings: dict[str, Any] = field(default_factory=dict)
    asgi: bool = field(default_factory=lambda: Sinks.asgi)
    process: asyncio.subprocess.Process | None = None
    url: str = ""
    log: list[str] = field(default_factory=list)
    _reader: "asyncio.Task[None] | None" = None

    async def start(self) -> "HubProcess":
        given = settled(self.settings)
        environment = {**os.environ, "DATABASE_URL": self.database, **{f"ROWCAST_{k.upper()}": str(v) for k, v in given.items()}}
        program = ["-c", Sinks.PLAIN] if self.asgi else ["-m", "rowcast.cli"]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *program, "serve", env=environment, stderr=asyncio.subprocess.PIPE
        )
        self._reader = asyncio.create_task(self._read())
        await until(lambda: self.url)
        return self

    async def _read(self) -> None:
        assert self.process
        assert self.process.stderr
        async for line in self.process.stderr:
            text = line.decode().rstrip()
            self.log.append(text)
            if not self.url and "http://" in text:
                self.url = "http://" + text.partition("http://")[2].split()[0]

    async def ready(self) -> "HubProcess":
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (await get(f"{self.url}/readyz"))[0] != 200:
            assert asyncio.get_running_loop().time() < deadline, self.log
            await asyncio.sleep(0.02)
        return self

    def send(self, signal: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(signal)

    async def wait(self) -> int:
        assert self.process
        status = await asyncio.wait_for(self.process.wait(), 30)
        if self._reader:
            await self._reader
        return status

    async def __aenter__(self) -> "HubProcess":
        try:
            await self.start()
            return await self.ready()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *exc: object) -> None:
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.wait()
