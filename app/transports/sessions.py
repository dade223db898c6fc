"""The state of a session now, for whoever opens a page."""

from starlette.requests import Request
from starlette.responses import Response

from ..database import TROUBLE, unavailable
from ..errors import NotFound
from ..events import Topic
from . import entry, query


async def session_state(request: Request) -> Response:
    """GET /api/sessions/{session_id}: what `?from=snapshot` begins with."""
    grant = await entry.grant(request)
    topic = Topic.of("session", request.path_params["session_id"])
    query.check_state(grant)
    await entry.check(request, grant, "stream", topic)
    try:
        snapshot = await request.app.state.rowcast.state.of(topic)
    except TROUBLE as error:
        raise unavailable(error) from error
    await entry.check(request, grant, "stream", topic)  # still, now that we have it
    if snapshot["session"] is None:
        raise NotFound("no such session")
    return Response(snapshot.body, media_type="application/json", headers={"Cache-Control": "no-store"})
