"""Light SSE clients: note when each mark `@n@` arrives, and nothing else.

`clients.py HUB SESSION…` opens a stream for each session and prints their number when all are live.
Every line on stdin is answered with the number of marks so far; the end of stdin with all of them.
"""

import asyncio
import gc
import json
import re
import sys
import time
from urllib.parse import urlsplit

import uvloop

MARK = re.compile(rb"@(\d+)@")
LONGEST = 32
"""Bytes kept of what came last, for a mark or a line that is cut by the network."""

numbers: list[int] = []
times: list[int] = []


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self._rest = b""
        self.live = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        end = 0
        for mark in MARK.finditer(data):
            numbers.append(int(mark[1]))
            times.append(now)
            end = mark.end()
        if not self.live.done() and b"event: caught_up\n" in data:
            self.live.set_result(None)
        self._rest = data[max(end, len(data) - LONGEST) :]

    def connection_lost(self, exc: Exception | None) -> None:
        sys.exit(f"the hub closed a stream, after {self._rest!r}")


async def _follow(hub: str, session: str) -> Client:
    where = urlsplit(hub)
    transport, client = await asyncio.get_running_loop().create_connection(Client, where.hostname or "", where.port or 80)
    request = f"GET /api/sse/{session}?from=now HTTP/1.1\r\nHost: {where.netloc}\r\nAccept: text/event-stream\r\n\r\n"
    transport.write(request.encode())
    return client


async def main(hub: str, *sessions: str) -> None:
    clients = [await _follow(hub, session) for session in sessions]
    await asyncio.gather(*(client.live for client in clients))
    gc.disable()  # nothing here makes cycles
    print(len(clients), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(len(numbers), flush=True)
    print(json.dumps([numbers, times]), flush=True)


uvloop.run(main(*sys.argv[1:]))
