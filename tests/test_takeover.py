"""Taking the socket over from uvicorn: when that happens, when it must not, and what is left of the request."""

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rowcast.frames import Block
from rowcast.sinks import AsgiSink, SocketSink
from rowcast.takeover import Offer
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .rig import Hub, Writer, until


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
        sending.write(b"GET /api/sse/s HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"EVENT: CONNECTED" in await asyncio.wait_for(reader.readuntil(b"CONNECTED"), 5)
        await until(lambda: sinks_of(hub) == {AsgiSink})
        sending.close()


async def test_what_a_client_sends_while_it_streams_is_no_request(hub: Hub, writer: Writer) -> None:
    """Pipelined behind the stream, all at once or later, or no HTTP at all."""
    session = await writer.session()
    request = f"GET /api/sse/{session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
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
        assert await stream.rest() == []
        assert stream.ended
    await until(lambda: not hub.rowcast.feed._clients)
    await hub.stop()


@pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)
async def test_both_send_the_same_bytes(database: str, writer: Writer) -> None:
    async with Hub(database, keepalive=100) as hub:
        session = await writer.session()
        await writer.message(session, "before")
        await until(lambda: hub.rowcast.hub.position == 1)
        stream = await hub.follow(session)
        body = b""
        while b"caught_up" not in body or not body.endswith(b"\n\n"):
            body += await stream.chunk()
        lines = body.decode().split("\n")
        cursor = f"{hub.rowcast.hub.lineage.epoch}-"
        told = ("id", "event", "data", "")
        assert [line.partition(":")[0] for line in lines] == ["retry", *told, *told, *told, ""]
        assert [line for line in lines if line.startswith("id")] == [f"id: {cursor}0", f"id: {cursor}1", f"id: {cursor}1"]
        names = [name for name in stream.headers if name not in ("date", "server")]
        assert names == ["cache-control", "connection", "x-accel-buffering", "content-type", "transfer-encoding"]


@pytest.mark.parametrize("who_ends", ["the client", "the hub"])
async def test_nothing_goes_to_whoever_gets_the_same_file_descriptor(hub: Hub, writer: Writer, who_ends: str) -> None:
    async with await hub.follow(await writer.session()) as stream:
        await stream.until("caught_up")
        (client,) = hub.rowcast.feed._clients
        sink: Any = client.sink  # type: ignore[attr-defined]
        fd = sink._fd
        stream.abort() if who_ends == "the client" else sink.close()
        await until(lambda: not hub._server.server_state.connections)
        await until(lambda: not Path(f"/proc/self/fd/{fd}").exists())
        pairs = []
        while not any(sock.fileno() == fd for pair in pairs for sock in pair):
            pairs.append(socket.socketpair())
        sink.write(Block(b"for somebody else"))
        sink.close()
        for sock in (sock for pair in pairs for sock in pair):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)
        for sock in (sock for pair in pairs for sock in pair):
            sock.close()


async def test_a_request_with_a_body_is_heard_again(hub: Hub, writer: Writer) -> None:
    """uvicorn stops reading where nobody takes the body; who streams must notice that the client goes."""
    session = await writer.session()
    reader, sending = await asyncio.open_connection(*hub._sock.getsockname()[:2])
    sending.write(f"GET /api/sse/{session} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n".encode() + b"x" * 900_000)
    await reader.readuntil(b"caught_up")
    assert sinks_of(hub) == {SocketSink}
    await asyncio.wait_for(sending.drain(), 5)
    sending.write_eof()
    await until(lambda: not hub.rowcast.feed._clients)
    sending.close()


async def test_the_bound_is_the_setting(database: str, writer: Writer) -> None:
    async with Hub(database, buffer=123_456) as hub, await hub.follow(await writer.session()) as stream:
        await stream.until("caught_up")
        (client,) = hub.rowcast.feed._clients
        assert client.sink.transport.get_write_buffer_limits()[1] == 123_456  # type: ignore[attr-defined]


@pytest.mark.parametrize("state", ["open", "closing", "disconnected", "TLS", "another body"])
async def test_when_a_socket_is_given(state: str) -> None:
    class Transport:
        def __getattr__(self, name: str) -> Any:
            return lambda *args: state == "TLS" if args == ("sslcontext",) else state == "closing" if name == "is_closing" else socket

    class Anything:
        connections: set[object] = set()
        transport = Transport()
        write_paused = False
        disconnected = state == "disconnected"

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self) -> None: ...

    offer = Offer(Anything(), Anything())  # type: ignore[arg-type]
    first = b"retry: 1\n"
    offer.sent = first if state != "another body" else bytes(bytearray(first))
    with socket_pair() as pair:
        socket = pair[0]
        assert (offer.take(first, 1000) is not None) == (state == "open")


@contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there
