"""What a path says to follow."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from ..database import TROUBLE, explain
from ..errors import DatabaseUnavailable, InvalidParameter, NotFound
from ..events import Topic, Topics
from ..feed import Feed
from ..follower import Wish


@dataclass(frozen=True, slots=True)
class Target:
    """The topics, and how the frames that speak of the stream itself name them."""

    topics: tuple[Topic, ...]
    about: dict[str, Any]
    project: str | None = None
    """Only events of this project, whatever else the topics have."""
    open: bool = False
    """Whether a WebSocket may change the topics."""

    @property
    def ends(self) -> bool:
        """Whether it is one thing, which ends."""
        return len(self.topics) == 1 and self.topics[0].kind in ("job", "request")

    @property
    def has_state(self) -> bool:
        return len(self.topics) == 1 and self.topics[0].kind in ("session", "job")


Aim = Callable[[HTTPConnection], Awaitable[Target]]


async def session(connection: HTTPConnection) -> Target:
    topic = Topic.of("session", connection.path_params["session_id"])
    return Target((topic,), {"session_id": topic.id})


async def project(connection: HTTPConnection) -> Target:
    topic = Topic.of("project", connection.path_params["project_id"])
    return Target((topic,), {"project_id": topic.id})


async def topics(connection: HTTPConnection) -> Target:
    """`?topic=…`, once or several times."""
    found = {Topic.parse(text) for text in connection.query_params.getlist("topic")}
    most = connection.app.state.rowcast.settings.topics
    # A WebSocket may begin with none.
    if not found and connection.scope["type"] == "http":
        raise InvalidParameter("topic", "is missing; it is <kind>:<id>, such as session:42")
    if len(found) > most:
        raise InvalidParameter("topic", f"at most {most} on one connection (ROWCAST_TOPICS), not {len(found)}")
    return Target(tuple(sorted(found)), {"topics": [str(topic) for topic in sorted(found)]}, open=True)


def job(kind: str) -> Aim:
    """One job of a project. One that is not there yet is waited for; if it is of another project then, nothing is told."""

    async def aim(connection: HTTPConnection) -> Target:
        of = Topic.of("project", connection.path_params["project_id"])
        topic = Topic.of("job", connection.path_params["job_id"])
        try:
            row = (await connection.app.state.rowcast.state.of(topic))["job"]
        except NotFound:
            row = None  # no reference tables: what a watched table says of jobs
        except TROUBLE as error:
            raise DatabaseUnavailable(explain(error)) from error
        if row is not None and (row["project_id"], row["kind"]) != (of.id, kind):
            raise NotFound(f"project {of.id} has no {kind} job {topic.id}")
        return Target((topic,), {"project_id": of.id, "job_id": topic.id}, of.id)

    return aim


async def ended(feed: Feed, topics: Topics, wish: Wish) -> bool:
    """Whether a client that follows to the end came back and has it already."""
    if not wish.until_end or wish.after is None:
        return False
    try:
        return await feed.ended(topics, wish.after)
    except TROUBLE:
        return False
