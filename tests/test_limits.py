"""How much one user, one session, one address and one process may take, and how that is refused."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from rowcast.errors import TooMany
from rowcast.events import Topic
from rowcast.limits import BURST, Limits
from websockets.asyncio.client import connect

from .rig import SECRET, Hub, Stream, bearer, call, until
from .test_access import ws_status

ANY = {"sessions": "*"}


async def refused(hub: Hub, path: str, **headers: str) -> Any:
    """As an EventSource is told, which understands no other status; and as every other program is."""
    async with await Stream.open(hub.url + path, **headers) as stream:
        assert stream.status == 200
        (error,) = await stream.rest()
        assert error.type == "error"
        assert error.id is None
        assert stream.retry is not None
        assert 5 * 1000 <= stream.retry <= 15 * 1000, "five times as long as usual, with jitter"
    status, got, body = await call("GET", hub.url + path, **{"Accept": "*/*", **headers})
    assert (status, int(got["retry-after"]) > 0) == (429, True)
    assert json.loads(body) == {"error": error.data["error"], "code": "too_many"}
    assert error.data["code"] == "too_many"
    assert await ws_status(hub.url.replace("http", "ws") + "/api/stream?topic=session:" + path.rpartition("/")[2], dict(headers)) == 429
    return error.data["error"]


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("connections", "ROWCAST_CONNECTIONS"),
        ("user_connections", "ROWCAST_USER_CONNECTIONS"),
        ("session_connections", "ROWCAST_SESSION_CONNECTIONS"),
    ],
)
async def test_connections_are_limited(database: str, limit: str, says: str) -> None:
    async with Hub(database, key=SECRET, **{limit: 3}) as hub:
        alice, bob = bearer("alice", ANY), bearer("bob", ANY)
        open = [await Stream.open(f"{hub.url}/api/sse/s", **alice) for _ in range(2)]
        for stream in open:
            await stream.until("caught_up")
        async with connect(
            hub.url.replace("http", "ws") + "/api/stream?topic=session:s", additional_headers=alice, compression=None
        ) as socket:
            assert json.loads(await socket.recv())["type"] == "connected"
            assert says in await refused(hub, "/api/sse/s", **alice)
            assert (await call("GET", f"{hub.url}/api/poll/s?from=now&wait=1", **alice))[0] == 429, "a poll that waits is one more"
            assert (await call("GET", f"{hub.url}/api/poll/s?from=now", **alice))[0] == 200, "one that does not wait is none"
            free = {"connections": [], "user_connections": [("s", bob), ("t", bob)], "session_connections": [("t", alice), ("t", bob)]}
            for session, who in free[limit]:
                async with await Stream.open(f"{hub.url}/api/sse/{session}", **who) as stream:
                    await stream.until("caught_up")
        await until(lambda: hub.rowcast.feed.clients == 2)
        async with await Stream.open(f"{hub.url}/api/sse/s", **alice) as stream:
            await stream.until("caught_up")
        for stream in open:
            stream.abort()
        await until(lambda: not hub.rowcast.feed.clients)
        assert not hub.rowcast.limits._counts


async def test_many_at_once_do_not_slip_through(database: str) -> None:
    """All are let in before any of them is counted."""
    async with Hub(database, key=SECRET, user_connections=5) as hub:
        _, answer = await hub.call("GET", "/api/poll/s", bearer("alice", ANY)["Authorization"].split()[1])
        path = f"/api/sse/s?until=end&after={answer['cursor']}"  # whether it has ended is asked of the log
        streams = await asyncio.gather(*(Stream.open(hub.url + path, **bearer("alice", ANY)) for _ in range(40)))
        firsts = await asyncio.gather(*(stream.next() for stream in streams))
        types = sorted(first.type for first in firsts if first)
        assert types == ["connected"] * 5 + ["error"] * 35
        assert all(stream.retry for stream in streams)


async def test_a_socket_that_subscribes_counts_there_too(database: str) -> None:
    async with Hub(database, key=SECRET, session_connections=1) as hub:
        alice = bearer("alice", ANY)
        async with connect(hub.url.replace("http", "ws") + "/api/stream", additional_headers=alice, compression=None) as socket:

            async def ask(**frame: Any) -> Any:
                await socket.send(json.dumps({**frame, "id": 1}))
                while (answer := json.loads(await socket.recv())).get("data", {}).get("id") != 1:
                    pass
                return answer

            assert (await ask(action="subscribe", topic="session:s"))["type"] == "subscribed"
            assert (await ask(action="subscribe", topic="session:s"))["type"] == "subscribed", "again is once"
            assert "ROWCAST_SESSION_CONNECTIONS" in await refused(hub, "/api/sse/s", **alice)
            async with await Stream.open(f"{hub.url}/api/sse/t", **alice) as stream:
                await stream.until("caught_up")
                answer = await ask(action="subscribe", topic="session:t")
                assert (answer["type"], answer["data"]["code"]) == ("error", "too_many")
            assert (await ask(action="unsubscribe", topic="session:s"))["type"] == "unsubscribed"
            async with await Stream.open(f"{hub.url}/api/sse/s", **alice) as stream:
                await stream.until("caught_up")


async def test_sockets_that_subscribe_at_once_do_not_slip_through(database: str) -> None:
    async with Hub(database, key=SECRET, session_connections=2) as hub:

        async def subscribe() -> str:
            async with connect(
                hub.url.replace("http", "ws") + "/api/stream", additional_headers=bearer("alice", ANY), compression=None
            ) as socket:
                opened.append(None)
                await until(lambda: len(opened) == 20)
                await socket.send(json.dumps({"action": "subscribe", "topic": "session:s", "id": 1}))
                while (answer := json.loads(await socket.recv())).get("data", {}).get("id") != 1:
                    pass
                answered.append(None)
                await until(lambda: len(answered) == 20)
                return str(answer["type"])

        opened: list[None] = []
        answered: list[None] = []
        assert sorted(await asyncio.gather(*(subscribe() for _ in range(20)))) == ["error"] * 18 + ["subscribed"] * 2


async def test_a_limit_does_not_tell_what_is_there(database: str) -> None:
    async with Hub(database, key=SECRET, session_connections=1) as hub:
        stream = await Stream.open(f"{hub.url}/api/sse/s", **bearer("alice", ANY))
        await stream.until("caught_up")
        for path in ("/api/sse/s", "/api/sse/another"):
            assert (await call("GET", hub.url + path, **bearer("mallory")))[0] == 403
            assert await ws_status(hub.url.replace("http", "ws") + f"/api/stream?topic=session:{path[9:]}", bearer("mallory")) == 403


async def test_nobody_is_called_as_what_is_counted(database: str) -> None:
    async with Hub(database, key=SECRET, user_connections=2) as hub:
        for name in ("alice", "bob", "process"):
            for _ in range(2):
                stream = await Stream.open(f"{hub.url}/api/sse/s", **bearer(name, ANY))
                await stream.expect("connected", "caught_up")


async def test_handshakes_are_limited_by_address(database: str) -> None:
    async with Hub(database, key=SECRET, handshakes=1) as hub:
        nobody = {"X-Forwarded-For": "203.0.113.7"}
        for _ in range(BURST):
            assert (await call("GET", f"{hub.url}/api/sse/s", **nobody))[0] == 401
        for path in ("/api/sse/s", "/api/stream?topic=session:s", "/api/v1/tasks/t/stream"):
            assert (await call("GET", hub.url + path, **nobody))[0] == 429
        for path in ("/api/tickets", "/api/cookie"):
            assert (await call("POST", hub.url + path, **nobody))[0] == 429
        assert await ws_status(hub.url.replace("http", "ws") + "/api/stream", dict(nobody)) == 429
        assert (await call("GET", f"{hub.url}/api/poll/s", **nobody))[0] == 401, "polls are no handshakes"
        assert (await call("GET", f"{hub.url}/api/sse/s", X_Forwarded_For="203.0.113.8"))[0] == 401
        assert (await call("GET", f"{hub.url}/api/sse/s", X_Forwarded_For="203.0.113.8, 203.0.113.7"))[0] == 429, (
            "the last is the proxy's word"
        )
    async with Hub(database, key=SECRET, handshakes=1, proxies="192.0.2.1") as hub:
        for n in range(BURST):
            assert (await call("GET", f"{hub.url}/api/sse/s", X_Forwarded_For=f"203.0.113.{n}"))[0] == 401
        assert (await call("GET", f"{hub.url}/api/sse/s", X_Forwarded_For="203.0.113.99"))[0] == 429, "nobody believes it"


def test_a_bucket_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rowcast.limits.time.monotonic", lambda: now[0])
    limits = Limits(9, 9, 9, 2)

    def taken(address: str, most: int = 100) -> int:
        for n in range(most):
            try:
                limits.handshake(address)
            except TooMany:
                return n
        return most

    assert taken("192.0.2.1") == 2 * BURST
    now[0] += 1.5
    assert taken("192.0.2.1") == 3
    now[0] += 1000
    assert taken("192.0.2.1") == 2 * BURST
    assert taken("2001:db8::1") == 2 * BURST
    assert taken("2001:db8::ffff:1") == 0, "of one network"
    assert taken("2001:db8:0:1::1") == 2 * BURST
    assert taken("::ffff:192.0.2.1") == 0, "the same in another notation"
    assert taken("not an address") == 2 * BURST
    limits.handshake(None)


def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.limits.ADDRESSES", 3)
    limits = Limits(9, 9, 9, 1)
    for n in range(50):
        limits.handshake(f"192.0.2.{n}")
    assert len(limits._buckets) == 3


def test_counts_are_given_back() -> None:
    limits = Limits(5, 2, 2, 0)
    a, b = Topic("session", "a"), Topic("session", "b")
    limits.enter(one := object(), "alice", (a,))
    limits.enter(two := object(), "alice", (a, b))
    for subject, topics in (("alice", ()), ("bob", (a,))):
        with pytest.raises(TooMany):
            limits.room(subject, topics)
    limits.room("bob", (b,))
    limits.change(one, more=(b,), less=(a,))
    with pytest.raises(TooMany):
        limits.room("bob", (b,))
    limits.room("bob", (a,))
    limits.change(one, less=(a,))
    limits.leave(one)
    limits.leave(one)
    limits.leave(two)
    limits.change(two, more=(a,))
    assert not limits._counts
    assert not limits._held


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET /livez HTTP/1.1\r\nHost: h\r\nX: {'x' * 8001}\r\n\r\n", 431),
        ("GET /livez HTTP/1.1\r\nHost: h\r\n" + "X: x\r\n" * 101 + "\r\n", 431),
        (f"GET /livez HTTP/1.1\r\nHost: h\r\nX: {'x' * 7990}\r\n\r\n", 200),
        (f"GET /livez?{'x' * 100_000} HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: h\r\n" + f"X: {'x' * 1000}\r\n" * 90, 400),
        (
            f"GET /api/stream HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {'A' * 22}==\r\nX: {'x' * 9000}\r\n\r\n",
            431,
        ),
    ],
    ids=["one header", "many headers", "just right", "a target", "a head that does not end", "a handshake"],
)
async def test_the_head_of_a_request_is_bounded(database: str, head: str, status: int) -> None:
    async with Hub(database, key=SECRET) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.rpartition(":")[2]))
        data = head.encode()
        for at in range(0, len(data), 1000):
            if not writer.is_closing():
                writer.write(data[at : at + 1000])
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            try:
                assert int((await reader.readline()).split()[1]) == status
            except ConnectionError:  # closed while we were still writing
                assert status == 400
        writer.close()


async def test_a_body_that_does_not_end_is_not_held(database: str) -> None:
    async with Hub(database, key=SECRET) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.rpartition(":")[2]))
        (name, value), *_ = bearer("alice").items()
        writer.write(f"POST /api/tickets HTTP/1.1\r\nHost: h\r\n{name}: {value}\r\nContent-Length: 100000000\r\n\r\n".encode())
        writer.write(b" " * 200_000)
        async with asyncio.timeout(10):
            assert int((await reader.readline()).split()[1]) == 400
        writer.close()


async def test_requests_on_one_connection_are_bounded_each(database: str) -> None:
    """The bound is of one head, not of all that a connection ever asks."""
    async with Hub(database, key=SECRET) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.rpartition(":")[2]))
        for _ in range(30):
            writer.write(f"GET /livez HTTP/1.1\r\nHost: h\r\nX: {uuid4().hex * 200}\r\n\r\n".encode())
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
        writer.close()
