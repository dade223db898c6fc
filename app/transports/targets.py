"""What a path says to follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from ..database import TROUBLE
from ..errors import InvalidParameter, NotFound
from ..events import OF_ITSELF, Event, Topic, Topics
from ..feed import Feed
from ..state import State
from ..wish import Admission, Wish


@dataclass(frozen=True, slots=True)
class Target:
    """The topics, and how the frames that speak of the stream itself name them."""

    topics: tuple[Topic, ...]
    about: dict[str, Any]
    admission: Admission | None = None
    within: Topic | None = None
    """What it is a part of: who may follow that may follow it."""
    open: bool = False
    """Whether a WebSocket may change the topics."""

    @property
    def ways(self) -> list[Topics]:
        """Each suffices: whoever may follow all of one of these is let in."""
        return [(self.within,), self.topics] if self.within else [self.topics]

    @property
    def ends(self) -> bool:
        """Whether it is one thing, which ends."""
        return len(self.topics) == 1 and self.topics[0].kind in OF_ITSELF

    @property
    def has_state(self) -> bool:
        return len(self.topics) == 1 and self.topics[0].kind in ("session", "job")


Aim = Callable[[HTTPConnection], Target]


def session(connection: HTTPConnection) -> Target:
    topic = Topic.of("session", connection.path_params["session_id"])
    return Target((topic,), {"session_id": topic.id})


def project(connection: HTTPConnection) -> Target:
    topic = Topic.of("project", connection.path_params["project_id"])
    return Target((topic,), {"project_id": topic.id})


def topics(connection: HTTPConnection) -> Target:
    """`?topic=…`, once or several times."""
    found = {Topic.parse(text) for text in connection.query_params.getlist("topic")}
    most = connection.app.state.rowcast.settings.topics
    # A WebSocket may begin with none.
    if not found and connection.scope["type"] == "http":
        raise InvalidParameter("topic", "is missing; it is <kind>:<id>, such as session:42")
    if len(found) > most:
        raise InvalidParameter("topic", f"at most {most} on one connection (ROWCAST_TOPICS), not {len(found)}")
    return Target(tuple(sorted(found)), {"topics": [str(topic) for topic in sorted(found)]}, open=True)


class OfProject:
    """A job is told of as long as it is of a project and a kind; and of what it was elsewhere, nothing."""

    def __init__(self, state: State, topic: Topic, project: str, kind: str) -> None:
        self._refusal = f"project {project} has no {kind} job {topic.id}"
        self._state = state
        self._topic = topic
        self._project = project
        self._kind = kind
        self._known = False
        self._usual = {None, project}
        """What its messages name as their project, which is their session's."""

    def doubts(self, events: Sequence[Event]) -> bool:
        """Until it is known, and when it may have moved."""
        return not self._known or any(map(self._is_odd, events))

    def _is_odd(self, event: Event) -> bool:
        if event.type in OF_ITSELF["job"]:
            return event.project_id != self._project or self._is_other(event.type)
        return event.project_id not in self._usual

    def _is_other(self, type: str) -> bool:
        return type in OF_ITSELF["job"] and not type.startswith((f"{self._kind}.", "job."))

    async def ask(self) -> None:
        """NotFound where it is elsewhere. One that is not there may yet come."""
        try:
            row = (await self._state.of(self._topic))["job"]
        except NotFound:
            row = None  # no reference tables: what a watched table says of jobs
        self._known = row is not None
        if row is not None and (row["project_id"], row["kind"]) != (self._project, self._kind):
            raise NotFound(self._refusal)

    def told(self, events: Sequence[Event]) -> list[Event]:
        if not self._known:
            return [event for event in events if event.project_id == self._project and not self._is_other(event.type)]
        messages = [event for event in events if "message" in event.type.split(".")]
        self._usual.update(event.project_id for event in messages)
        return [
            event for event in events if event in messages or (event.project_id in (None, self._project) and not self._is_other(event.type))
        ]


def job(kind: str) -> Aim:
    """One job of a project. One that is not there yet is waited for."""

    def aim(connection: HTTPConnection) -> Target:
        of = Topic.of("project", connection.path_params["project_id"])
        topic = Topic.of("job", connection.path_params["job_id"])
        admission = OfProject(connection.app.state.rowcast.state, topic, of.id, kind)
        return Target((topic,), {"project_id": of.id, "job_id": topic.id}, admission, of)

    return aim


async def ended(feed: Feed, topics: Topics, wish: Wish) -> bool:
    """Whether a client that follows to the end came back and has it already."""
    if not wish.until_end or wish.after is None:
        return False
    try:
        return await feed.ended(topics, wish.after)
    except TROUBLE:
        return False
