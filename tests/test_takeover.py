"""Taking the socket over from uvicorn: when that happens, when it must not, and what is left of the request."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from rowcast.sinks import AsgiSink, SocketSink
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .rig import Hub, Stream, Writer, until


def sinks_of(hub: Hub) -> set[type]:
    return {type(client.sink) for client in hub.rowcast.feed._clients}  # type: ignore[attr-defined]


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


@pytest.mark.parametrize(("sinks", "kind"), [("socket", SocketSink), ("asgi", AsgiSink)], indirect=["sinks"])
async def test_who_writes_where(hub: Hub, writer: Writer, kind: type) -> None:
    async with await hub.follow(await writer.session()) as stream:
        await stream.until("caught_up")
        assert sinks_of(hub) == {kind}


async def test_a_client_is_no_task_and_nothing_of_its_request_stays(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    tasks, cycles, protocols = len(asyncio.all_tasks()), alive(RequestResponseCycle), alive(HttpToolsProtocol)
    streams = [await hub.follow(session) for _ in range(20)]
    for stream in streams:
        await stream.until("caught_up")
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    assert alive(RequestResponseCycle) == cycles
    assert alive(HttpToolsProtocol) == protocols
    assert alive(SocketSink) == 20
    for stream in streams:
        stream.abort()
    await until(lambda: not hub._server.server_state.connections)
    await until(lambda: alive(SocketSink) == 0)


class Shouting:
    """A middleware that changes what is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def loud(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": message["body"].upper()}
            await send(message)

        await self._app(scope, receive, loud)


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


@pytest.mark.parametrize(
    "wrap",
    [Passing, GZipMiddleware, lambda app: Passing(GZipMiddleware(Passing(app)))],
    ids=["base", "gzip", "all"],
)
@pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)
async def test_middlewares_change_nothing(database: str, writer: Writer, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
    """H14: the first bytes at once, every event, and a client that goes is noticed."""
    hub = Hub(database)
    hub._server.config.app = wrap(hub._server.config.app)  # type: ignore[arg-type]
    async with hub:
        session = await writer.session()
        stream = await hub.follow(session)
        await stream.until("caught_up")
        for n in range(20):
            await writer.message(session, str(n))
        for n in range(20):
            (event,) = await stream.expect("agent.message.appended")
            assert event.data["message"]["text"] == str(n)
        stream.abort()
        await until(lambda: not hub.rowcast.feed._clients)
        last = await hub.follow(session)
        await last.until("caught_up")
        await hub.stop()
        assert [event.type for event in await last.rest()] == ["bye"]


async def test_nothing_is_taken_from_under_a_middleware_that_changes_bytes(database: str, writer: Writer) -> None:
    hub = Hub(database)
    hub._server.config.app = Shouting(hub._server.config.app)  # type: ignore[arg-type]
    async with hub:
        reader, sending = await asyncio.open_connection(*hub._sock.getsockname()[:2])
        sending.write(b"GET /api/sse/s HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"EVENT: CONNECTED" in await asyncio.wait_for(reader.readuntil(b"CONNECTED"), 5)
        await until(lambda: sinks_of(hub) == {AsgiSink})
        sending.close()


async def test_what_a_client_sends_while_it_streams_is_no_request(hub: Hub, writer: Writer) -> None:
    """Pipelined behind the stream, all at once or later, or no HTTP at all."""
    session = await writer.session()
    request = f"GET /api/sse/{session} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    pipelined = await asyncio.open_connection(*hub._sock.getsockname()[:2])
    pipelined[1].write(request * 3)
    async with await hub.follow(session) as stream:
        await stream.until("caught_up")
        stream._writer.write(request + b"\x00\xff" * 1000)
        await until(lambda: len(hub.rowcast.feed._clients) == 2)
        await writer.message(session)
        await stream.expect("agent.message.appended")
        await pipelined[0].readuntil(b"agent.message.appended")
    pipelined[1].close()
    await until(lambda: not hub.rowcast.feed._clients)
    assert not hub._server.server_state.tasks


@pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)
async def test_a_client_that_closes_its_half_is_gone(hub: Hub, writer: Writer) -> None:
    stream = await hub.follow(await writer.session())
    await stream.until("caught_up")
    stream._writer.write_eof()
    await until(lambda: not hub.rowcast.feed._clients)
    await until(lambda: not hub._server.server_state.connections)


async def test_uvicorn_ends_what_was_taken_from_it(database: str, writer: Writer) -> None:
    """Its own shutdown, without our drain before."""
    hub = await Hub(database).start()
    streams = [await hub.follow(await writer.session()) for _ in range(3)]
    for stream in streams:
        await stream.until("caught_up")
    for connection in list(hub._server.server_state.connections):
        connection.shutdown()
    for stream in streams:
        assert await stream.rest() == []  # ended, not cut
    await until(lambda: not hub.rowcast.feed._clients)
    await hub.stop()


@pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)
async def test_both_send_the_same_bytes(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    await writer.message(session, "before")
    await until(lambda: hub.rowcast.hub.position == 1)
    stream = await Stream.open(hub.sse(session))
    body = b""
    while b"caught_up" not in body or not body.endswith(b"\n\n"):
        body += await stream.chunk()
    lines = body.decode().split("\n")
    cursor = f"{hub.rowcast.hub.lineage.epoch}-"
    assert [line.partition(":")[0] for line in lines] == [
        *("retry", "id", "event", "data", ""),
        *("id", "event", "data", ""),
        *("id", "event", "data", ""),
        "",
    ]
    assert [line for line in lines if line.startswith("id")] == [f"id: {cursor}0", f"id: {cursor}1", f"id: {cursor}1"]
    names = [name for name in stream.headers if name not in ("date", "server")]
    assert names == ["cache-control", "connection", "x-accel-buffering", "content-type", "transfer-encoding"]
