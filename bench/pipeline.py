"""One process of pipelines, for writer.py: so many streams of so many tokens a second, written in one of three ways.

Prints one JSON document: seconds, processor seconds of this process, statements, and characters written.
"""

import asyncio
import json
import resource
import sys
import time
from typing import Any, Protocol

import asyncpg
import uvloop
from rowcast_writer import Writer

TOKEN = "token "
CONNECTIONS = 16


class Out(Protocol):
    async def write(self, chunk: str) -> None: ...


class Nowhere:
    """What the pipelines themselves cost."""

    statements = 0

    async def write(self, chunk: str) -> None:
        pass


class EachToken:
    """An UPDATE a token, as most do it."""

    statements = 0

    def __init__(self, pool: asyncpg.Pool, id: Any) -> None:
        self._pool = pool
        self._id = id

    async def write(self, chunk: str) -> None:
        EachToken.statements += 1
        await self._pool.execute("UPDATE message SET text = text || $2 WHERE id = $1", self._id, chunk)


async def stream(out: Out, rate: float, end: float) -> int:
    """Tokens at even moments; late ones at once. How many."""
    loop, tokens, due = asyncio.get_running_loop(), 0, time.monotonic()
    while (due := due + 1 / rate) < end:
        await asyncio.sleep(due - time.monotonic())
        await out.write(TOKEN)
        tokens += 1
        if loop.time() > end + 1:
            break
    return tokens


async def main(way: str, url: str, session: str, streams: int, rate: float, seconds: float, interval: float) -> None:
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    end = began + seconds
    statements = 0
    if way == "nowhere":
        tokens = await asyncio.gather(*(stream(Nowhere(), rate, end) for _ in range(streams)))
    elif way == "each token":
        async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            ids = [await pool.fetchval("INSERT INTO message (session_id) VALUES ($1) RETURNING id", session) for _ in range(streams)]
            tokens = await asyncio.gather(*(stream(EachToken(pool, id), rate, end) for id in ids))
            await pool.execute("UPDATE message SET status = 'completed' WHERE id = ANY($1)", ids)
        statements = EachToken.statements
    else:
        async with Writer(url, interval=interval) as writer:

            async def talk() -> int:
                async with writer.message(session) as message:
                    return await stream(message, rate, end)

            tokens = await asyncio.gather(*(talk() for _ in range(streams)))
            statements = writer._flusher.statements
    now = resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    figures = {"seconds": time.monotonic() - began, "cpu": cpu, "statements": statements, "characters": sum(tokens) * len(TOKEN)}
    print(json.dumps(figures))


if __name__ == "__main__":
    way, url, session, *numbers = sys.argv[1:]
    streams, rate, seconds, interval = map(float, numbers)
    uvloop.run(main(way, url, session, int(streams), rate, seconds, interval))
