"""The private PostgreSQL."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from rowcast.embedded import EmbeddedPostgres
from rowcast.errors import EmbeddedError

from .rig import postgres


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("embedded") / "server"
    yield folder
    EmbeddedPostgres(folder).remove()


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def test_the_data_stays(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        asyncio.run(ask(server.url, "CREATE TABLE kept AS SELECT 17 AS n"))
        assert asyncio.run(ask(server.url, "SHOW data_directory")) == str(server.folder / "data")
    with EmbeddedPostgres(folder) as server:
        assert asyncio.run(ask(server.url, "SELECT n FROM kept")) == 17
        assert int(str(asyncio.run(ask(server.url, "SHOW server_version_num")))) >= 180000


def test_nobody_else_on_this_machine_gets_in(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        without = "postgresql://postgres:guess@" + server.url.rpartition("@")[2]
        with pytest.raises(asyncpg.InvalidPasswordError):
            asyncio.run(ask(without, "SELECT 1"))


def test_a_second_one_on_the_same_data_is_refused_in_one_line(folder: Path) -> None:
    with EmbeddedPostgres(folder), pytest.raises(EmbeddedError, match="lock file") as refused:
        EmbeddedPostgres(folder).start()
    assert "\n" not in str(refused.value)


def test_an_interrupted_initdb_is_begun_again(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    (server.folder / "data").mkdir(parents=True)
    (server.folder / "data" / "half").write_text("")
    with server:
        assert asyncio.run(ask(server.url, "SELECT 1")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill_9_leaves_nothing_running(folder: Path) -> None:
    program = (
        f"from rowcast.embedded import EmbeddedPostgres; from pathlib import Path; import time\n"
        f"with EmbeddedPostgres(Path({str(folder)!r})) as s: print(s.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with EmbeddedPostgres(folder) as server:  # what it left is taken up again
        assert asyncio.run(ask(server.url, "SELECT 1")) == 1


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="for root only")
def test_as_root_it_runs_where_the_other_user_can_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(0o700)
    with postgres(closed / "server") as server:
        assert not str(server.folder).startswith(str(closed))
        assert asyncio.run(ask(server.url, "SELECT 1")) == 1
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
