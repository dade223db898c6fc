# tutorial style: one asyncpg connection per SSE client, filter in Python
import asyncio, json, os
import asyncpg
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

DSN = os.environ["DSN"]


async def sse(request):
    session = request.path_params["session"]

    async def gen():
        q = asyncio.Queue()
        conn = await asyncpg.connect(DSN)
        try:
            await conn.add_listener("events", lambda c, pid, ch, payload: q.put_nowait(payload))
            while True:
                payload = await q.get()
                if json.loads(payload)["session"] == session:
                    yield {"data": payload}
        finally:
            await conn.close()

    return EventSourceResponse(gen())


app = Starlette(routes=[Route("/sse/{session}", sse)])
