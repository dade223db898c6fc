"""What the programs here share: a database of their own, a hub, pgbench, clients, and the table at the end."""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import uvloop
from rowcast import schema
from rowcast.database import Connection
from rowcast.embedded import EmbeddedPostgres
from rowcast.errors import EmbeddedError
from rowcast.process import end_with_parent

PATIENCE = 60.0
"""Seconds that a hub or a client gets to start, and events to arrive after the last write."""

APPEND = "CASE WHEN length(text) < 400 THEN text || {0} ELSE {0} END"
"""A message grows by one token, as an LLM writes it; at 400 characters it begins anew, so that rows stay
short however long a run is."""

# The columns, defaults, checks and indexes of `message`, and no trigger.
BARE = "CREATE SCHEMA bench; CREATE TABLE bench.bare (LIKE public.message INCLUDING ALL)"


@dataclass(frozen=True)
class Row:
    """One line of the table. The target is for the ratio where there is one, else for the figure."""

    scenario: str
    figure: float
    unit: str
    ratio: float | None = None
    of: str = ""
    at_least: float | None = None
    at_most: float | None = None
    kept: float | None = None
    """What the ratio was never below: a run in which it is, fails. A target says where we want to go, this that we do not go back."""
    rounds: Sequence[float] = field(default=(), kw_only=True)

    @property
    def value(self) -> float:
        return self.figure if self.ratio is None else self.ratio

    @property
    def met(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (self.at_most is None or self.value <= self.at_most)


def medians(rounds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rounds.items()}


@dataclass(frozen=True)
class Database:
    """A migrated database that nobody else uses."""

    url: str
    pgbench: str
    quick: bool
    rounds: int | None = None

    async def connect(self) -> Connection:
        return await asyncpg.connect(self.url)


Measure = Callable[[Database], Awaitable[list[Row]]]


def parser(description: str | None) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    arguments.add_argument("--quick", action="store_true", help="a few seconds each: shows that it works, not how fast it is")
    arguments.add_argument("--rounds", type=int, help="how often each is measured, in turns, where that is more than once")
    return arguments


def run(options: argparse.Namespace, *measures: Measure) -> None:
    """Run them one after the other, each on a new database of the same server."""
    rows: list[Row] = []
    with _server() as (url, pgbench):
        environment = uvloop.run(_environment(url))
        say("PostgreSQL {server_version}, {cores} cores, fsync {fsync}, synchronous_commit {synchronous_commit}".format(**environment))
        for measure in measures:
            rows += uvloop.run(_on_new_database(Database(url, pgbench, options.quick, options.rounds), measure))
    if options.json:
        document = {"environment": environment, "quick": options.quick, "rows": [{**asdict(row), "met": row.met} for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        print(_table(rows))
    if fallen := [row.scenario for row in rows if row.kept is not None and row.value < row.kept and not options.quick]:
        sys.exit(f"worse than it was: {', '.join(fallen)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(rows: list[Row]) -> str:
    lines = [("scenario", "figure", "ratio", "target", "met")]
    for row in rows:
        figure = f"{row.figure:,.{0 if row.figure >= 100 or row.unit == 'lost' else 2}f} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} of {row.of}"
        target = " ".join(f"{sign} {x:g}" for sign, x in (("≥", row.at_least), ("≤", row.at_most)) if x is not None)
        lines.append((row.scenario, figure, ratio, target, {None: "", True: "yes", False: "NO"}[row.met]))
    return grid(lines)


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


@contextmanager
def _server() -> Iterator[tuple[str, str]]:
    """The server at DATABASE_URL or the embedded one, as it is but for max_connections; and a pgbench."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # where PostgreSQL cannot run as root, another user must get there
        embedded = EmbeddedPostgres(folder / "postgres", max_connections="200")
        try:
            pgbench = str(embedded._binaries() / "pgbench")
        except EmbeddedError:
            pgbench = shutil.which("pgbench") or sys.exit("no pgbench: install the extra `dev`, or PostgreSQL's own package")
        if given := os.environ.get("DATABASE_URL"):
            yield "postgresql://" + given.partition("://")[2], pgbench
        else:
            with embedded:
                yield embedded.url, pgbench


async def _environment(url: str) -> dict[str, object]:
    connection = await asyncpg.connect(url)
    names = ("server_version", "fsync", "synchronous_commit", "max_connections")
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in names}
    await connection.close()
    return {**shown, "python": platform.python_version(), "machine": platform.platform(), "cores": os.cpu_count()}


async def _on_new_database(server: Database, measure: Measure) -> list[Row]:
    name = f"rowcast_bench_{os.getpid()}"
    connection = await server.connect()
    await connection.execute(f"CREATE DATABASE {name}")
    try:
        database = replace(server, url=urlunsplit(urlsplit(server.url)._replace(path=f"/{name}")))
        await schema.migrate(database.url, "head")
        return await measure(database)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


async def settle(db: Connection) -> None:
    """So that no run pays for what an earlier one left behind."""
    await db.execute("VACUUM")
    with suppress(asyncpg.InsufficientPrivilegeError):
        await db.execute("CHECKPOINT")


@dataclass(frozen=True)
class Load:
    transactions: int
    tps: float


async def pgbench(database: Database, script: str, clients: int, seconds: int) -> Load:
    """One statement after the other on each connection. The first second does not count for tps: there
    every connection plans its statements for the first time, which a pool does once a day."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        options = ["-n", "-M", "prepared", "-c", clients, "-j", min(clients, os.cpu_count() or 1), "-T", seconds, "-P", 1, "-f", file.name]
        process = await asyncio.create_subprocess_exec(database.pgbench, *map(str, options), database.url, stdout=PIPE, stderr=STDOUT)
        said = (await asyncio.wait_for(process.communicate(), seconds + PATIENCE))[0].decode()
    done = re.search(r"transactions actually processed: (\d+)", said)
    progress = [float(tps) for tps in re.findall(r"progress: [\d.]+ s, ([\d.]+) tps", said)]
    if process.returncode or not (done and progress) or "aborted" in said:
        sys.exit(f"pgbench failed:\n{said}")
    return Load(int(done[1]), statistics.fmean(progress[1:] or progress))


@dataclass(frozen=True)
class Served:
    url: str
    pid: int


# What another server than ours does: nothing is taken over from it.
OVER_ASGI = """
from rowcast import cli, takeover
takeover.Protocol = takeover.HttpToolsProtocol
takeover.WebSocketProtocol = takeover.WebSocketsSansIOProtocol
cli.main()
"""


# All the load comes from one address, as one user, to one session.
NO_LIMITS = {f"ROWCAST_{name}": "1000000" for name in ("CONNECTIONS", "USER_CONNECTIONS", "SESSION_CONNECTIONS")} | {
    "ROWCAST_HANDSHAKES": "0"
}


@asynccontextmanager
async def hub(database: Database, asgi: bool = False, workers: int = 1, key: str | None = None) -> AsyncIterator[Served]:
    """`rowcast serve` as a child, until it was ready. With a key, a token is taken in the query, which the load sends."""
    shown = {"ROWCAST_KEY": key, "ROWCAST_QUERY_TOKEN": "1"} if key else {"ROWCAST_NO_AUTH": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *(("-c", OVER_ASGI) if asgi else ("-m", "rowcast.cli")), "serve", "--port", "0"),
            env={**os.environ, **NO_LIMITS, **shown, "DATABASE_URL": database.url, "ROWCAST_WORKERS": str(workers)},
            stderr=log,
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not (url := await asyncio.to_thread(_ready, log.fileno())):
                if process.returncode is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"the hub did not start:\n{log.read()}")
                await asyncio.sleep(0.05)
            yield Served(url, process.pid)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), PATIENCE)


def _ready(log: int) -> str | None:
    found = re.search(rb"http://[\w.]+:\d+", os.pread(log, 65536, 0))
    if not found:
        return None
    url = found[0].decode()
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return url
    except OSError:
        return None


class Clients:
    """SSE clients in a process of their own; see clients.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _answer(self) -> int:
        assert self._process.stdout
        return int(await asyncio.wait_for(self._process.stdout.readline(), PATIENCE) or sys.exit("the clients failed"))

    async def arrived(self, marks: int) -> int:
        """Waits for so many marks; how many there were when no more came."""
        assert self._process.stdin
        seen, patience = -1, PATIENCE / 4
        while seen < marks and patience > 0:
            await asyncio.sleep(0.05)
            before = seen
            self._process.stdin.write(b"count\n")
            seen = await self._answer()
            patience = PATIENCE / 4 if seen > before else patience - 0.05
        return seen

    async def marks(self) -> list[tuple[int, int]]:
        """Every mark and when it arrived, in nanoseconds of the monotonic clock. The clients end."""
        said, _ = await asyncio.wait_for(self._process.communicate(b""), PATIENCE)
        numbers, times = json.loads(said)
        return list(zip(numbers, times, strict=True))


@asynccontextmanager
async def clients(hub: str, sessions: Sequence[str]) -> AsyncIterator[Clients]:
    """One client for each of the sessions, all live when this is entered."""
    command = (sys.executable, str(Path(__file__).with_name("clients.py")), hub, *sessions)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        clients = Clients(process)
        await clients._answer()
        yield clients
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(true: Callable[[], Awaitable[object]]) -> None:
    """For what announces itself in no other way."""
    async with asyncio.timeout(PATIENCE):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
