"""Everything at once: every client's view equals the log, and the log equals the committed changes, exactly.

Random writers (delays, rollbacks, savepoints, several rows a transaction, one that stays open for
seconds, some that commit asynchronously), random clients (cut and reconnect at random, to either of
two hub processes, streaming or polling), hubs killed with -9 or frozen, PostgreSQL restarted and killed.

`make test PYTEST_ARGS="tests/test_chaos.py --chaos-seconds 600 --seed 7"` runs it for long.
"""

import asyncio
import json
import random
import signal
import time
from collections import defaultdict
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from rowcast import schema
from rowcast.embedded import EmbeddedPostgres
from rowcast.errors import EmbeddedError

from .rig import HubProcess, Stream, get, until
from .rig import postgres as private

SESSIONS = 4
WRITERS = 6
CLIENTS = 10

AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)
CUT = (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, IndexError)


class Writers:
    """Only messages are written: rows that appear, grow by unique tokens, change, and go."""

    def __init__(self, url: str, sessions: list[str], dice: random.Random) -> None:
        self._url = url
        self._sessions = sessions
        self._dice = dice
        self._token = 0
        self.transactions = 0
        self.over = False

    async def run(self, slow: bool) -> None:
        while not self.over:
            try:
                connection = await asyncpg.connect(self._url, timeout=2)
            except AWAY:
                await asyncio.sleep(0.1)
                continue
            try:
                await connection.execute(f"SET synchronous_commit = {self._dice.choice(['on', 'off'])}")
                while not self.over:
                    await self._transaction(connection, slow)
            except AWAY:
                pass
            finally:
                connection.terminate()

    async def _transaction(self, connection: asyncpg.Connection, slow: bool) -> None:
        dice = self._dice
        mine: list[Any] = []
        await connection.execute("BEGIN" if dice.random() < 0.8 else "BEGIN; SELECT pg_current_xact_id()")
        for _ in range(dice.choice([1, 1, 1, 2, 5, 20])):
            if dice.random() < 0.15:
                await connection.execute("SAVEPOINT here")
                await self._change(connection, list(mine))
                await connection.execute(dice.choice(["RELEASE here", "ROLLBACK TO here"]))
            else:
                await self._change(connection, mine)
            if dice.random() < 0.2:
                await asyncio.sleep(dice.expovariate(200))
        if slow:
            await asyncio.sleep(dice.uniform(0.5, 3))
        await connection.execute(dice.choices(["COMMIT", "ROLLBACK"], [8, 1])[0])
        self.transactions += 1
        await asyncio.sleep(dice.expovariate(100))

    async def _change(self, connection: asyncpg.Connection, mine: list[Any]) -> None:
        dice = self._dice
        self._token += 1
        what = dice.choices(["insert", "grow", "other", "replace", "delete"], [6, 8, 2, 1, 1])[0]
        if what == "insert" or not mine:
            mine.append(
                await connection.fetchval(
                    "INSERT INTO message (session_id, text) VALUES ($1::uuid, $2) RETURNING id",
                    dice.choice(self._sessions),
                    f"<{self._token}🎯>",
                )
            )
        elif what == "grow":
            pad = dice.choice(["", "", "", "x" * 9000])
            await connection.execute("UPDATE message SET text = text || $2 WHERE id = $1", dice.choice(mine), f"<{self._token}语{pad}>")
        elif what == "other":
            await connection.execute(
                "UPDATE message SET metadata = $2 WHERE id = $1", dice.choice(mine), json.dumps({"token": self._token})
            )
        elif what == "replace":
            await connection.execute("UPDATE message SET text = $2 WHERE id = $1", dice.choice(mine), f"={self._token}=")
        else:
            await connection.execute("DELETE FROM message WHERE id = $1", mine.pop())


class Client:
    """Follows one session through all that happens, and keeps what it was told."""

    def __init__(self, session: str, hubs: list[HubProcess], dice: random.Random, polls: bool) -> None:
        self.session = session
        self._hubs = hubs
        self._dice = dice
        self._polls = polls
        self.cursor: str | None = None
        self.events: list[tuple[int, str, Any]] = []
        self.connections = 0

    async def run(self) -> None:
        while True:
            try:
                await (self._poll() if self._polls else self._stream())
            except CUT:
                await asyncio.sleep(0.05)

    async def _stream(self) -> None:
        url = f"{self._dice.choice(self._hubs).url}/api/sse/{self.session}?from=start"
        async with asyncio.timeout(3):
            stream = await Stream.open(url, self.cursor)
        self.connections += 1
        end = time.monotonic() + self._dice.expovariate(0.7)
        try:
            while time.monotonic() < end:
                event = await stream.next(patience=1.5)
                if event is None:
                    return
                assert event.type not in ("reset", "error"), event
                self.cursor = event.id
                if event.type not in ("connected", "caught_up", "bye"):
                    self.events.append((event.position, event.type, event.data))
        finally:
            stream.abort()

    async def _poll(self) -> None:
        hub = self._dice.choice(self._hubs)
        query = f"after={self.cursor}" if self.cursor else "from=start"
        async with asyncio.timeout(4):
            status, _, body = await get(f"{hub.url}/api/poll/{self.session}?wait=1&{query}")
        self.connections += 1
        if status != 200:
            await asyncio.sleep(0.1)
            return
        answer = json.loads(body)
        assert answer["reset"] is None, answer
        for event in answer["events"]:
            self.events.append((int(event["cursor"].partition("-")[2]), event["type"], event["data"]))
        self.cursor = answer["cursor"]


class Havoc:
    def __init__(self, postgres: EmbeddedPostgres, hubs: list[HubProcess], dice: random.Random) -> None:
        self._postgres = postgres
        self._port = urlsplit(postgres.url).port or 0
        self._hubs = hubs
        self._dice = dice
        self.done: list[str] = []

    async def run(self, end: float) -> None:
        acts = [self.kill_hub, self.freeze_hub, self.end_hub, self.restart, self.crash, self.cut_listeners]
        self._dice.shuffle(acts)
        rounds = 0
        while time.monotonic() < end or not rounds:  # each at least once
            for act in acts:
                if time.monotonic() < end or not rounds:
                    await asyncio.sleep(self._dice.uniform(0.3, 1.5))
                    self.done.append(act.__name__)
                    await act()
            rounds += 1

    async def kill_hub(self) -> None:
        hub = self._dice.choice(self._hubs)
        hub.send(signal.SIGKILL)
        await hub.wait()
        await self._again(hub)

    async def end_hub(self) -> None:
        hub = self._dice.choice(self._hubs)
        hub.send(signal.SIGTERM)
        assert await hub.wait() == 0, hub.log
        await self._again(hub)

    async def freeze_hub(self) -> None:
        hub = self._dice.choice(self._hubs)
        hub.send(signal.SIGSTOP)
        await asyncio.sleep(self._dice.uniform(1, 7))
        hub.send(signal.SIGCONT)

    async def restart(self) -> None:
        self._postgres.stop(signal.SIGINT)
        await asyncio.sleep(self._dice.uniform(0, 1))
        self._postgres.start(self._port)

    async def crash(self) -> None:
        """As by power loss, as far as processes go: kill -9, or SIGQUIT, which flushes nothing either."""
        self._postgres.stop(self._dice.choice([signal.SIGKILL, signal.SIGQUIT]))
        for _ in range(100):  # until the orphans have noticed
            try:
                self._postgres.start(self._port)
                return
            except EmbeddedError:
                await asyncio.sleep(0.1)
        raise AssertionError("PostgreSQL does not come back")

    async def cut_listeners(self) -> None:
        try:
            connection = await asyncpg.connect(self._postgres.url)
            await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast listener'")
            await connection.close()
        except AWAY:
            pass

    async def _again(self, hub: HubProcess) -> None:
        hub.url = ""
        await hub.start()


def replay(events: list[tuple[int, str, Any]]) -> dict[str, Any]:
    """The rows that events, strictly applied, leave: a doubled, missing or misplaced one shows."""
    rows: dict[str, Any] = {}
    for position, type, data in events:
        if type == "message.delta":
            text = rows[data["message_id"]]["text"]
            assert data["offset"] == len(text), (position, data)
            rows[data["message_id"]]["text"] = text + data["delta"]
            continue
        message = data["message"]
        if type == "message.deleted":
            del rows[message["id"]]
        elif type == "agent.message.appended":
            assert message["id"] not in rows, (position, data)
            rows[message["id"]] = {"text": message["text"], "metadata": message["metadata"]}
        else:
            assert type == "message.updated", type
            row = rows[message["id"]]
            row["text"] = message.get("text", row["text"])
            assert row["metadata"] != message["metadata"] or "text" in message, (position, data)
            row["metadata"] = message["metadata"]
    return rows


async def test_every_view_equals_the_log_and_the_log_the_rows(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    seconds = request.config.getoption("--chaos-seconds")
    seed = request.config.getoption("--seed")
    seed = random.randrange(10**6) if seed is None else seed
    print(f"seed {seed}")
    dice = random.Random(seed)
    with private(tmp_path_factory.mktemp("chaos") / "server", max_connections="60") as postgres:
        await schema.migrate(postgres.url, "head")
        db = await asyncpg.connect(postgres.url)
        sessions = [str(await db.fetchval("INSERT INTO session DEFAULT VALUES RETURNING id")) for _ in range(SESSIONS)]
        await db.close()
        hubs = [await HubProcess(postgres.url, asgi=asgi).start() for asgi in (False, True)]
        try:
            await run(postgres, hubs, sessions, dice, seconds)
        finally:
            for hub in hubs:
                hub.send(signal.SIGCONT)
                await hub.__aexit__()


async def run(postgres: EmbeddedPostgres, hubs: list[HubProcess], sessions: list[str], dice: random.Random, seconds: float) -> None:
    writers = Writers(postgres.url, sessions, dice)
    clients = [Client(dice.choice(sessions), hubs, dice, polls=n % 5 == 0) for n in range(CLIENTS)]
    havoc = Havoc(postgres, hubs, dice)
    end = time.monotonic() + seconds
    following = [asyncio.create_task(client.run()) for client in clients]
    writing = [asyncio.create_task(writers.run(slow=n == 0)) for n in range(WRITERS)]
    await havoc.run(end)
    writers.over = True
    await asyncio.gather(*writing)

    db = await asyncpg.connect(postgres.url)
    while await db.fetchval("SELECT more OR n > 0 FROM rowcast.sequence(1000)"):
        pass
    log = [
        (row["position"], row["type"], json.loads(row["payload"]), row["session_id"])
        for row in await db.fetch("SELECT * FROM rowcast.event ORDER BY position")
    ]
    rows = {str(row["id"]): row for row in await db.fetch("SELECT * FROM message")}
    await db.close()
    last = {session: max((e[0] for e in log if e[3] == session), default=0) for session in sessions}

    def all_there() -> bool:
        for task in following:
            if task.done():
                task.result()
        return all(not last[c.session] or (c.events and c.events[-1][0] >= last[c.session]) for c in clients)

    await until(all_there, 40)
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)

    print(f"{writers.transactions} transactions, {len(log)} events, {sum(c.connections for c in clients)} connections, {havoc.done}")
    assert [position for position, *_ in log] == list(range(1, len(log) + 1))
    assert {id: (row["text"], row["metadata"]) for id, row in replay([e[:3] for e in log]).items()} == {
        id: (row["text"], json.loads(row["metadata"])) for id, row in rows.items()
    }
    by_session = defaultdict(list)
    for position, type, data, session in log:
        by_session[session].append((position, type, data))
    for client in clients:
        assert client.events == by_session[client.session], f"{client.session} {'polling' if client._polls else 'streaming'}"
    assert len(log) > 100
