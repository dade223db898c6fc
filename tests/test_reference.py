"""The documents are true: everything that the application has is in them, and everything that it sends is as they say."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from rowcast.main import create_app
from rowcast.models import Base
from rowcast.payloads import ANSWERED, EVENTS, OF_TASK, TOLD
from rowcast.settings import Settings
from starlette.routing import Route, WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect

from .rig import SECRET, Hub, Seen, Stream, Writer, bearer, call, get, on_database, until, until_sql
from .test_docs import change_everything, documented_types, routes_of

FREE = {"metadata", "result", "state", "key", "row", "errorMessage"}
"""What users fill as they like."""
KINDS = {"ingest": "ingest", "agent": "agent-runs", "workflow": "workflows/runs"}
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class Documents:
    """As a hub serves them, and what of them was seen."""

    def __init__(self, openapi: Any, asyncapi: Any) -> None:
        self.openapi = openapi
        self.asyncapi = asyncapi
        self.channels = {(name.partition(".")[0], channel["address"]): channel for name, channel in asyncapi["channels"].items()}
        self.walked: set[tuple[str, str]] = set()
        self.messages: set[str] = set()
        self.answers: set[tuple[str, str, int]] = set()
        self.polled: set[str] = set()
        self.frames: list[tuple[Draft202012Validator, Any]] = []
        self._validators: dict[str, Draft202012Validator] = {}

    @classmethod
    async def of(cls, hub: Hub) -> "Documents":
        answers = [await get(f"{hub.url}/{name}.json") for name in ("openapi", "asyncapi")]
        assert [status for status, _, _ in answers] == [200, 200], "a route that reference.ENDPOINTS does not have?"
        return cls(*[json.loads(body) for _, _, body in answers])

    def check(self, schema: Any, value: Any) -> None:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": {"schemas": self.asyncapi["components"]["schemas"]}}
            self._validators[key] = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
        validator = self._validators[key]
        for error in validator.iter_errors(value):
            causes = [f"{list(cause.path)}: {cause.message}"[:300] for cause in error.context or [error]]
            raise AssertionError("\n".join([json.dumps(value)[:500], *causes]))
        if schema != {"type": "object"}:  # what emit() takes, and the documents
            self.frames.append((validator, value))

    def taken(self, schema: Any, text: str) -> bool | None:
        """Whether a query may say this; None if the schema does not tell."""
        if schema.get("type") in ("array", "string") and "pattern" not in schema:
            return None
        value: Any = text
        if schema.get("type") in ("integer", "number"):
            with suppress(ValueError):
                value = float(text)
        return Draft202012Validator(schema).is_valid(value)

    def message(self, wire: str, path: str, type: str, payload: Any, headers: Any = None) -> None:
        names = self.channels[wire, path]["messages"]
        other = "other" if wire == "socket" else type.rpartition(".")[2]
        name = type if type in names else other if other in names else "emitted"
        key = names[name]["$ref"].removeprefix("#/components/messages/")
        message = self.asyncapi["components"]["messages"][key]
        self.check(message["payload"], payload)
        if headers is not None:
            self.check(message["headers"], headers)
        self.walked.add((wire, path))
        self.messages.add(key)

    def event(self, path: str, event: Seen) -> None:
        wire = "task" if ("task", path) in self.channels else "sse"
        named = {} if event.type == "message" else {"event": event.type}
        self.message(wire, path, event.type, event.data, {**named, **({"id": event.id} if event.id else {})})

    def answer(self, method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> Any:
        answers = self.openapi["paths"][path][method]["responses"]
        assert str(status) in answers, f"{method} {path} answers {status}: {body[:200]!r}"
        self.answers.add((path, method, status))
        content = answers[str(status)].get("content")
        if not content:
            assert body == b""
            return None
        (media,) = content
        assert headers["content-type"].partition(";")[0] == media
        if media != "application/json":
            return body.decode()
        value = json.loads(body)
        self.check(content[media]["schema"], value)
        return value


class Walk:
    """A client of every path."""

    def __init__(self, hub: Hub, documents: Documents, ids: dict[str, str]) -> None:
        self.hub = hub
        self.documents = documents
        self.ids = ids

    def url(self, path: str, query: str = "", **ids: str) -> str:
        return f"{self.hub.url}{path.format_map({**self.ids, **ids})}{'?' if query else ''}{query}"

    async def ask(
        self, path: str, query: str = "", method: str = "get", headers: dict[str, str] | None = None, body: bytes = b"", **ids: str
    ) -> Any:
        status, got, body = await call(method.upper(), self.url(path, query, **ids), body, **headers or {})
        return self.documents.answer(method, path, status, got, body)

    async def follow(self, path: str, query: str = "", after: str | None = None, **ids: str) -> Stream:
        stream = await Stream.open(self.url(path, query, **ids), after)
        body = b"" if stream.status == 200 else await stream.body()
        if stream.status == 200:
            assert stream.headers["content-type"].startswith("text/event-stream")
            self.documents.answers.add((path, "get", 200))
        else:
            self.documents.answer("get", path, stream.status, stream.headers, body)
        return stream

    async def until(self, path: str, stream: Stream, last: str) -> list[Seen]:
        """All up to an event of this name, under whatever name of an event it comes."""
        seen = []
        while (event := await stream.next()) is not None:
            self.documents.event(path, event)
            seen.append(event)
            if last in (event.type, event.data.get("type")):
                return seen
        raise AssertionError(f"{path} ended before {last}, after {seen[-1:]}")

    async def read(self, path: str, query: str, last: str = "caught_up", after: str | None = None, **ids: str) -> list[Seen]:
        async with await self.follow(path, query, after, **ids) as stream:
            return await self.until(path, stream, last)


class Socket:
    def __init__(self, walk: Walk, path: str, connection: ClientConnection) -> None:
        self._documents = walk.documents
        self._path = path
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, walk: Walk, path: str, query: str = "") -> AsyncIterator["Socket"]:
        url = "ws" + walk.url(path, query).removeprefix("http")
        async with connect(url, compression=None, max_size=None) as connection:
            yield cls(walk, path, connection)

    async def until(self, last: str) -> Any:
        while True:
            async with asyncio.timeout(20):
                frame = json.loads(await self._connection.recv())
            self._documents.message("socket", self._path, frame["type"], frame)
            if frame["type"] == last:
                return frame

    async def say(self, valid: bool = True, **frame: Any) -> None:
        schema = self._documents.asyncapi["components"]["messages"]["socket.frame"]["payload"]
        if valid:
            self._documents.check(schema, frame)
            self._documents.messages.add("socket.frame")
        else:
            with pytest.raises(AssertionError):
                self._documents.check(schema, frame)
        await self._connection.send(json.dumps(frame))


async def write(writer: Writer) -> dict[str, str]:
    """What makes every event; the ids to follow it by."""
    db = writer.db
    await change_everything(writer)
    await db.execute("CREATE TABLE orders (id int PRIMARY KEY, total numeric); SELECT rowcast.watch('orders', '{total}')")
    for statement in ("INSERT INTO orders VALUES (1, 9.50)", "UPDATE orders SET total = 10", "DELETE FROM orders", "TRUNCATE orders"):
        await db.execute(statement)
    session = str(await db.fetchval("SELECT id FROM session ORDER BY created_at LIMIT 1"))
    for type, payload in (("news.read", '{"n": 1}'), ("agent.said", '{"n": 1}'), ("agent.said", "{}")):
        await db.execute("SELECT rowcast.emit($1, $2, session_id => $3)", type, payload, session)
    await db.execute("INSERT INTO message (session_id, text) VALUES ($1, repeat('x', 17 << 20))", UUID(session))  # too long: null
    await db.execute("INSERT INTO message (session_id, text) VALUES ($1, repeat(E'\\x01', 6 << 20))", UUID(session))  # Omitted
    await db.execute("DELETE FROM message")
    await writer.message(session, "Hello", metadata='{"n": 1}')
    await writer.insert("request", session_id=session)
    project = await writer.project()
    ids = {"session_id": session, "project_id": str(project)}
    for kind in (*KINDS, "task"):
        job = await writer.insert("job", kind=kind, project_id=project, session_id=session, status="running", result='{"a": 1}')
        await writer.insert("job_step", job_id=job, state='{"a": 1}')
        ids[kind] = str(job)
    return ids


async def until_told(hub: Hub, writer: Writer) -> None:
    """All that was written."""
    name = f"all.written.{uuid4()}"
    await writer.db.execute("SELECT rowcast.emit($1, '{}', session_id => 'x')", name)
    await until_sql(writer.db, f"SELECT EXISTS (SELECT FROM rowcast.event WHERE type = '{name}')")
    last = await writer.db.fetchval("SELECT max(position) FROM rowcast.event")
    await until(lambda: hub.rowcast.hub.position >= last)


async def test_everything_that_is_sent_is_as_documented(hub: Hub, writer: Writer, database: str) -> None:
    documents = await Documents.of(hub)
    assert_all_routes_are_described(documents)
    ids = await write(writer)
    await until_told(hub, writer)
    walk = Walk(hub, documents, {**ids, "task_id": ids["task"]})
    await walk_streams(walk)
    await walk_sockets(walk)
    await walk_polls(walk)
    await walk_answers(walk)
    await walk_tasks(walk, writer)
    await walk_without_a_database(walk)
    await walk_ends(walk, writer)
    await walk_without_tables(walk, database)
    await walk_entrances(walk, database)
    await walk_limits(walk, database)
    await walk_shutdown(walk)
    every = {
        (path, method, int(status))
        for path, some in documents.openapi["paths"].items()
        for method, each in some.items()
        for status in each["responses"]
    }
    assert documents.answers == every
    assert documents.walked == set(documents.channels)
    assert documents.messages == set(documents.asyncapi["components"]["messages"])
    assert documents.polled == {*EVENTS, "other"}
    assert_that_nothing_else_would_pass(documents.frames)


def assert_all_routes_are_described(documents: Documents) -> None:
    application = create_app(Settings(_env_file=None, database_url="postgresql://", no_auth=True))
    http, sockets = (
        {path for route in application.routes if isinstance(route, kind) for path in routes_of(route, "")}
        for kind in (Route, WebSocketRoute)
    )
    assert set(documents.openapi["paths"]) == http
    assert {path for wire, path in documents.channels if wire == "socket"} == sockets
    streams = {path for path in http if "text/event-stream" in json.dumps(documents.openapi["paths"][path])}
    assert {path for wire, path in documents.channels if wire != "socket"} == streams
    methods: dict[str, set[str]] = {}
    for route in application.routes:
        if isinstance(route, Route):
            (path,) = routes_of(route, "")
            methods.setdefault(path, set()).update((route.methods or set()) - {"HEAD"})
    assert {path: {method.upper() for method in some} for path, some in documents.openapi["paths"].items()} == methods


def topics(walk: Walk, path: str) -> str:
    return "topic=session:{session_id}&topic=table:orders".format_map(walk.ids) if path == "/api/stream" else ""


def of_job(walk: Walk, path: str) -> None:
    """The job that a path is about."""
    for kind, part in KINDS.items():
        if f"/{part}/" in path:
            walk.ids["job_id"] = walk.ids[kind]


async def walk_streams(walk: Walk) -> None:
    """In both formats: what is kept, the state, a cursor that cannot be honoured, and what was asked wrongly."""
    for wire, path in walk.documents.channels:
        if wire == "sse":
            of_job(walk, path)
            of = topics(walk, path)
            for query in ("from=start", "from=start&format=message", "from=start&batch=100"):
                seen = await walk.read(path, f"{of}&{query}")
                assert seen[0].id
            await walk.read(path, f"{of}&format=message", "reset", after="00000000-1")
            await walk.read(path, of, "reset", after="00000000-1")
            await walk.follow(path, f"{of}&after=nonsense")
            if "snapshot" in walk.documents.channels[wire, path]["messages"]:
                one = of.partition("&")[0]
                await walk.read(path, f"{one}&from=snapshot", "snapshot")
                await walk.read(path, f"{one}&from=snapshot&format=message", "snapshot")
            else:
                await walk.follow(path, f"{of}&from=snapshot")
            if "job_id" in path:
                await walk.follow(path, project_id=str(uuid4()))


async def walk_sockets(walk: Walk) -> None:
    for wire, path in walk.documents.channels:
        if wire == "socket":
            of_job(walk, path)
            async with Socket.open(walk, path, f"{topics(walk, path)}&from=start") as socket:
                await socket.until("caught_up")
                await socket.until("keepalive")
                await socket.say(action="ping", id=1)
                await socket.until("pong")
                await socket.say(valid=False, action="fly")
                await socket.until("error")
                await socket.say(action="cancel", job_id=str(uuid4()), id="x")
                await socket.until("error")
                await socket.say(action="cancel", job_id=walk.ids["job_id" if "job_id" in path else "workflow"])
                await socket.until("cancel")
            async with Socket.open(walk, path, "after=nonsense") as wrong:
                await wrong.until("error")
    path = "/api/stream"
    async with Socket.open(walk, path, f"topic=session:{walk.ids['session_id']}&from=snapshot") as socket:
        await socket.until("snapshot")
        for after in ({}, {"after": "00000000-1"}):
            await socket.say(action="subscribe", topic="table:orders", batch=10, **{"from": "now"}, **after)
            await socket.until("subscribed")
            await socket.say(action="unsubscribe", topic="table:orders", id=2)
            await socket.until("unsubscribed")
    async with Socket.open(walk, path, f"topic=session:{walk.ids['session_id']}&after=00000000-1") as socket:
        await socket.until("reset")


async def walk_polls(walk: Walk) -> None:
    path, of, cursor = "/api/poll", "topic=session:{session_id}&topic=table:orders".format_map(walk.ids), ""
    while True:
        answer = await walk.ask(path, f"{of}&from=start&after={cursor}")
        for event in answer["events"]:
            name = event["type"] if event["type"] in EVENTS else "other"
            walk.documents.check({"$ref": f"#/components/schemas/{name}"}, event)
            walk.documents.polled.add(name)
        cursor = answer["cursor"]
        if not answer["more"]:
            break
    for path in ("/api/poll", "/api/poll/{session_id}"):
        assert (await walk.ask(path, f"{of}&after={cursor}"))["events"] == []
        assert (await walk.ask(path, f"{of}&from=start"))["events"]
        assert (await walk.ask(path, f"{of}&after=00000000-1"))["reset"]
        _, headers, _ = await get(walk.url(path, f"{of}&from=start"))
        await walk.ask(path, f"{of}&from=start", headers={"If_None_Match": headers["etag"]})
        await walk.ask(path, f"{of}&wait=31")


async def walk_answers(walk: Walk) -> None:
    for path in ("/", "/livez", "/readyz", "/openapi.json", "/asyncapi.json"):
        await walk.ask(path)
    state = "/api/sessions/{session_id}"
    found = await walk.ask(state)
    assert found["jobs"][0]["steps"]
    assert found["messages"]
    assert found["requests"]
    await walk.ask(state, session_id=str(uuid4()))
    await walk.ask(state, session_id="x" * 129)


async def walk_tasks(walk: Walk, writer: Writer) -> None:
    for path, method in (("/api/v1/tasks/{task_id}", "get"), ("/api/v1/tasks/{task_id}/cancel", "post")):
        await walk.ask(path, method=method)
        await walk.ask(path, method=method, task_id=str(uuid4()))
        await walk.ask(path, method=method, task_id="x" * 129)
    path = "/api/v1/tasks/{task_id}/stream"
    await walk.read(path, "", "error", task_id=str(uuid4()))
    await walk.follow(path, task_id="x" * 129)
    for status in ("completed", "failed", "cancelled"):
        task = str(await writer.insert("job", kind="agent"))
        async with await walk.follow(path, task_id=task) as stream:
            await walk.until(path, stream, "progress")
            await writer.update("job", UUID(task), status="running", progress=33.3)
            await walk.until(path, stream, "progress")
            await writer.update("job", UUID(task), status=status, result='{"a": 1}', error="why")
            ended = await walk.until(path, stream, status)
        assert (await walk.follow(path, after=ended[-1].id, task_id=task)).status == 204
        await walk.ask("/api/v1/tasks/{task_id}", task_id=task)
    await walk.ask("/api/v1/tasks/{task_id}/cancel", method="post", task_id=task)


async def walk_without_a_database(walk: Walk) -> None:
    async def ask(hub: Hub, path: str, method: str) -> None:
        elsewhere = Walk(hub, walk.documents, dict(walk.ids))
        of_job(elsewhere, path)
        await elsewhere.ask(path, topics(walk, "/api/stream"), method)

    hub = await Hub(NOWHERE).start(ready=False)
    try:
        paths = walk.documents.openapi["paths"].items()
        await asyncio.gather(
            *(
                ask(hub, path, method)
                for path, some in paths
                for method, each in some.items()
                if "503" in each["responses"] and "event-stream" not in str(each["responses"])  # which waits
            )
        )
    finally:
        await hub.stop()


async def walk_ends(walk: Walk, writer: Writer) -> None:
    """The end of what is followed, and 204 for who comes back."""
    streams = [path for wire, path in walk.documents.channels if wire == "sse"]
    for path in streams:
        of_job(walk, path)
        query = f"{topics(walk, path)}&until=end"
        if "job_id" in path:
            await writer.update("job", UUID(walk.ids["job_id"]), status="running")
            await until_told(walk.hub, writer)
        async with await walk.follow(path, f"{query}&from=now") as stream:
            await walk.until(path, stream, "caught_up")
            id = (
                walk.ids["job_id"]
                if "job_id" in path
                else str(await writer.insert("job", project_id=UUID(walk.ids["project_id"]), session_id=UUID(walk.ids["session_id"])))
            )
            await writer.update("job", UUID(id), status="completed")
            ended = await walk.until(path, stream, "end")
        assert (await walk.follow(path, query, after=ended[-1].id)).status == 204
        if (("socket", path)) in walk.documents.channels:
            async with Socket.open(walk, path, f"{query}&after={ended[-1].id}") as socket:
                await socket.until("end")


async def walk_without_tables(walk: Walk, database: str) -> None:
    for function in ("session_state(text, integer)", "job_state(text)"):
        await on_database(database, f"ALTER FUNCTION rowcast.{function} RENAME TO away_{function.partition('(')[0]}")
    for query in ("from=snapshot", "from=snapshot&format=message"):
        await walk.read("/api/sse/{session_id}", query, "error")
    await walk.follow("/api/v1/tasks/{task_id}/stream")
    for function in ("session_state(text, integer)", "job_state(text)"):
        await on_database(database, f"ALTER FUNCTION rowcast.away_{function} RENAME TO {function.partition('(')[0]}")


async def walk_entrances(walk: Walk, database: str) -> None:
    """With a token that is none, with one that does not allow it, and with one that ends."""
    paths = walk.documents.openapi["paths"]
    async with Hub(database, key=SECRET, expiring=600) as hub:
        guarded = Walk(hub, walk.documents, walk.ids)
        for path, some in paths.items():
            of_job(guarded, path)
            for method, each in some.items():
                body, query = (b'{"topics": ["session:x"]}' if path == "/api/tickets" else b""), topics(walk, path) or "topic=session:x"
                for status, shown in (("401", {}), ("403", bearer("nobody"))):
                    if status in each["responses"]:
                        await guarded.ask(path, query, method, shown, body)
                assert bool(each["security"]) == ("401" in each["responses"])
                assert ("ticket" in str(each["security"])) == ("429" in each["responses"] and method == "get" and "poll" not in path)
        everything = bearer("root", {"rights": ["admin"]})
        await guarded.ask("/api/tickets", method="post", headers=everything, body=b'{"topics": ["session:x"]}')
        await guarded.ask("/api/tickets", method="post", headers=everything, body=b"{}")
        await guarded.ask("/api/cookie", method="post", headers=everything)
        await guarded.ask("/api/cookie", method="post", headers=bearer("root", note="x" * 4000))
        await guarded.ask("/api/cookie", method="delete")
        for path, last in (("/api/sse/{session_id}", "expiring"), ("/api/v1/tasks/{task_id}/stream", "expiring")):
            for query in ("", "format=message") if "sse" in path else ("",):
                stream = await Stream.open(guarded.url(path, query), **everything)
                await guarded.until(path, stream, last)
        socket = guarded.url("/api/stream").replace("http", "ws")
        async with connect(socket, additional_headers=everything) as connection:
            for name in ("connected", "expiring"):
                frame = json.loads(await connection.recv())
                assert frame["type"] == name
                walk.documents.message("socket", "/api/stream", name, frame)
        async with connect(socket) as connection:
            frame = json.loads(await connection.recv())
            assert frame["data"]["code"] == "unauthorized"
            walk.documents.message("socket", "/api/stream", "error", frame)
    hub = await Hub(NOWHERE, key=SECRET).start(ready=False)
    try:
        guarded = Walk(hub, walk.documents, walk.ids)
        for path, some in paths.items():
            if "ticket" in str(some.get("get", {}).get("security")):
                of_job(guarded, path)
                await guarded.ask(path, f"{topics(walk, path)}&ticket=x", headers={"Accept": "*/*"})
        await guarded.ask("/api/tickets", method="post", headers=everything, body=b'{"topics": ["session:x"]}')
    finally:
        await hub.stop()


async def walk_limits(walk: Walk, database: str) -> None:
    """Streams and polls while there is no room, and what is refused by address."""
    async with Hub(database, connections=1) as hub:
        full = Walk(hub, walk.documents, walk.ids)
        async with await full.follow("/api/sse/{session_id}") as stream:
            await full.until("/api/sse/{session_id}", stream, "caught_up")
            for path, some in walk.documents.openapi["paths"].items():
                if "429" in some.get("get", {}).get("responses", ()):
                    of_job(full, path)
                    query = f"{topics(walk, path) or 'topic=session:x'}&from=now{'&wait=1' if 'poll' in path else ''}"
                    await full.ask(path, query, headers={"Accept": "*/*"})
    async with Hub(database, key=SECRET, handshakes=1) as hub:
        flooded = Walk(hub, walk.documents, walk.ids)
        for path in ("/api/tickets", "/api/cookie"):
            for _ in range(10):
                await call("POST", flooded.url(path))
            await flooded.ask(path, method="post")


async def walk_shutdown(walk: Walk) -> None:
    path, task = "/api/sse/{session_id}", "/api/v1/tasks/{task_id}/stream"
    streams = [(path, await walk.follow(path)), (path, await walk.follow(path, "format=message")), (task, await walk.follow(task))]
    for path, stream in streams:
        await walk.until(path, stream, "progress" if path == task else "caught_up")
    async with Socket.open(walk, "/api/stream") as socket:
        await socket.until("caught_up")
        stopping = asyncio.create_task(walk.hub.stop())
        for path, stream in streams:
            await walk.until(path, stream, "bye")
        await socket.until("bye")
        await stopping


OURS = {*EVENTS, *TOLD, *ANSWERED}


def objects(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in a frame there are objects, other than those that users fill."""
    if isinstance(value, dict):
        if value.get("type", "end") not in OURS:
            return
        yield at
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key not in FREE:
            yield from objects(below, (*at, key))


def assert_that_nothing_else_would_pass(frames: list[tuple[Draft202012Validator, Any]]) -> None:
    """A field that no schema names, anywhere in anything that was sent, is found."""
    tried = set()
    for validator, frame in frames:
        for at in objects(frame):
            shape = (id(validator), at, frame.get("type"))
            if shape not in tried and not any(isinstance(part, int) and part for part in at):
                tried.add(shape)
                changed = json.loads(json.dumps(frame))
                target = changed
                for part in at:
                    target = target[part]
                target["surprise"] = 1
                assert not validator.is_valid(changed), f"{at} of {json.dumps(frame)[:500]} takes any field"
    assert len(tried) > 200


async def test_the_documents_are_valid(hub: Hub) -> None:
    documents = await Documents.of(hub)
    validate(documents.openapi)
    schema = json.loads((Path(__file__).parent / "asyncapi-3.0.0.json").read_text())
    jsonschema.Draft7Validator(schema).validate(documents.asyncapi)
    for document in (documents.openapi, documents.asyncapi):
        for reference in references(document):
            target = document
            for part in reference.removeprefix("#/").split("/"):
                assert part in target, reference
                target = target[part]
    assert documents.openapi["components"]["schemas"] == documents.asyncapi["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for below in value.values():
            yield from references(below)
    elif isinstance(value, list):
        for below in value:
            yield from references(below)


async def test_they_are_made_once(hub: Hub) -> None:
    for name in ("openapi", "asyncapi"):
        (status, headers, body), (_, _, again) = [await get(f"{hub.url}/{name}.json") for _ in range(2)]
        assert (status, headers["cache-control"], headers["content-type"]) == (200, "no-cache", "application/json")
        assert body == again


async def test_parameters_take_what_is_said_and_nothing_else(hub: Hub, writer: Writer) -> None:
    documents = await Documents.of(hub)
    session = await writer.session()
    await writer.message(session)
    await until(lambda: hub.rowcast.hub.position > 0)
    ids = {"session_id": session, "project_id": "p", "job_id": "j", "task_id": "t"}
    tried = 0
    for path, operations in documents.openapi["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter["in"] != "query":
                continue
            for value in (
                "",
                "end",
                "event",
                "snapshot",
                "start",
                "nonsense",
                "-1",
                "0",
                "1.5",
                "30",
                "31",
                "60000",
                "60001",
                "00000000-1",
            ):
                wanted = documents.taken(parameter["schema"], value)
                if wanted is None:
                    continue
                of = "" if parameter["name"] == "topic" or (path != "/api/poll" and path != "/api/stream") else f"topic=session:{session}&"
                query = f"?{of}{parameter['name']}={value}" + ("" if parameter["name"] == "from" else "&from=start")
                status = (await Stream.open(f"{hub.url}{path.format_map(ids)}{query}", method="HEAD")).status
                assert (status != 400) == wanted, f"{path}{query}: {status}"
                tried += 1
    assert tried > 100


def test_the_page_of_events_names_these_types() -> None:
    assert documented_types() == set(EVENTS)


async def test_statuses_are_those_of_the_tables(hub: Hub) -> None:
    schemas = (await Documents.of(hub)).openapi["components"]["schemas"]
    for table, name in (("request", "Request"), ("message", "Message"), ("job", "Job"), ("job_step", "Step")):
        text = " ".join(str(getattr(constraint, "sqltext", "")) for constraint in Base.metadata.tables[table].constraints)
        for column in ("kind", "status"):
            if f"{column} IN" in text:
                allowed = text.partition(f"{column} IN (")[2].partition(")")[0]
                assert schemas[name]["properties"][column]["enum"] == sorted(value.strip(" '") for value in allowed.split(","))


async def test_events_of_the_log_are_not_called_as_frames_are(hub: Hub, writer: Writer) -> None:
    for name in {*TOLD, *ANSWERED, *OF_TASK}:
        assert await writer.db.fetchval("SELECT rowcast.is_frame($1)", name), name
