"""What tutorials do: a LISTEN connection for each client, filtered in Python."""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import asyncpg
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route


async def sse(request: Request) -> EventSourceResponse:
    session = request.path_params["session"]

    async def events() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        connection = await asyncpg.connect(os.environ["DSN"])
        try:
            await connection.add_listener("events", lambda c, pid, channel, payload: queue.put_nowait(str(payload)))
            while True:
                payload = await queue.get()
                if json.loads(payload)["session"] == session:
                    yield {"data": payload}
        finally:
            await connection.close()

    return EventSourceResponse(events())


app = Starlette(routes=[Route("/sse/{session}", sse)])
