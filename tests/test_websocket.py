"""WebSocket: the same events as text frames, and what a client may say."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from rowcast.transports.websocket import Conversation
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from .rig import Hub, HubProcess, Writer, on_database, until, until_sql

pytestmark = pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)


class Socket:
    """A client."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def next(self) -> Any:
        async with asyncio.timeout(20):
            while (frame := json.loads(await self.connection.recv()))["type"] == "keepalive":
                pass
        return frame

    async def expect(self, *types: str) -> list[Any]:
        frames = []
        for type in types:
            frame = await self.next()
            assert frame["type"] == type, frame
            frames.append(frame)
        return frames

    async def until(self, type: str) -> list[Any]:
        frames = [await self.next()]
        while frames[-1]["type"] != type:
            frames.append(await self.next())
        return frames

    async def say(self, text: str | bytes | None = None, **frame: Any) -> None:
        await self.connection.send(json.dumps(frame) if text is None else text)

    async def code(self) -> int:
        """With which it was closed, after whatever else came."""
        with pytest.raises(ConnectionClosed):
            while True:
                await asyncio.wait_for(self.connection.recv(), 20)
        assert self.connection.close_code is not None
        return self.connection.close_code


@asynccontextmanager
async def opened(url: str, path: str) -> AsyncIterator[Socket]:
    async with connect(f"ws{url.removeprefix('http')}{path}", compression=None, max_size=None) as connection:
        yield Socket(connection)


async def test_a_project_with_all_its_sessions(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    one, two = await writer.session(project), await writer.session(project)
    async with opened(hub.url, f"/api/stream/projects/{project}") as socket:
        connected, _ = await socket.expect("connected", "caught_up")
        assert connected["data"]["project_id"] == str(project)
        await writer.message(one, "a")
        await writer.insert("request", session_id=two)
        await writer.message(await writer.session(), "of nobody")
        await writer.message(two, "b" * 100_000)
        seen = await socket.expect("agent.message.appended", "request_update", "agent.message.appended")
        assert seen[0].keys() == {"cursor", "type", "session_id", "project_id", "message", "timestamp"}
        assert (seen[0]["message"]["text"], seen[0]["session_id"], seen[0]["project_id"]) == ("a", one, str(project))
        assert seen[1].keys() == {"cursor", "type", "timestamp", "session_id", "project_id", "data"}
        assert seen[1]["data"]["session_id"] == two
        assert seen[2]["message"]["text"] == "b" * 100_000


async def test_keys_of_ones_own_do_not_hide_ours(hub: Hub, writer: Writer) -> None:
    async with opened(hub.url, "/api/stream?topic=session:s") as socket:
        await socket.expect("connected", "caught_up")
        for payload in ({"type": "mine"}, {"n": 1}, {}):
            await writer.db.execute("SELECT rowcast.emit('agent.thought', $1, session_id => 's')", json.dumps(payload))
        one, two, three = await socket.expect(*["agent.thought"] * 3)
        assert (one["data"], two["n"], three["data"]) == ({"type": "mine"}, 1, {})
        assert all(frame["timestamp"] for frame in (one, two, three))


async def test_it_resumes_with_a_cursor(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    message = await writer.message(session)
    path = f"/api/stream?topic=session:{session}"
    async with opened(hub.url, path) as socket:
        cursor = (await socket.until("agent.message.appended"))[-1]["cursor"]
    for n in range(700):
        await writer.update("message", message, text="x" * (n + 1))
    async with opened(hub.url, f"{path}&after={cursor}") as socket:
        frames = await socket.until("caught_up")
        assert frames[0]["data"]["resumed"] is True
        assert frames[0]["cursor"] == cursor
        assert [frame["data"]["offset"] for frame in frames[1:-1]] == list(range(700))


async def test_one_job_ends_with_its_stream(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    job = await writer.insert("job", kind="ingest", project_id=project, status="running")
    path = f"/api/stream/projects/{project}/ingest/{job}"
    await until(lambda: hub.rowcast.hub.position >= 1)
    async with opened(hub.url, path) as socket:
        await socket.until("caught_up")
        await writer.update("job", job, status="completed")
        end = (await socket.expect("ingest.job.completed", "end"))[-1]
        assert await socket.code() == 1000
    async with opened(hub.url, f"{path}?after={end['cursor']}") as again:
        _, said = await again.expect("connected", "end")
        assert (said["data"]["job_id"], said["data"]["cursor"]) == (str(job), end["cursor"])
        assert await again.code() == 1000
    async with opened(hub.url, f"/api/stream/projects/{project}/agent-runs/{job}") as wrong:
        (error,) = await wrong.expect("error")
        assert error["data"]["code"] == "not_found"
        assert await wrong.code() == 1008


async def test_topics_change_on_the_fly(hub: Hub, writer: Writer) -> None:
    one, two = await writer.session(), await writer.session()
    await writer.message(two, "before")
    async with opened(hub.url, f"/api/stream?topic=session:{one}&from=now") as socket:
        await socket.expect("connected", "caught_up")
        await writer.message(one, "1")
        await socket.expect("agent.message.appended")
        await socket.say(action="subscribe", topic=f"session:{two}", id=7)
        before, subscribed = await socket.expect("agent.message.appended", "subscribed")
        assert before["message"]["text"] == "before"
        assert subscribed["data"] == {"topic": f"session:{two}", "id": 7, "reset": None}
        assert before["cursor"] == subscribed["cursor"]  # with it and both topics nothing is missed
        await writer.message(two, "2")
        await writer.message(one, "3")
        texts = [frame["message"]["text"] for frame in await socket.expect(*["agent.message.appended"] * 2)]
        assert texts == ["2", "3"]
        await socket.say(action="unsubscribe", topic=f"session:{one}", id="u")
        (answer,) = await socket.expect("unsubscribed")
        assert answer["data"] == {"topic": f"session:{one}", "id": "u"}
        await writer.message(one, "unheard")
        await writer.message(two, "4")
        (last,) = await socket.expect("agent.message.appended")
        assert last["message"]["text"] == "4"
        await socket.say(action="ping", id="p")
        (pong,) = await socket.expect("pong")
        assert pong["data"] == {"id": "p"}


async def test_a_subscription_begins_after_its_own_cursor(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    message = await writer.message(session)
    await until_sql(writer.db, "SELECT EXISTS (SELECT FROM rowcast.event)")
    epoch = await writer.db.fetchval("SELECT epoch FROM rowcast.epoch")
    for n in range(1200):
        await writer.update("message", message, text="x" * (n + 1))
    await until(lambda: hub.rowcast.hub.position >= 1201)
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="subscribe", topic=f"session:{session}", after=f"{epoch}-100")
        frames = await socket.until("subscribed")
        assert [frame["data"]["offset"] for frame in frames[:-1]] == list(range(99, 1200))
        await socket.say(action="unsubscribe", topic=f"session:{session}")
        await socket.say(action="subscribe", topic=f"session:{session}", after="00000000-1")
        _, again = await socket.expect("unsubscribed", "subscribed")
        assert again["data"]["reset"] == "epoch"


async def test_nothing_is_missing_or_doubled_while_topics_change(hub: Hub, writer: Writer, database: str) -> None:
    """Sessions are joined one by one, with all that they have, while all of them are written to."""
    sessions = [await writer.session() for _ in range(8)]
    other = await asyncpg.connect(database)
    stop = asyncio.Event()

    async def write() -> int:
        n = 0
        while not stop.is_set():
            await Writer(other).message(sessions[n % 8], str(n))
            n += 1
        return n

    writing = asyncio.create_task(write())
    texts: list[int] = []
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        for session in sessions:
            await socket.say(action="subscribe", topic=f"session:{session}", **{"from": "start"})
            texts += [int(f["message"]["text"]) for f in (await socket.until("subscribed"))[:-1]]
        stop.set()
        written = await writing
        await other.close()
        while len(texts) < written:
            (frame,) = await socket.expect("agent.message.appended")
            texts.append(int(frame["message"]["text"]))
    assert sorted(texts) == list(range(written))
    for n in range(8):
        mine = [text for text in texts if text % 8 == n]
        assert mine == sorted(mine)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", "invalid_frame", "truncated"),
        ("[]", "invalid_frame", "Expected `object`"),
        (b"\x00\x01", "invalid_frame", "text, not binary"),
        ('{"action":"fly"}', "invalid_frame", "fly"),
        ('{"action":"subscribe"}', "invalid_parameter", "topic: is missing"),
        ('{"action":"subscribe","topic":"nonsense"}', "invalid_parameter", "<kind>:<id>"),
        ('{"action":"subscribe","topic":"session:"}', "invalid_parameter", "1 to 128 characters"),
        ('{"action":"subscribe","topic":"session:a","after":"x"}', "invalid_parameter", "cursor"),
        ('{"action":"subscribe","topic":"session:a","from":"snapshot"}', "invalid_parameter", "snapshot"),
        ('{"action":"subscribe","topic":"session:a","batch":-1}', "invalid_parameter", "milliseconds"),
        ('{"action":"subscribe","topics":["session:a"]}', "invalid_frame", "topics"),
        ('{"action":"cancel"}', "invalid_parameter", "job_id"),
        ('{"action":"ping","id":{}}', "invalid_frame", "id"),
    ],
)
async def test_a_bad_frame_is_answered_and_the_connection_stays(hub: Hub, text: str | bytes, code: str, says: str) -> None:
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(text)
        (error,) = await socket.expect("error")
        assert error["data"]["code"] == code
        assert says in error["data"]["error"]
        await socket.say(action="ping")
        await socket.expect("pong")


async def test_frames_are_heard_in_order_from_the_first(hub: Hub) -> None:
    address = urlsplit(hub.url)
    reader, out = await asyncio.open_connection(address.hostname, address.port)
    handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + "A" * 22 + "==\r\n"
    frames = [Frame(Opcode.TEXT, json.dumps({"action": "ping", "id": n}).encode()).serialize(mask=True) for n in range(50)]
    out.write(f"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n{handshake}\r\n".encode())
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        out.write(b"".join(frames))
        seen = b""
        while b'"id":49' not in seen:
            data = await reader.read(65536)
            assert data, seen
            seen += data
    assert [int(n) for n in re.findall(rb'"pong","data":{"id":([0-9]+)}', seen)] == list(range(50))
    out.close()


def running() -> set[str]:
    return {task.get_coro().__name__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]


async def test_idle_clients_have_no_task(hub: Hub, request: pytest.FixtureRequest) -> None:
    if "asgi" in request.node.name:
        pytest.skip("over ASGI they have")
    async with opened(hub.url, "/api/stream?topic=session:a") as one, opened(hub.url, "/api/stream?topic=session:a") as two:
        for socket in (one, two):
            await socket.expect("connected", "caught_up")
            await socket.say(action="ping")
            await socket.expect("pong")
        await until(lambda: not {"run_asgi", "_hear_all", "catch_up"} & running())


async def test_a_bug_of_ours_is_told_and_ends_it(hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(conversation: Conversation, frame: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Conversation, "_ping", broken)
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="ping")
        (error,) = await socket.expect("error")
        assert error["data"]["error"] == "internal error"
        assert await socket.code() == 1011
    assert "ZeroDivisionError" in caplog.text


async def test_subscriptions_that_look_alike_are_told_apart(hub: Hub, writer: Writer) -> None:
    """One is given up and asked for again while another waits behind it: that one loses nothing."""
    many, few = await writer.session(), await writer.session()
    await writer.db.execute("INSERT INTO message (session_id, text) SELECT $1, n FROM generate_series(1, 3000) n", many)
    for _ in range(20):
        await writer.message(few, "few")
    await until(lambda: hub.rowcast.hub.position >= 3020)
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="subscribe", topic=f"session:{many}", **{"from": "start"})
        await socket.say(action="subscribe", topic=f"session:{few}", **{"from": "start"})
        await asyncio.sleep(0.02)
        await socket.say(action="unsubscribe", topic=f"session:{many}")
        await socket.say(action="subscribe", topic=f"session:{many}", **{"from": "start"})
        frames = []
        while sum(frame["type"] == "subscribed" for frame in frames) < 2:
            frames.append(await socket.next())
        assert sum(frame["session_id"] == few for frame in frames if "message" in frame) == 20
        assert frames[-1]["data"]["topic"] == f"session:{many}"


async def test_every_frame_is_answered(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with opened(hub.url, f"/api/stream?topic=session:{session}") as socket:
        await socket.expect("connected", "caught_up")
        await writer.message(session, "once")
        await socket.expect("agent.message.appended")
        await socket.say(action="subscribe", topic=f"session:{session}", id="again")
        (again,) = await socket.expect("subscribed")
        assert again["data"] == {"topic": f"session:{session}", "id": "again", "reset": None}
        await socket.say(action="subscribe", topic="session:b", id=1)
        await socket.say(action="unsubscribe", topic="session:b", id=2)
        answers = [await socket.next() for _ in range(2)]
        assert {answer["data"]["id"] for answer in answers} == {1, 2}
        assert answers[-1]["type"] == "unsubscribed"


async def test_a_refused_subscription_changes_nothing(database: str, writer: Writer) -> None:
    session = await writer.session()
    async with Hub(database, topics=1) as hub, opened(hub.url, f"/api/stream?topic=session:{session}") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="subscribe", topic="session:b", batch=60000)
        await socket.expect("error")
        await writer.message(session, "at once")
        await socket.expect("agent.message.appended")


async def test_only_jobs_of_the_project_are_cancelled(hub: Hub, writer: Writer) -> None:
    mine, theirs = await writer.project(), await writer.project()
    one, two = await writer.insert("job", kind="ingest", project_id=mine), await writer.insert("job", kind="ingest", project_id=mine)
    foreign = await writer.insert("job", kind="ingest", project_id=theirs)
    async with opened(hub.url, f"/api/stream/projects/{mine}") as socket:
        for job, answer in ((one, "cancel"), (foreign, "error"), (uuid4(), "error")):
            await socket.say(action="cancel", job_id=str(job))
            await socket.until(answer)
    async with opened(hub.url, f"/api/stream/projects/{mine}/ingest/{one}") as socket:
        for other in (two, foreign):
            await socket.say(action="cancel", job_id=str(other))
            await socket.until("error")
    asked = await writer.db.fetch("SELECT id FROM job WHERE cancel_requested_at IS NOT NULL")
    assert [row["id"] for row in asked] == [one]


async def test_one_without_topics_is_told_that_the_log_is_another(hub: Hub, database: str, writer: Writer) -> None:
    for _ in range(20):
        await writer.message(await writer.session(), "x")
    await until(lambda: hub.rowcast.hub.position >= 20)
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await writer.db.execute(
            "SELECT pg_advisory_xact_lock(7499639, 3);"  # no sequencer looks meanwhile
            "TRUNCATE rowcast.event; DELETE FROM rowcast.head WHERE position > 0; UPDATE rowcast.epoch SET epoch = 'aaaaaaaa';"
            "INSERT INTO rowcast.head (position, low, last_id) VALUES (0, pg_current_snapshot(), 0)"
        )
        (reset,) = await socket.expect("reset")
        assert reset["data"]["reason"] == "epoch"
        session = await writer.session()
        await socket.say(action="subscribe", topic=f"session:{session}")
        await socket.expect("subscribed")
        await writer.message(session, "new")
        await socket.expect("agent.message.appended")


async def test_batches_are_asked_for_and_given_up_on_the_fly(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    message = await writer.message(session)

    async def grow(texts: str) -> None:
        async with writer.db.transaction():
            for text in texts.split():
                await writer.update("message", message, text=text)

    await grow("a ab abc")
    await until(lambda: hub.rowcast.hub.position >= 4)
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="subscribe", topic=f"session:{session}", batch=100)
        earlier = (await socket.until("subscribed"))[:-1]
        assert [frame["type"] for frame in earlier] == ["agent.message.appended", "message.delta"]
        await grow("abcd abcde abcdef")
        await socket.expect("message.delta")
        await socket.say(action="subscribe", topic="session:other", batch=0)
        await socket.expect("subscribed")
        await grow("abcdefg abcdefgh abcdefghi")
        await socket.expect(*["message.delta"] * 3)


async def test_who_pings_and_does_not_read_is_bounded(database: str, request: pytest.FixtureRequest) -> None:
    if "asgi" in request.node.name:
        pytest.skip("the sink is uvicorn's")
    async with Hub(database, buffer=16_384) as hub, opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        socket.connection.transport.pause_reading()
        (follower,) = hub.rowcast.feed._clients
        pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 40
        async with asyncio.timeout(60):
            while not follower.sink.full:  # type: ignore[attr-defined]
                socket.connection.transport.write(pings)
                await asyncio.sleep(0)
        for _ in range(500):
            socket.connection.transport.write(pings)
            await asyncio.sleep(0.001)
        assert follower.sink.buffered < 100_000  # type: ignore[attr-defined]
        socket.connection.transport.abort()


async def test_who_floods_with_pings_is_closed(hub: Hub) -> None:
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        for _ in range(3):
            await asyncio.wait_for(await socket.connection.ping(), 20)
        pings = Frame(Opcode.PING, b"").serialize(mask=True) * 20_000
        socket.connection.transport.write(pings)
        assert await socket.code() == 1008


async def test_too_many_topics_are_refused(database: str) -> None:
    async with Hub(database, topics=2) as hub:
        async with opened(hub.url, "/api/stream?topic=session:a&topic=session:b&topic=session:c") as socket:
            (error,) = await socket.expect("error")
            assert "at most 2 on one connection (ROWCAST_TOPICS), not 3" in error["data"]["error"]
            assert await socket.code() == 1008
        async with opened(hub.url, "/api/stream?topic=session:a") as socket:
            await socket.expect("connected", "caught_up")
            for topic in ("session:b", "session:b", "session:c"):
                await socket.say(action="subscribe", topic=topic)
            answers = {frame["type"]: frame for frame in [await socket.next() for _ in range(3)]}
            assert answers.keys() == {"subscribed", "error"}
            assert "at most 2" in answers["error"]["data"]["error"]


@pytest.mark.parametrize("path", ["/api/stream?topic=x", "/api/stream?after=1", "/api/stream?types=!", "/api/stream?batch=x"])
async def test_what_a_path_asks_wrongly_is_named(hub: Hub, path: str) -> None:
    async with opened(hub.url, path) as socket:
        (error,) = await socket.expect("error")
        assert error["data"]["code"] == "invalid_parameter"
        assert await socket.code() == 1008


async def test_a_frame_that_is_too_long_closes(hub: Hub) -> None:
    async with opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        await socket.say(action="ping", id="x" * 60_000)
        await socket.expect("pong")
        await socket.say(action="ping", id="x" * 70_000)
        assert await socket.code() == 1009


async def test_at_shutdown_clients_are_told_to_come_back(database: str) -> None:
    async with Hub(database) as hub, opened(hub.url, "/api/stream?topic=session:a") as socket:
        await socket.expect("connected", "caught_up")
        stopping = asyncio.create_task(hub.stop())
        (bye,) = await socket.expect("bye")
        assert bye["data"]["retry"] > 0
        assert await socket.code() == 1012
        await stopping
        assert hub.rowcast.feed.clients == 0


async def test_clients_that_go_leave_nothing_behind(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    sockets = [await connect(f"ws{hub.url.removeprefix('http')}/api/stream?topic=session:{session}", compression=None) for _ in range(50)]
    for n, socket in enumerate(sockets):
        if n % 2:
            socket.transport.abort()
        else:
            await socket.close()
    await until(lambda: hub.rowcast.feed.clients == 0)
    assert not hub.rowcast.hub._live


async def test_one_that_does_not_read_is_bounded_and_catches_up(database: str, writer: Writer) -> None:
    session = await writer.session()
    async with Hub(database, buffer=16_384) as hub, opened(hub.url, f"/api/stream?topic=session:{session}") as socket:
        await socket.expect("connected", "caught_up")
        socket.connection.transport.pause_reading()
        await writer.db.execute(
            "INSERT INTO message (session_id, text) SELECT $1, n || repeat('x', 20000) FROM generate_series(0, 999) n", session
        )
        (follower,) = hub.rowcast.feed._clients
        await until(lambda: hub.rowcast.hub.position >= 1000)
        await until(lambda: not hub.rowcast.hub.is_live(follower))  # type: ignore[arg-type]
        assert follower.sink.buffered < 2_500_000  # type: ignore[attr-defined]
        socket.connection.transport.resume_reading()
        frames = await socket.expect(*["agent.message.appended"] * 1000)
        assert [int(frame["message"]["text"].rstrip("x")) for frame in frames] == list(range(1000))


async def test_one_that_asks_and_does_not_read_is_not_heard(database: str) -> None:
    async with Hub(database, buffer=16_384) as hub, opened(hub.url, "/api/stream") as socket:
        await socket.expect("connected", "caught_up")
        socket.connection.transport.pause_reading()
        saying = asyncio.create_task(_say_much(socket))
        (follower,) = hub.rowcast.feed._clients
        await until(lambda: follower.sink.full)  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        assert follower.sink.buffered < 200_000  # type: ignore[attr-defined]
        socket.connection.transport.resume_reading()
        await socket.expect(*["pong"] * 2000)
        await saying


async def _say_much(socket: Socket) -> None:
    for _ in range(2000):
        await socket.say(action="ping", id="x" * 10_000)


async def test_keep_alives_carry_the_cursor(hub: Hub, writer: Writer) -> None:
    async with opened(hub.url, "/api/stream?topic=session:quiet") as socket:
        await socket.expect("connected", "caught_up")
        await writer.message(await writer.session(), "elsewhere")
        await until(lambda: hub.rowcast.hub.position > 0)
        cursor = str(hub.rowcast.hub.cursor(hub.rowcast.hub.position))
        async with asyncio.timeout(20):
            while (frame := json.loads(await socket.connection.recv()))["cursor"] != cursor:
                assert frame["type"] == "keepalive"


async def test_through_kill_9_of_the_hub(database: str, writer: Writer) -> None:
    session = await writer.session()
    seen: list[str] = []
    cursor = ""
    async with HubProcess(database) as first, opened(first.url, f"/api/stream?topic=session:{session}") as socket:
        await socket.expect("connected", "caught_up")
        for n in range(10):
            await writer.message(session, str(n))
        for frame in await socket.expect(*["agent.message.appended"] * 5):
            seen.append(frame["message"]["text"])
            cursor = frame["cursor"]
        assert first.process
        first.process.kill()
        with pytest.raises(AssertionError, match="1006"):
            assert await socket.code() == 1000, "1006" if socket.connection.close_code == 1006 else "another"
    async with HubProcess(database) as second, opened(second.url, f"/api/stream?topic=session:{session}&after={cursor}") as socket:
        frames = await socket.until("caught_up")
        seen += [frame["message"]["text"] for frame in frames[1:-1]]
    assert seen == [str(n) for n in range(10)]


async def test_a_reset_in_the_middle(hub: Hub, database: str) -> None:
    async with opened(hub.url, "/api/stream?topic=session:a&topic=session:b") as socket:
        await socket.expect("connected", "caught_up")
        await on_database(
            database,
            "INSERT INTO rowcast.epoch (epoch, start, timeline, database) SELECT 'feedface', 0, timeline, 0 FROM rowcast.epoch LIMIT 1",
        )
        (reset,) = await socket.expect("reset")
        assert reset["data"]["reason"] == "epoch"


async def test_while_the_database_is_away_it_is_kept_alive() -> None:
    hub = await Hub("postgresql://nobody@127.0.0.1:1/nothing").start(ready=False)
    try:
        async with opened(hub.url, "/api/stream?topic=session:a") as socket:
            for _ in range(2):
                assert json.loads(await socket.connection.recv()) == {"cursor": None, "type": "keepalive", "data": {}}
            await socket.say(action="ping")
            (pong,) = await socket.expect("pong")
            assert pong["cursor"] is None
    finally:
        await hub.stop()
