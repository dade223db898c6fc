"""Bytes on a socket whose client reads as it likes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rowcast.frames import Block
from rowcast.sinks import SocketSink

from .rig import until

pytestmark = pytest.mark.usefixtures("runner")


class Owner:
    left = False

    def gone(self) -> None:
        self.left = True


@asynccontextmanager
async def connected(limit: int = 10_000) -> AsyncIterator[tuple[SocketSink, socket.socket, set[object]]]:
    """A sink, and the client's end of its socket."""
    loop, accepted, server = asyncio.get_running_loop(), asyncio.Queue[asyncio.Transport](), set[object]()

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.put_nowait(transport)  # type: ignore[arg-type]

    listening = await loop.create_server(Accepting, "127.0.0.1", 0)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.setblocking(False)
    await loop.sock_connect(client, listening.sockets[0].getsockname())
    transport = await accepted.get()
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sink = SocketSink(transport, server, False)
    sink.owner = Owner()
    server.add(sink)
    transport.set_protocol(sink)
    transport.set_write_buffer_limits(limit)
    try:
        yield sink, client, server
    finally:
        client.close()
        transport.abort()
        await until(lambda: not server)
        listening.close()


def read(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return b""


def unchunked(data: bytes) -> tuple[bytes, bytes]:
    """The whole chunks, strictly as RFC 9112 has them, and what is left."""
    body = b""
    while (end := data.find(b"\r\n")) > 0:
        size = int(data[:end], 16)
        if len(data) < end + 2 + size + 2:
            break
        assert data[end + 2 + size : end + 4 + size] == b"\r\n"
        body += data[end + 2 : end + 2 + size]
        data = data[end + 4 + size :]
    return body, data


async def test_nothing_overtakes_what_the_kernel_had_no_room_for() -> None:
    """Also when there is room again before the loop has noticed: all of this is one turn of it."""
    async with connected() as (sink, client, _):
        n, got = 0, b""
        while not sink.buffered:
            sink.write(Block(b"%08d" % n + b"x" * 20_000))
            n += 1
        for _ in range(50):
            got += read(client)  # room, and the transport does not know
            sink.write(Block(b"%08d" % n))
            n += 1
        async with asyncio.timeout(10):
            while len(numbers := unchunked(got)[0].replace(b"x", b"")) < 8 * n:
                await asyncio.sleep(0.001)
                got += read(client)
        assert [int(numbers[i : i + 8]) for i in range(0, len(numbers), 8)] == list(range(n))


@pytest.mark.parametrize("seed", range(5))
async def test_every_byte_comes_once_and_in_order(seed: int) -> None:
    """A client that stops and goes on, blocks from nothing to a megabyte, and waiting for room as catching up does."""
    dice = random.Random(seed)
    async with connected() as (sink, client, _):
        sent, got = [], b""

        async def write() -> None:
            for n in range(60):
                data = b"%04d" % n * dice.choice([1, 1, 30, 3000, 250_000])
                sent.append(data)
                sink.write(Block(data))
                if dice.random() < 0.3:
                    await sink.drained()
                if sink.full:
                    await sink.drained()
            sink.close()

        writing = asyncio.create_task(write())
        async with asyncio.timeout(30):
            while not got.endswith(b"0\r\n\r\n") or not writing.done():
                if dice.random() < 0.5:
                    got += read(client)
                await asyncio.sleep(dice.choice([0, 0, 0.001]))
        assert unchunked(got)[0] == b"".join(sent)


async def test_it_says_when_it_is_full_and_when_there_is_room() -> None:
    async with connected(limit=10_000) as (sink, client, _):
        while not sink.full:
            sink.write(Block(b"x" * 1000))
        assert 10_000 < sink.buffered < 12_000
        room = asyncio.create_task(sink.drained())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not room.done()
        while not room.done():
            read(client)
            await asyncio.sleep(0)
        assert not sink.full


async def test_a_client_that_goes_wakes_whoever_waits_for_it() -> None:
    async with connected() as (sink, client, server):
        owner = sink.owner
        while not sink.full:
            sink.write(Block(b"x" * 1000))
        room = asyncio.create_task(sink.drained())
        await asyncio.sleep(0)
        client.close()
        await asyncio.wait_for(room, 5)
        assert isinstance(owner, Owner)
        assert owner.left
        assert not server
        sink.write(Block(b"nobody is there"))
        sink.close()
