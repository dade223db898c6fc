"""One PostgreSQL for the run, one database a test, made from a migrated template.

Where PostgreSQL comes from: TEST_DATABASE_URL if set; a container if ROWCAST_TEST_CONTAINERS=1; else
the embedded one.
"""

import asyncio
import inspect
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import uvloop
from rowcast import schema

from .rig import Hub, Sinks, Stream, Writer, on_database, postgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the chaos test; shown when it fails")
    parser.addoption("--chaos-seconds", type=float, default=25.0, help="how long the chaos test writes")
    parser.addoption("--npm", action="store_true", help="run what docs/integrations.md does with npm, too: minutes, and 1 GB")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Coroutine tests run in the same loop as their asynchronous fixtures."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    runner: asyncio.Runner = pyfuncitem.funcargs["runner"]  # type: ignore[assignment]
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    runner.run(limited(pyfuncitem.obj(**arguments)))
    return True


TEST_TIMEOUT = 120.0


async def limited(test: Coroutine[None, None, None]) -> None:
    async with asyncio.timeout(TEST_TIMEOUT):
        await test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "runner")


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner
        runner.run(Stream.close_all())


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
    elif os.environ.get("ROWCAST_TEST_CONTAINERS") == "1":
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer("postgres:18-alpine", driver=None) as container:
            yield container.get_connection_url()
    else:
        with postgres(tmp_path_factory.mktemp("postgres") / "server", **QUICK) as server:
            yield server.url


QUICK = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "max_prepared_transactions": "10"}


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    name = f"rowcast_template_{os.getpid()}"
    asyncio.run(on_database(server_url, f"CREATE DATABASE {name}"))
    asyncio.run(schema.migrate(at(server_url, name), "head"))
    yield name
    asyncio.run(on_database(server_url, f"DROP DATABASE {name}"))


@pytest.fixture
def empty_database(server_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    yield from fresh(server_url, "template0")


@pytest.fixture
def database(server_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    yield from fresh(server_url, template)


def fresh(server_url: str, template: str) -> Iterator[str]:
    fresh.number += 1  # type: ignore[attr-defined]
    name = f"rowcast_test_{os.getpid()}_{fresh.number}"  # type: ignore[attr-defined]
    asyncio.run(on_database(server_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield at(server_url, name)
    asyncio.run(on_database(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


fresh.number = 0  # type: ignore[attr-defined]


def at(server_url: str, name: str) -> str:
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/{name}"))


@pytest.fixture
def db(runner: asyncio.Runner, database: str) -> Iterator[asyncpg.Connection]:
    connection = runner.run(asyncpg.connect(database))
    yield connection
    runner.run(connection.close(timeout=5))


@pytest.fixture
def writer(runner: asyncio.Runner, db: asyncpg.Connection) -> Writer:
    return Writer(db)


@pytest.fixture(autouse=True)
def sinks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parametrized by the modules whose tests are to hold on both kinds."""
    monkeypatch.setattr(Sinks, "asgi", getattr(request, "param", "socket") == "asgi")


@pytest.fixture
def hub(runner: asyncio.Runner, database: str) -> Iterator[Hub]:
    """A hub of this process on a real socket, by default quick to notice what tests do to it."""
    hub = Hub(database)
    try:
        runner.run(hub.start())
        yield hub
    finally:
        runner.run(hub.stop())


@pytest.fixture
def project_root() -> Path:
    return Path(__file__).parent.parent
