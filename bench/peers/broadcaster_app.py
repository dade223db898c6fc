# encode/broadcaster in its documented style, SSE by sse-starlette
import os
from contextlib import asynccontextmanager
from broadcaster import Broadcast
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute

broadcast = Broadcast(os.environ["DSN"])
CH = os.environ.get("CHPREFIX", "ch_")


async def sse(request):
    session = request.path_params["session"]

    async def gen():
        async with broadcast.subscribe(channel=CH + session) as subscriber:
            async for event in subscriber:
                yield {"data": event.message}

    return EventSourceResponse(gen())


async def ws(websocket):
    await websocket.accept()
    async with broadcast.subscribe(channel=CH + websocket.path_params["session"]) as subscriber:
        async for event in subscriber:
            await websocket.send_text(event.message)


@asynccontextmanager
async def lifespan(app):
    await broadcast.connect()
    yield
    await broadcast.disconnect()


app = Starlette(routes=[Route("/sse/{session}", sse), WebSocketRoute("/ws/{session}", ws)], lifespan=lifespan)
