"""encode/broadcaster in its documented style, SSE by sse-starlette."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broadcaster import Broadcast
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

broadcast = Broadcast(os.environ["DSN"])


async def sse(request: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, str]]:
        async with broadcast.subscribe(channel="ch_" + request.path_params["session"]) as subscriber:
            async for event in subscriber:
                yield {"data": event.message}

    return EventSourceResponse(events())


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await broadcast.connect()
    yield
    await broadcast.disconnect()


app = Starlette(routes=[Route("/sse/{session}", sse)], lifespan=lifespan)
