"""What is in each frame and each answer: tables of all types of events and of what streams say themselves, and their schemas.

Nothing is decoded into these structs: reference.py makes the served documents of them, and tests hold real frames against
those. Rows are as alembic/sql/*_noun_v*.sql has them, events as *_event_v*.sql. What may be of any size is null where it is
too large (rowcast.fit).
"""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .events import CURSOR, ID_MOST, JOB_FAMILIES
from .frames import TOP_LEVEL
from .wish import Reason

Type = Any
"""What msgspec can make a schema of."""
Schema = dict[str, Any]


def struct(name: str, /, *bases: type, says: str = "", **fields: Type) -> Type:
    """A struct that holds these fields and no others. One that may be UNSET may be absent."""
    described = [(field, type, UNSET) if UnsetType in get_args(type) else (field, type) for field, type in fields.items()]
    return msgspec.defstruct(name, described, bases=bases, namespace={"__doc__": says}, forbid_unknown_fields=True, kw_only=True)


def several(type: Type) -> Type:
    return GenericAlias(list, type)


Id = Annotated[str, Meta(min_length=1, max_length=ID_MOST)]
Cursor = Annotated[str, Meta(pattern=f"^{CURSOR.pattern}$")]
At = Annotated[datetime, Meta(tz=True)]
Epoch = Annotated[float, Meta(description="seconds since 1970")]
Size = Annotated[int, Meta(ge=0)]
Text = str | None
Name = str | int | None
Lost = Literal["truncated", "epoch", "ahead"]
Kind = Literal["ingest", "agent", "workflow", "task"]
Status = Literal["pending", "running", "processing", "completed", "failed", "cancelled"]
Progress = Annotated[float, Meta(ge=0, le=100)]

# fmt: off

# Rows
times: dict[str, Type] = {"created_at": At, "updated_at": At}
Session = struct("Session", id=UUID, project_id=UUID | None, owner_id=Text, **times)
Request = struct("Request", says="Its texts stay in the table.", request_id=UUID, session_id=UUID,
    status=Literal["pending", "in_progress", "done", "error"], updated_at=Epoch, has_response=bool, has_error=bool, sequence_number=int)
Message = struct("Message", says="`text` is there where it is new as a whole.", id=UUID, session_id=UUID, job_id=UUID | None, role=str,
    status=Literal["pending", "streaming", "completed", "failed"], metadata=Any, text=Text | UnsetType, **times)
WholeMessage = struct("WholeMessage", Message, text=Text)
Job = struct("Job", id=UUID, kind=Kind, name=Text, session_id=UUID | None, project_id=UUID | None, status=Status, stage=Text,
    progress=Progress, message=Text, result=Any, error=Text, cancel_requested_at=At | None, **times)
Step = struct("Step", id=UUID, job_id=UUID, name=str, sequence_number=int, status=Status, state=Any, error=Text, **times)
JobWithSteps = struct("JobWithSteps", Job, steps=several(Step))
GoneMessage = struct("GoneMessage", id=UUID, session_id=UUID, job_id=UUID | None)
GoneJob = struct("GoneJob", id=UUID, kind=Kind, session_id=UUID | None, project_id=UUID | None)
GoneStep = struct("GoneStep", id=UUID, job_id=UUID)

# Events
RequestDeleted = struct("RequestDeleted", request_id=UUID, session_id=UUID, timestamp=At)
MessageAppended = struct("MessageAppended", message=WholeMessage, timestamp=At)
MessageDelta = struct("MessageDelta", says="What you have, cut to `offset` code points, and then `delta`.",
    message_id=UUID, offset=Size, delta=Text, timestamp=At)
MessageChanged = struct("MessageChanged", says="Where the text grew, there are `offset` and `delta`.",
    message=Message, offset=Size | UnsetType, delta=Text | UnsetType, timestamp=At)
MessageFailed = struct("MessageFailed", MessageChanged, says="`errorMessage` is `error` of its metadata.", errorMessage=Any)
MessageDeleted = struct("MessageDeleted", message=GoneMessage, timestamp=At)
JobChanged = struct("JobChanged", job=Job, timestamp=At)
JobFailed = struct("JobFailed", JobChanged, errorMessage=Text)
RunChanged = struct("RunChanged", run=Job, timestamp=At)
RunFailed = struct("RunFailed", RunChanged, errorMessage=Text)
JobDeleted = struct("JobDeleted", job=GoneJob, timestamp=At)
StepChanged = struct("StepChanged", says="`errorMessage` is there while the status is `failed`.",
    step=Step, timestamp=At, errorMessage=Text | UnsetType)
NodeChanged = struct("NodeChanged", nodeState=Step, timestamp=At)
NodeStateChanged = struct("NodeStateChanged", NodeChanged, says="`errorMessage` is there while the status is `failed`.",
    errorMessage=Text | UnsetType)
NodeFailed = struct("NodeFailed", NodeChanged, errorMessage=Text)
StepDeleted = struct("StepDeleted", step=GoneStep, timestamp=At)
Omitted = struct("Omitted", says="In the place of a payload of more than 32 MiB: read the row.", omitted=Literal[True])
RowWritten = struct("RowWritten", says="`<name>.inserted` and `<name>.updated`.", key=Any, row=Any, timestamp=At)
RowDeleted = struct("RowDeleted", says="`<name>.deleted`.", key=Any, timestamp=At)
TableTruncated = struct("TableTruncated", says="`<name>.truncated`.", timestamp=At)

EVENTS: dict[str, Type] = {
    "request_update": Request,
    "request.deleted": RequestDeleted,
    "agent.message.appended": MessageAppended,
    "message.delta": MessageDelta,
    "message.updated": MessageChanged,
    "message.completed": MessageChanged,
    "message.failed": MessageFailed,
    "message.deleted": MessageDeleted,
    **{f"{family}.{change}": RunChanged if family.endswith(".run") else JobChanged
       for family in JOB_FAMILIES for change in ("created", "progress" if family == "task" else "updated", "completed", "cancelled")},
    **{f"{family}.failed": RunFailed if family.endswith(".run") else JobFailed for family in JOB_FAMILIES},
    "job.deleted": JobDeleted,
    "agent.step.updated": StepChanged,
    "workflow.node.started": NodeChanged,
    "workflow.node.completed": NodeChanged,
    "workflow.node.failed": NodeFailed,
    "workflow.node_state.updated": NodeStateChanged,
    "job_step.updated": StepChanged,
    "job_step.deleted": StepDeleted,
}
"""The payload of each type. A payload that is too large is Omitted instead."""

OTHERS: dict[str, Type] = {
    "inserted": RowWritten,
    "updated": RowWritten,
    "deleted": RowDeleted,
    "truncated": TableTruncated,
    "emitted": dict,
}
"""Of the tables that are watched, by the end of the type; and of rowcast.emit(), which takes any object under any type."""

# What a stream says of itself
about: dict[str, Type] = {
    "session_id": Id | UnsetType, "project_id": Id | UnsetType, "job_id": Id | UnsetType, "topics": list[str] | UnsetType}
Code = Literal["invalid_frame", "invalid_parameter", "unauthorized", "forbidden", "not_found", "too_many", "given_up", "unavailable",
    "internal"]
Failure = struct("Failure", says="The stream closes: something failed on our side, or the token does not allow it (any more); or there is "
    "no such task.", error=str, code=Code | UnsetType, **about)
SessionState = struct("SessionState", says="`session` is null if there is none. The newest rows; `more` if some were left out.",
    cursor=Cursor, session=Session | None, requests=several(Request), jobs=several(JobWithSteps), messages=several(WholeMessage), more=bool)
JobState = struct("JobState", says="`job` is null if there is none.", cursor=Cursor, job=Job | None, steps=several(Step), more=bool)

TOLD: dict[str, Type] = {
    "connected": struct("Connected", timestamp=Epoch, cursor=Cursor, resumed=bool, reason=Reason, **about),
    "caught_up": struct("CaughtUp", says="What was missed has been sent.", cursor=Cursor),
    "snapshot": SessionState | JobState,
    "reset": struct("Reset", says="What came after your cursor cannot be sent: read the state again.", reason=Lost, cursor=Cursor),
    "end": struct("End", cursor=Cursor, **about),
    "expiring": struct("Expiring", says="The token ends then, and the stream with it: renew it, and come back with it.", expires_at=Epoch),
    "bye": struct("Bye", says="This process ends: come back after so many milliseconds.", retry=Size),
    "error": Failure,
}
"""In all streams of events."""

ANSWERED: dict[str, Type] = {
    "error": Failure | struct("Refusal", says="A path or a frame that asks for what cannot be.", error=str, code=Code,
        parameter=str | UnsetType, id=Name | UnsetType),
    "subscribed": struct("Subscribed", says="It follows this topic now; `reset` says why its cursor could not be honoured.",
        topic=str, id=Name, reset=Lost | None),
    "unsubscribed": struct("Unsubscribed", topic=str, id=Name),
    "pong": struct("Pong", id=Name),
    "cancel": struct("CancelAsked", says="`asked` is false if the job has ended.", job_id=Id, asked=bool, id=Name),
    "keepalive": struct("KeepAlive"),
}
"""Over WebSocket besides."""


def task_state(name: str, *statuses: str) -> Type:
    return struct(name, status=Literal[statuses], id=UUID, progress=Progress, message=Text, result=Any, error=Text)


OF_TASK: dict[str, Type] = {
    "progress": task_state("TaskProgress", "pending", "processing"),
    "completed": struct("TaskCompleted", status=Literal["completed"], id=UUID, name=Text, progress=Progress, result=Any),
    "failed": task_state("TaskFailed", "failed"),
    "cancelled": task_state("TaskCancelled", "cancelled"),
    "error": Failure,
    "expiring": TOLD["expiring"],
    "bye": TOLD["bye"],
}
"""In the stream of one task, in the place of all others."""

# Around a payload
Event = struct("Event", cursor=Cursor, type=str, timestamp=At, session_id=Id | None, project_id=Id | None, data=dict)
FlatEvent = struct("FlatEvent", says="The payload is beside these.",
    cursor=Cursor, type=str, timestamp=At, session_id=Id | None, project_id=Id | None)
Told = struct("Told", cursor=Cursor | None, type=str, data=dict)

# Answers
PollAnswer = struct("PollAnswer", says="Ask again after `cursor`.",
    events=several(Event), cursor=Cursor, more=bool, reset=struct("Lost", reason=Lost) | None)
CancelAnswer = struct("CancelAnswer", says="False if the task has ended.", id=Id, cancel_requested=bool)
Ready = struct("Ready", status=Literal["ready"])
NotReady = struct("NotReady", says="The cause is for whoever may see everything.", status=Literal["not ready"], cause=str | UnsetType)
TicketAsked = struct("TicketAsked", topics=several(str))
Ticket = struct("Ticket", says="For one stream, to be opened within so many seconds.", ticket=str, expires_in=Size)
Error = struct("Error", says="`parameter` is there where one is to blame.", error=str, code=Code | UnsetType, parameter=str | UnsetType)

# fmt: on

# Schemas

REF = "#/components/schemas/{name}"


def schema(type: Type) -> Schema:
    return any_of(msgspec.json.schema_components(_each(type), ref_template=REF)[0])


def any_of(schemas: Iterable[Schema]) -> Schema:
    several = list(schemas)
    return several[0] if len(several) == 1 else {"anyOf": several}


def _each(type: Type) -> tuple[Type, ...]:
    return get_args(type) if isinstance(type, UnionType) else (type,)


@cache
def structs() -> dict[str, Schema]:
    values = [*globals().values(), *TOLD.values(), *ANSWERED.values(), *OF_TASK.values()]
    found = {type for value in values for type in _each(value) if isinstance(type, msgspec.StructMeta)}
    return msgspec.json.schema_components(found, ref_template=REF)[1]


def narrowed(name: str, title: str, beside: str | None = None, **fields: Schema) -> Schema:
    """The schema of a struct, with some of its fields narrowed, and those of another one beside its own."""
    parts = [structs()[each] for each in (name, beside) if each]
    return {
        **parts[0],
        "title": title,
        "properties": {**{field: each for part in parts for field, each in part["properties"].items()}, **fields},
        "required": list(dict.fromkeys(field for part in parts for field in part.get("required", ()))),
    }


OURS = sorted({*EVENTS, *TOLD, *ANSWERED})
ANY_OTHER = {"type": "string", "not": {"enum": OURS}}


def schemas() -> dict[str, Schema]:
    """An Event is one of a type, or one of a type that is none of ours."""
    events = {type: narrowed("Event", type, type={"const": type}, data=schema(data | Omitted)) for type, data in EVENTS.items()}
    events["other"] = narrowed("Event", "other", type=ANY_OTHER)
    return {**structs(), **events, "Event": any_of({"$ref": REF.format(name=name)} for name in events)}


def messages() -> dict[str, dict[str, Schema]]:
    """By wire and the name of the message: the data of a server-sent event, or a whole WebSocket frame."""
    return {
        "sse": {
            **{type: schema(data | Omitted) for type, data in EVENTS.items()},
            **{type: schema(data) for type, data in {**OTHERS, **TOLD}.items()},
            "message": any_of([schema(Event), *(_told(type, data) for type, data in TOLD.items())]),
        },
        "task": {type: schema(data) for type, data in OF_TASK.items()},
        "socket": {
            **{type: _frame(type, data) for type, data in EVENTS.items()},
            "other": {**narrowed("FlatEvent", "other", type=ANY_OTHER), "additionalProperties": True},
            **{type: _told(type, data) for type, data in {**TOLD, **ANSWERED}.items()},
        },
    }


def _told(type: str, data: Type) -> Schema:
    return narrowed("Told", type, type={"const": type}, data=schema(data))


def _frame(type: str, data: Type) -> Schema:
    if not type.startswith(TOP_LEVEL):
        return {"$ref": REF.format(name=type)}
    return any_of(narrowed("FlatEvent", type, each.__name__, type={"const": type}) for each in (data, Omitted))
