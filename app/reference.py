"""What there is, as documents: HTTP as OpenAPI 3.1, streams as AsyncAPI 3.0. Made from the routes, and from the tables of payloads."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from . import __version__, payloads
from .errors import Forbidden, InvalidParameter, NotFound, TooMany, Unauthorized
from .payloads import OTHERS, Cursor, Id, Schema, Type, schema, schemas
from .settings import Settings
from .transports import query
from .transports.query import LAST_EVENT_ID, Parameter
from .transports.websocket import Frame

EVENT_STREAM = "text/event-stream"
STATUSES = {
    200: "Here it is.",
    201: "It is made.",
    202: "It is asked for.",
    204: "There is nothing more to say: EventSource stays away.",
    304: "What `If-None-Match` names is still what there is.",
    409: "It has ended.",
    **{error.http_status: error.__doc__ for error in (InvalidParameter, Unauthorized, Forbidden, NotFound, TooMany)},
    503: "The database cannot be used right now, or the keys that tokens are checked with.",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a path is for, what it answers by status (a media type alone is text), and what may be asked of it."""

    says: str
    answers: dict[int, Type]
    parameters: tuple[Parameter, ...] = ()
    wire: str = ""
    """What goes over it if it is a stream: see payloads.messages()."""
    state: bool = True
    """Whether it may begin with a snapshot."""
    public: bool = False
    """Whether it asks for no token."""
    takes: Type = None
    """What is in the body of a request."""


GUARDED = (401, 403)


def errors(*statuses: int) -> dict[int, Type]:
    return dict.fromkeys(statuses, payloads.Error)


def stream(says: str, *more: Parameter, state: bool = True, refuses: tuple[int, ...] = ()) -> Endpoint:
    since = query.FROM if state else query.FROM_LOG
    parameters = (*more, query.AFTER, since, query.TYPES, query.UNTIL, query.BATCH, query.FORMAT, query.TICKET)
    return Endpoint(says, {200: EVENT_STREAM, 204: None, **errors(400, *GUARDED, 429, 503, *refuses)}, parameters, "sse", state)


def poll(says: str, *more: Parameter) -> Endpoint:
    parameters = (*more, query.AFTER, query.FROM_LOG, query.TYPES, query.WAIT)
    return Endpoint(says, {200: payloads.PollAnswer, 304: None, **errors(400, *GUARDED, 429, 503)}, parameters)


OF_JOB = (404,)
STATE = (400, 404, *GUARDED)
ENDPOINTS = {
    "/api/stream": stream("the events of several topics", query.TOPIC),
    "/api/stream/projects/{project_id}": stream("a project's events", state=False),
    "/api/stream/projects/{project_id}/ingest/{job_id}": stream("one ingest job's events", refuses=OF_JOB),
    "/api/stream/projects/{project_id}/agent-runs/{job_id}": stream("one agent run's events", refuses=OF_JOB),
    "/api/stream/projects/{project_id}/workflows/runs/{job_id}": stream("one workflow run's events", refuses=OF_JOB),
    "/api/sse/{session_id}": stream("a session's events"),
    "/api/poll": poll("the events of several topics, by polling", query.TOPIC),
    "/api/poll/{session_id}": poll("a session's events, by polling"),
    "/api/sessions/{session_id}": Endpoint("a session's state", {200: payloads.SessionState, **errors(*STATE)}),
    "/api/v1/tasks/{task_id}": Endpoint("a task's state", {200: payloads.Job, **errors(*STATE)}),
    "/api/v1/tasks/{task_id}/stream": Endpoint(
        "a task's progress, to its end", {200: EVENT_STREAM, 204: None, **errors(*STATE, 429, 503)}, (query.AFTER, query.TICKET), "task"
    ),
    "/api/v1/tasks/{task_id}/cancel": Endpoint(
        "ask for the end of a task", {202: payloads.CancelAnswer, 409: payloads.CancelAnswer, **errors(*STATE)}
    ),
    "/api/tickets": Endpoint(
        "a ticket, with which one stream can be opened without a token",
        {201: payloads.Ticket, **errors(400, *GUARDED, 429, 503)},
        takes=payloads.TicketAsked,
    ),
    "/api/cookie": Endpoint("keep the token of this request in a cookie", {204: None, **errors(400, 401, 429)}),
    "DELETE /api/cookie": Endpoint("forget that cookie", {204: None}, public=True),
    "/livez": Endpoint("whether the process answers", {200: "text/plain"}, public=True),
    "/readyz": Endpoint("whether it is of use", {200: payloads.Ready, 503: payloads.NotReady}, public=True),
    "/openapi.json": Endpoint("this document", {200: dict}, public=True),
    "/asyncapi.json": Endpoint("what goes over the streams (AsyncAPI)", {200: dict}, public=True),
    "/": Endpoint("a page to look at sessions with", {200: "text/html"}, public=True),
}

SECURITY: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": Settings.model_fields["cookie"].default},
    "ticket": {"type": "apiKey", "in": "query", "name": query.TICKET.name},
}
"""Of a stream any of them, of all else one of the first two. None, where the hub runs without authentication."""

# Documents

STREAMS = """\
Server-sent events: the headers of a message are the fields `event` and `id`. Under `format=message` every one of them is a `message`.
Comments, and an `id` alone, are keep-alives. WebSocket: one text frame a message. It is closed with 1000 at the end, 1008 where
the request was wrong, 1009 after too long a frame, 1011 after an error of ours, 1012 when the process ends, 1013 while there is
no room, 3000 where the token does not hold (any more), 3003 where it does not allow it; after 1011, 1012 and 1013, come back."""


def openapi(routes: Sequence[BaseRoute]) -> Schema:
    paths: dict[str, Schema] = {}
    for path, endpoint, route in _described(routes):
        if isinstance(route, Route):
            method = _method(route).lower()
            paths.setdefault(path, {})[method] = {"operationId": f"{method}.{_named(path)}", **_operation(path, endpoint)}
    return {
        "openapi": "3.1.0",
        "info": _info("What goes over the streams is in asyncapi.json. Where GET is answered, HEAD is, too. Any other error is an Error."),
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": schemas(), "securitySchemes": SECURITY},
    }


def _operation(path: str, endpoint: Endpoint) -> Schema:
    ids = [{"name": id, "in": "path", "required": True, "schema": schema(Id)} for id in _ids(path)]
    asked = [
        {"name": each.name, "in": "query", "required": each is query.TOPIC, "description": each.says, "schema": schema(each.type)}
        for each in endpoint.parameters
        if each is not query.TICKET
    ]
    resumed = [{"name": LAST_EVENT_ID, "in": "header", "schema": schema(Cursor)}] if query.AFTER in endpoint.parameters else []
    answers = {str(status): _answer(status, type) for status, type in endpoint.answers.items()}
    shown = [] if endpoint.public else ["bearer", "cookie", *(["ticket"] if query.TICKET in endpoint.parameters else [])]
    security: list[Schema] = [{name: []} for name in shown]
    operation = {"summary": endpoint.says, "parameters": [*ids, *asked, *resumed], "responses": answers, "security": security}
    if endpoint.takes:
        content = {"application/json": {"schema": schema(endpoint.takes)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _method(route: Route) -> str:
    return min((route.methods or {"GET"}) - {"HEAD"})


def _answer(status: int, type: Type) -> Schema:
    if type is None:
        return {"description": STATUSES[status]}
    media, content = (type, str) if isinstance(type, str) else ("application/json", type)
    return {"description": STATUSES[status], "content": {media: {"schema": schema(content)}}}


def asyncapi(routes: Sequence[BaseRoute]) -> Schema:
    made = payloads.messages()
    made["socket"]["frame"] = msgspec.json.schema_components((Frame,))[1]["Frame"]
    channels: dict[str, Schema] = {}
    operations: dict[str, Schema] = {}
    for path, endpoint, route in _described(routes):
        if endpoint.wire:
            wire = "socket" if isinstance(route, WebSocketRoute) else endpoint.wire
            name = f"{wire}.{_named(path)}"
            names = [each for each in made[wire] if endpoint.state or each != "snapshot"]
            channels[name] = {
                "address": path,
                "summary": endpoint.says,
                "parameters": {id: {} for id in _ids(path)},
                "messages": {each: {"$ref": f"#/components/messages/{wire}.{each}"} for each in names},
            }
            binding = {"method": "GET", "query": {"type": "object", "properties": _asked(endpoint, wire)}}
            operations[f"send.{name}"] = _of_channel("send", name, [each for each in names if each != "frame"])
            if wire == "socket":
                channels[name]["bindings"] = {"ws": binding}
                operations[f"receive.{name}"] = _of_channel("receive", name, ["frame"])
            else:
                operations[f"send.{name}"]["bindings"] = {"http": binding}
    messages = {f"{wire}.{name}": _message(wire, name, payload) for wire in made for name, payload in made[wire].items()}
    return {
        "asyncapi": "3.0.0",
        "info": _info(STREAMS),
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas()},
    }


def _asked(endpoint: Endpoint, wire: str) -> Schema:
    asked = [each for each in endpoint.parameters if wire != "socket" or each is not query.FORMAT]
    return {each.name: {**schema(each.type), "description": each.says} for each in asked}


def _of_channel(action: str, name: str, messages: list[str]) -> Schema:
    refs = [{"$ref": f"#/channels/{name}/messages/{each}"} for each in messages]
    return {"action": action, "channel": {"$ref": f"#/channels/{name}"}, "messages": refs}


def _message(wire: str, name: str, payload: Schema) -> Schema:
    if wire == "socket":
        return {"name": name, "payload": payload}
    event = {} if name == "message" else {"event": {"type": "string"} if name in OTHERS else {"const": name}}
    fields = {"type": "object", "properties": {**event, "id": schema(Cursor)}, "required": list(event), "additionalProperties": False}
    return {"name": name, "headers": fields, "payload": payload}


def _described(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, Endpoint, BaseRoute]]:
    for route in routes:
        assert isinstance(route, Route | WebSocketRoute)
        path = re.sub(r":\w+}", "}", route.path)
        alone = f"{_method(route)} {path}" if isinstance(route, Route) else path
        yield path, ENDPOINTS.get(alone) or ENDPOINTS[path], route


def _info(says: str) -> Schema:
    return {"title": "Rowcast", "version": __version__, "description": says}


def _ids(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)


def _named(path: str) -> str:
    return re.sub(r"\W+", ".", path).strip(".") or "page"


def serve(document: Callable[[Sequence[BaseRoute]], Schema]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with a document, which is made when it is first asked for."""

    @cache
    def content(app: Starlette) -> bytes:
        return msgspec.json.encode(document(app.routes))

    async def endpoint(request: Request) -> Response:
        return Response(content(request.app), media_type="application/json", headers={"Cache-Control": "no-cache"})

    return endpoint
