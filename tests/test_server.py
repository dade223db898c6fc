"""Processes: how they end, what they leave, and who replaces them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from rowcast import server

from .rig import SETTINGS, Hub, HubProcess, Stream, Writer, get, until, until_sql

LEFT = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rowcast%' AND datname = current_database()"
NOTHING_LEFT = f"SELECT ({LEFT}) = 0 AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 7499639)"


BOTH = pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)


@BOTH
async def test_sigterm_with_1000_streams(database: str, writer: Writer) -> None:
    """H2: out within the drain window, status 0, no traceback, nothing left in PostgreSQL."""
    async with HubProcess(database) as hub:
        session = await writer.session()
        streams = []
        for _ in range(20):
            streams += await asyncio.gather(*(Stream.open(f"{hub.url}/api/sse/{session}") for _ in range(50)))
        for stream in streams:
            await stream.until("caught_up")
        before = asyncio.get_running_loop().time()
        hub.send(signal.SIGTERM)
        byes = [await stream.rest() for stream in streams]
        assert await hub.wait() == 0
        assert asyncio.get_running_loop().time() - before < SETTINGS["drain"] + 2
        assert {event.type for (event,) in byes} == {"bye"}
        assert all(stream.ended for stream in streams)
        assert not [line for line in hub.log if "Traceback" in line or "ERROR" in line]
        await until_sql(writer.db, NOTHING_LEFT, patience=2)


@BOTH
async def test_a_client_that_does_not_read_does_not_hold_up_the_end(database: str, writer: Writer) -> None:
    async with HubProcess(database, {"drain": 0.5}) as hub:
        session = await writer.session()
        stuck = await Stream.open(f"{hub.url}/api/sse/{session}", limit=1024)
        for _ in range(80):
            await writer.message(session, "x" * 200_000)
        hub.send(signal.SIGTERM)
        assert await hub.wait() == 0
        stuck.abort()


async def test_a_killed_hub_leaves_nothing_in_postgresql(database: str, writer: Writer) -> None:
    async with HubProcess(database) as hub:
        await until_sql(writer.db, f"SELECT ({LEFT}) >= 2")
        hub.send(signal.SIGKILL)
        await hub.wait()
        await until_sql(writer.db, NOTHING_LEFT, patience=6)


async def test_workers_share_the_port_and_are_replaced(database: str, writer: Writer) -> None:
    async with HubProcess(database, {"workers": 2}) as hub:
        workers = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rowcast listener' AND datname = current_database()"
        await until_sql(writer.db, f"SELECT ({workers}) = 2")
        session = await writer.session()
        streams = [await Stream.open(f"{hub.url}/api/sse/{session}") for _ in range(20)]
        for stream in streams:
            await stream.until("caught_up")
        await writer.message(session)
        for stream in streams:
            await stream.expect("agent.message.appended")
        assert hub.process
        children = [int(pid) for pid in await _children(hub.process.pid)]
        assert len(children) == 2
        held = [_connections(child, urlsplit(hub.url).port or 0) for child in children]
        assert sum(held) == 20
        assert min(held) > 2, f"{held}: not spread"
        os.kill(children[0], signal.SIGKILL)
        await until(lambda: any("starting it again" in line for line in hub.log))
        await until_sql(writer.db, f"SELECT ({workers}) = 2")
        hub.send(signal.SIGTERM)
        assert await hub.wait() == 0
        await until_sql(writer.db, NOTHING_LEFT, patience=6)


async def test_workers_end_with_a_parent_that_is_killed(database: str, writer: Writer) -> None:
    async with HubProcess(database, {"workers": 2}) as hub:
        await until_sql(writer.db, f"SELECT ({LEFT}) >= 4")
        hub.send(signal.SIGKILL)
        await hub.wait()
        await until_sql(writer.db, NOTHING_LEFT, patience=10)


async def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: ASYNC230, PTH123
        return file.read().split()


def _connections(pid: int, port: int) -> int:
    """Established ones of a process, on a port of its."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    return sum(str(fd.readlink()) in inodes for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_workers_take_no_port_of_another_hub() -> None:
    first = server.bind("127.0.0.1", 0)
    own = server.spread(first, 2)
    with pytest.raises(server.ConfigurationError, match="in use"):
        server.bind(*own[0].getsockname())
    for sock in own:
        sock.close()


async def test_plain_uvicorn_ends_streams_too(database: str, writer: Writer, project_root: Any) -> None:
    """`uvicorn app.main:app` in a checkout, as anybody would start it."""
    environment = {**os.environ, "DATABASE_URL": database, "ROWCAST_NO_AUTH": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0", env=environment, cwd=project_root, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr
    url = ""
    while not url:
        line = (await process.stderr.readline()).decode()
        assert line, "it ended"
        if found := re.search(r"http://[\d.:]+", line):
            url = found[0]
    stream = await Stream.open(f"{url}/api/sse/s")
    await stream.until("caught_up")
    process.send_signal(signal.SIGTERM)
    assert [event.type for event in await stream.rest()] == ["bye"]
    async with asyncio.timeout(10):
        await process.communicate()


@BOTH
async def test_a_second_server_in_the_same_process_streams(database: str, writer: Writer) -> None:
    """Inside a thread, without signals; the end of one is not the end of the next."""
    session = await writer.session()
    for _ in range(2):
        hub = Hub(database)
        running = hub._server
        thread = threading.Thread(target=running.run, args=([hub._sock],), daemon=True)
        thread.start()
        await until(lambda running=running: running.started)
        async with await hub.follow(session) as stream:
            await stream.until("caught_up")
            running.should_exit = True
            assert [event.type for event in await stream.rest()] == ["bye"]
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_health(hub: Hub, writer: Writer) -> None:
    assert (await get(f"{hub.url}/livez"))[0] == 200
    status, _, body = await get(f"{hub.url}/readyz")
    assert (status, body) == (200, b'{"status":"ready"}')
    hub.rowcast.supervisor.died["listener"] = "listener died: KeyError"
    status, _, body = await get(f"{hub.url}/readyz")
    assert status == 503
    assert b"listener died" in body


async def test_a_task_that_dies_is_started_again(
    hub: Hub, writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(hub.rowcast.feed, "_samples", None)
        await until(lambda: hub.rowcast.supervisor.died)
        assert (await get(f"{hub.url}/readyz"))[0] == 503
    await until(lambda: not hub.rowcast.supervisor.died)
    assert (await get(f"{hub.url}/readyz"))[0] == 200
    assert "keep-alive died" in caplog.text


@pytest.mark.parametrize(
    ("host", "settings", "allowed"),
    [
        ("127.0.0.1", {"no_auth": True}, True),
        ("localhost", {"no_auth": True}, True),
        ("::1", {"no_auth": True}, True),
        ("0.0.0.0", {"no_auth": True}, False),
        ("127.example.org", {"no_auth": True}, False),
        ("0.0.0.0", {}, True),
    ],
)
def test_without_authentication_nothing_is_bound_beyond_loopback(host: str, settings: dict[str, Any], allowed: bool) -> None:
    given = server.Settings(_env_file=None, database_url="postgresql://", host=host, **settings)  # type: ignore[call-arg]
    if allowed:
        server.check_exposure(given)
    else:
        with pytest.raises(server.ConfigurationError):
            server.check_exposure(given)


async def test_connections_are_constant(hub: Hub, writer: Writer, db: asyncpg.Connection) -> None:
    session = await writer.session()
    for _ in range(100):
        await (await hub.follow(session)).until("caught_up")
    assert await db.fetchval(LEFT) <= 2 + hub.settings.pool_size


async def test_a_frozen_hub_gives_up_its_locks(database: str, writer: Writer) -> None:
    async with HubProcess(database) as hub:
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rowcast sequencer' AND datname = current_database()"
        await until_sql(writer.db, f"SELECT ({mine}) = 1")
        hub.send(signal.SIGSTOP)
        await until_sql(writer.db, f"SELECT ({mine}) = 0", patience=9)
        hub.send(signal.SIGCONT)
        await until_sql(writer.db, f"SELECT ({mine}) = 1")


def test_as_many_files_as_are_allowed() -> None:
    """Of a soft limit of 64, as a shell might have set it."""
    program = "import resource as r; from rowcast.server import allow_files; r.setrlimit(r.RLIMIT_NOFILE, (64, 5000)); allow_files(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(5000, 5000)\n"
