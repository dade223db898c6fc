"""A stand-in for a Directus server, over real HTTP, as strict as Directus 10.13.4 where a writer meets it.

What it answers was read off a real one, and test_directus.py compares the two: an unknown field is ignored, an
unknown id is 204 to an administrator and 403 to others, a token that may not read gets 204 for what it wrote,
a uuid for a numbered item is 403. It also fails on demand, which a real one does not.

It has a thread and a loop of its own, so that it outlives the loop of a test.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .rig import PATIENCE

ADMIN, WRITER = "token-of-an-administrator", "token-of-one-who-may-not-read"

MOST_BYTES = 1024 * 1024
"""MAX_PAYLOAD_SIZE, as Directus has it by default."""


@dataclass(frozen=True)
class Field:
    name: str
    type: Literal["uuid", "integer", "string", "text", "json"]
    longest: int | None = None
    needed: bool = False


COLLECTIONS: dict[str, list[Field]] = {
    "messages": [
        Field("id", "uuid"),
        Field("session_id", "string", 255, needed=True),
        Field("role", "string", 255),
        Field("status", "string", 20),
        Field("messageText", "text"),
        Field("metadata", "json"),
    ],
    "numbered": [
        Field("id", "integer"),
        Field("session_id", "string", 255),
        Field("role", "string", 255),
        Field("status", "string", 20),
        Field("content", "text"),
        Field("metadata", "json"),
        Field("trace", "string", 255),
    ],
}


def definition(collection: str) -> dict[str, Any]:
    """What makes this collection in a real Directus: the body of POST /collections."""
    return {"collection": collection, "schema": {}, "meta": {}, "fields": [_defined(one) for one in COLLECTIONS[collection]]}


def _defined(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"max_length": field.longest} if field.longest else {}
    if field.needed:
        schema["is_nullable"] = False
    if field.name == "id":
        schema |= {"is_primary_key": True, "has_auto_increment": field.type == "integer"}
    special = {"json": ["cast-json"], "uuid": ["uuid"]}.get(field.type)
    return {"field": field.name, "type": field.type, "schema": schema, "meta": {"special": special}}


@dataclass
class Seen:
    """One request. `answered` is None while it is under way, and stays so if no answer was sent."""

    method: str
    path: str
    body: Any
    at: float
    answered: int | None = None


@dataclass
class Fault:
    """What happens to the next request of this method."""

    method: str = "PATCH"
    status: int | None = None
    """Answer this, and do nothing."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors":[{"message":"Under pressure.","extensions":{"code":"SERVICE_UNAVAILABLE"}}]}'
    before: float = 0.0
    """Seconds until it is carried out."""
    after: float = 0.0
    """Seconds from then until it is answered."""
    cut: Literal["before", "after"] | None = None
    """Reset the connection before or after it is carried out."""
    then: Callable[["StandIn"], None] | None = None
    """Called when it has been carried out."""


class Answer(Exception):
    def __init__(self, status: int, message: str, code: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"errors": [{"message": message, "extensions": {**more, "code": code}}]}


FORBIDDEN = (403, "You don't have permission to access this.", "FORBIDDEN")


class StandIn:
    def __init__(self) -> None:
        self.items: dict[str, dict[Any, dict[str, Any]]] = {name: {} for name in COLLECTIONS}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.last_number = 0
        self.busiest = 0
        """How many requests of one item were under way at once."""
        self._busy: dict[str, int] = {}
        self._connections: dict[Any, asyncio.Transport] = {}
        routes = [
            Route("/items/{collection}", self._create, methods=["POST"]),
            Route("/items/{collection}/{id}", self._item, methods=["GET", "PATCH"]),
            Route("/fields/{collection}/{name}", self._field),
            Route("/{path:path}", self._nowhere, methods=["GET", "POST", "PATCH"]),
        ]
        app = Starlette(routes=routes)
        connections = self._connections

        class Protocol(HttpToolsProtocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections[transport.get_extra_info("peername")[:2]] = transport

        config = uvicorn.Config(app, host="127.0.0.1", port=0, http=Protocol, log_level="error", lifespan="off", timeout_keep_alive=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="stand-in", daemon=True)

    def __enter__(self) -> "StandIn":
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(PATIENCE)

    # What tests ask

    def fail(self, *faults: Fault, times: int = 1) -> None:
        self.faults += faults * times

    def of(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    def item(self, id: Any, collection: str = "messages") -> dict[str, Any]:
        return self.items[collection][id]

    # Routes

    async def _create(self, request: Request) -> Response:
        return await self._answer(request, self._insert)

    async def _item(self, request: Request) -> Response:
        return await self._answer(request, self._read if request.method == "GET" else self._change)

    async def _field(self, request: Request) -> Response:
        return await self._answer(request, self._describe)

    async def _nowhere(self, request: Request) -> Response:
        return await self._answer(request, self._route)

    async def _answer(self, request: Request, act: Callable[[Request, Any], Any]) -> Response:
        content = await request.body()
        seen = Seen(request.method, request.url.path, _loads(content), time.monotonic())
        self.seen.append(seen)
        fault = self._fault(request.method)
        self._busy[seen.path] = self._busy.get(seen.path, 0) + 1
        self.busiest = max(self.busiest, self._busy[seen.path])
        try:
            response = await self._respond(request, content, act, fault)
        finally:
            self._busy[seen.path] -= 1
        if not fault.cut:
            seen.answered = response.status_code
        return response

    async def _respond(self, request: Request, content: bytes, act: Callable[[Request, Any], Any], fault: Fault) -> Response:
        await asyncio.sleep(fault.before)
        if fault.cut == "before":
            return self._cut(request)
        if fault.status is not None:
            return Response(fault.body, fault.status, {"Content-Type": "application/json", **fault.headers})
        try:
            self._admit(request)
            data = act(request, _body(request, content))
            response: Response = Response(status_code=204) if data is None else JSONResponse({"data": data})
        except Answer as answer:
            response = JSONResponse(answer.body, answer.status)
        if fault.then:
            fault.then(self)
        await asyncio.sleep(fault.after)
        return self._cut(request) if fault.cut else response

    def _cut(self, request: Request) -> Response:
        assert request.client
        self._connections[tuple(request.client)].abort()
        return Response()

    def _fault(self, method: str) -> Fault:
        for number, fault in enumerate(self.faults):
            if fault.method == method:
                return self.faults.pop(number)
        return Fault()

    # As Directus does it

    def _admit(self, request: Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Answer(*FORBIDDEN)
        if token not in (ADMIN, WRITER):
            raise Answer(401, "Invalid user credentials.", "INVALID_CREDENTIALS")
        request.state.is_admin = token == ADMIN

    def _fields(self, request: Request) -> dict[str, Field]:
        collection = request.path_params["collection"]
        if collection not in COLLECTIONS:
            raise Answer(*FORBIDDEN)
        return {field.name: field for field in COLLECTIONS[collection]}

    def _route(self, request: Request, body: Any) -> Any:
        raise Answer(404, f"Route {request.url.path} doesn't exist.", "ROUTE_NOT_FOUND", path=request.url.path)

    def _describe(self, request: Request, body: Any) -> Any:
        if not request.state.is_admin:
            raise Answer(*FORBIDDEN)
        found = self._fields(request).get(request.path_params["name"])
        if found is None:
            raise Answer(*FORBIDDEN)
        return {"collection": request.path_params["collection"], "field": found.name, "type": found.type}

    def _insert(self, request: Request, body: Any) -> Any:
        collection, fields = request.path_params["collection"], self._fields(request)
        for one in fields.values():
            if one.needed and one.name not in body:
                raise Answer(
                    400,
                    f'Validation failed for field "{one.name}". Value is required.',
                    "FAILED_VALIDATION",
                    field=one.name,
                    type="required",
                )
        values = {name: self._stored(collection, fields[name], value) for name, value in body.items() if name in fields}
        if "id" not in values:
            self.last_number += 1
            values["id"] = str(uuid4()) if fields["id"].type == "uuid" else self.last_number
        if values["id"] in self.items[collection]:
            message = f'Value for field "id" in collection "{collection}" has to be unique.'
            raise Answer(400, message, "RECORD_NOT_UNIQUE", collection=collection, field="id")
        self.items[collection][values["id"]] = {**dict.fromkeys(fields), **values}
        return self._shown(request, values["id"])

    def _change(self, request: Request, body: Any) -> Any:
        collection, fields = request.path_params["collection"], self._fields(request)
        id = self._key(request)
        if id not in self.items[collection]:
            if request.state.is_admin:
                return None
            raise Answer(*FORBIDDEN)
        self.items[collection][id] |= {
            name: self._stored(collection, fields[name], value) for name, value in body.items() if name in fields
        }
        return self._shown(request, id)

    def _read(self, request: Request, body: Any) -> Any:
        shown = self._shown(request, self._key(request))
        if shown is None:
            raise Answer(*FORBIDDEN)
        return shown

    def _shown(self, request: Request, id: Any) -> Any:
        item = self.items[request.path_params["collection"]].get(id)
        if item is None or not request.state.is_admin:
            return None
        asked = request.query_params.get("fields", "*")
        return item if asked in ("", "*") else {name: item[name] for name in asked.split(",") if name in item}

    def _key(self, request: Request) -> Any:
        return self._key_of(self._fields(request)["id"], request.path_params["id"])

    def _key_of(self, field: Field, value: Any) -> Any:
        if field.type == "uuid":
            try:
                return str(UUID(value))
            except (ValueError, AttributeError):
                raise Answer(*FORBIDDEN) from None
        if isinstance(value, bool) or not re.fullmatch("[0-9]+", str(value)):
            raise Answer(*FORBIDDEN)
        return int(value)

    def _stored(self, collection: str, field: Field, value: Any) -> Any:
        """As PostgreSQL's column of this type takes it from Directus."""
        if field.name == "id":
            return self._key_of(field, value)
        if value is None:
            if field.needed:
                message = f'Validation failed for field "{field.name}". Value can\'t be null.'
                raise Answer(400, message, "FAILED_VALIDATION", field=field.name, type="nnull")
            return None
        if field.type == "json":
            if isinstance(value, str):
                value = _loads(value.encode())
            if value is None:
                raise Answer(500, "invalid input syntax for type json", "INTERNAL_SERVER_ERROR")
            return value
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        if "\0" in text:
            raise Answer(500, 'invalid byte sequence for encoding "UTF8": 0x00', "INTERNAL_SERVER_ERROR")
        if field.longest and len(text) > field.longest:
            raise Answer(400, f'Value in collection "{collection}" is too long.', "VALUE_TOO_LONG", collection=collection, field=None)
        return text


def _loads(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _body(request: Request, content: bytes) -> Any:
    if len(content) > MOST_BYTES:
        raise Answer(400, "Invalid payload. request entity too large.", "INVALID_PAYLOAD", reason="request entity too large")
    if request.method == "GET" or not request.headers.get("Content-Type", "").startswith("application/json"):
        return {}
    body = _loads(content)
    if not isinstance(body, dict):
        raise Answer(400, "Invalid payload.", "INVALID_PAYLOAD")
    return body
