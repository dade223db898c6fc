"""Who may see what, over real sockets: every endpoint against every kind of wrong or missing credential."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.routing import Route, WebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .rig import SECRET, Hub, Writer, call, token, until, until_sql
from .test_docs import routes_of

PUBLIC = {"/", "/livez", "/readyz", "/openapi.json", "/asyncapi.json"}
STREAMS = "/api/s", "/api/v1/tasks/{task_id}/stream"


@dataclass(frozen=True)
class Asked:
    """One way to ask for something of alice's."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_stream(self) -> bool:
        return self.method == "WS" or self.path.endswith("/stream") or "/stream" in self.path or "/sse/" in self.path

    @property
    def needs(self) -> str:
        return "cancel" if self.path.endswith("/cancel") else "stream"


@dataclass
class World:
    """What is alice's, and a hub with a key."""

    hub: Hub
    writer: Writer
    ids: dict[str, str]
    asked: list[Asked] = field(default_factory=list)

    def url(self, asked: Asked, *queries: str) -> str:
        query = "&".join(filter(None, (asked.query, *queries))).format_map(self.ids)
        return asked.path.format_map(self.ids) + (f"?{query}" if query else "")

    async def status(self, asked: Asked, *queries: str, **headers: str) -> int:
        """Of HTTP, or what it would be by the code with which a WebSocket closed; nothing else was told before."""
        path = self.url(asked, *queries)
        if asked.method == "WS":
            return await ws_status(self.hub.url.replace("http", "ws") + path, headers)
        if asked.is_stream and asked.method == "GET":
            async with await self.hub.open(path, **headers) as stream:
                return stream.status
        status, _, _ = await call(
            asked.method, self.hub.url + path, asked.body.replace(b"SESSION", self.ids["session_id"].encode()), **headers
        )
        return status


CODES = {3000: 401, 3003: 403, 1013: 429, 1008: 400}


async def ws_status(url: str, headers: dict[str, str]) -> int:
    origin = headers.pop("Origin", None)
    try:
        async with connect(url, additional_headers=headers, origin=origin, compression=None) as socket:  # type: ignore[arg-type]
            first = json.loads(await socket.recv())
            if first["type"] != "error":
                return 200
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd
            return CODES[closed.value.rcvd.code]
    except InvalidStatus as error:
        return error.response.status_code


def endpoints(hub: Hub) -> list[Asked]:
    """All that the application has and is not public; one that is new is in here by itself."""
    asked = []
    for route in hub._server._app.routes:
        (path,) = routes_of(route, "")
        if path in PUBLIC:
            continue
        query = "topic=session:{session_id}" if path in ("/api/stream", "/api/poll") else ""
        if isinstance(route, WebSocketRoute):
            asked.append(Asked("WS", path, query))
        else:
            assert isinstance(route, Route)
            body = b'{"topics": ["session:SESSION"]}' if path == "/api/tickets" else b""
            asked += [Asked(method, path, query, body) for method in sorted((route.methods or set()) - {"HEAD"})]
    return [each for each in asked if each.method != "DELETE"]  # which takes a cookie away, and asks nothing


async def populate(writer: Writer) -> dict[str, str]:
    """A session and a project of alice's, a job of both, and the like of bob's."""
    ids = {}
    for name, prefix in (("alice", ""), ("bob", "other_")):
        project = await writer.project()
        await writer.db.execute("INSERT INTO project_member (project_id, user_id) VALUES ($1, $2)", project, name)
        session = await writer.session(project)
        await writer.db.execute("UPDATE session SET owner_id = $2 WHERE id = $1", UUID(session), name)
        jobs = {
            kind: await writer.insert("job", kind=kind, session_id=session, project_id=project, status="running")
            for kind in ("ingest", "agent", "workflow", "task")
        }
        request = await writer.insert("request", session_id=session)
        await writer.message(session, f"a secret of {name}'s")
        ids |= {f"{prefix}session_id": session, f"{prefix}project_id": str(project), f"{prefix}request_id": str(request)}
        ids |= {f"{prefix}{kind}": str(job) for kind, job in jobs.items()} | {f"{prefix}task_id": str(jobs["task"])}
    return ids


def job_of(asked: Asked, ids: dict[str, str]) -> dict[str, str]:
    kind = next((kind for kind in ("ingest", "agent", "workflow") if f"/{kind}" in asked.path), "task")
    return {**ids, "job_id": ids[kind], "other_job_id": ids[f"other_{kind}"]}


@pytest.fixture
def keyed() -> dict[str, Any]:
    return {"key": SECRET}


@pytest.fixture
def world(runner: asyncio.Runner, database: str, writer: Writer, keyed: dict[str, Any]) -> Any:
    hub = Hub(database, **keyed)
    runner.run(hub.start())
    world = World(hub, writer, runner.run(populate(writer)), endpoints(hub))
    runner.run(until_sequenced(world))
    yield world
    runner.run(hub.stop())


async def until_sequenced(world: World) -> None:
    await until_sql(world.writer.db, "SELECT count(*) = (SELECT max(position) FROM rowcast.head) FROM rowcast.outbox")
    last = await world.writer.db.fetchval("SELECT max(position) FROM rowcast.head")
    await until(lambda: world.hub.rowcast.hub.position >= last)


async def each(world: World, status: Callable[[Asked], Awaitable[int]]) -> dict[str, int]:
    """What every endpoint answers."""
    found = {}
    for asked in world.asked:
        world.ids = job_of(asked, world.ids)
        found[str(asked)] = await status(asked)
    return found


def shown(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def test_the_matrix_has_every_endpoint(world: World) -> None:
    assert len(world.asked) > 15
    assert {asked.path for asked in world.asked} | PUBLIC == {
        path for route in world.hub._server._app.routes for path in routes_of(route, "")
    }


# What lets in, so that what does not let in is known to be refused for its own sake.

LETS_IN: dict[str, Callable[[World, Asked], dict[str, str]]] = {
    "owner": lambda world, asked: shown(token("alice")),
    "names the session and the project": lambda world, asked: shown(
        token("robot", {"sessions": [world.ids["session_id"]], "projects": world.ids["project_id"], "rights": ["stream", "cancel"]})
    ),
    "names prefixes": lambda world, asked: shown(
        token(
            "robot",
            {"sessions": world.ids["session_id"][:8] + "*", "projects": world.ids["project_id"][:8] + "*", "rights": ["stream", "cancel"]},
        )
    ),
    "names all": lambda world, asked: shown(
        token("robot", {"sessions": "*", "projects": "*", "jobs": "*", "rights": ["stream", "cancel"]})
    ),
    "admin": lambda world, asked: shown(token("root", {"rights": ["admin"]})),
    "another scheme beside": lambda world, asked: {**shown(token("alice")), "authorization": "Basic eDp5"},
    "own origin": lambda world, asked: {**shown(token("alice")), "Origin": world.hub.url},
}


@pytest.mark.parametrize("how", LETS_IN)
async def test_lets_in(world: World, how: str) -> None:
    found = await each(world, lambda asked: world.status(asked, **LETS_IN[how](world, asked)))
    assert {name: status for name, status in found.items() if status not in (200, 201, 202, 204)} == {}


async def test_a_member_of_the_project_is_let_in(world: World) -> None:
    await world.writer.db.execute("INSERT INTO project_member (project_id, user_id) VALUES ($1, 'carol')", UUID(world.ids["project_id"]))
    found = await each(world, lambda asked: world.status(asked, **shown(token("carol"))))
    assert {name: status for name, status in found.items() if status not in (200, 201, 202, 204)} == {}


async def test_a_cookie_lets_in(world: World) -> None:
    headers = {"Cookie": f"other=1; rowcast_token={token('alice')}"}
    found = await each(world, lambda asked: world.status(asked, **headers))
    assert found.pop("POST /api/cookie") == 401  # it makes one of a bearer token
    assert {name: status for name, status in found.items() if status not in (200, 201, 202, 204)} == {}


# What is no credential: 401 everywhere.

NOBODY: dict[str, dict[str, str]] = {
    "nothing": {},
    "no token": {"Authorization": "Bearer"},
    "an empty token": {"Authorization": "Bearer  "},
    "another scheme": {"Authorization": "Basic YWxpY2U6eA=="},
    "no JWT": {"Authorization": "Bearer alice"},
    "two": {"Authorization": f"Bearer {token('alice')}", "authorization": f"Bearer {token('alice')}"},
    "wrong key": shown(token("alice", key="another secret of the tests, long enough")),
    "alg none": shown(token("alice", key="", algorithm="none")),
    "another algorithm of the same key": shown(token("alice", algorithm="HS512", key=SECRET * 2)),
    "expired": shown(token("alice", lives=-60)),
    "not yet": shown(token("alice", nbf=time.time() + 3600)),
    "issued in the future": shown(token("alice", iat=time.time() + 3600)),
    "no exp": shown(token("alice", exp=None)),
    "no sub": shown(token("alice", sub=None)),
    "sub is a number": shown(token("alice", sub=17)),
    "sub is empty": shown(token("")),
    "sub has a line break": shown(token("alice\nbob")),
    "extensions": shown(token("alice", header={"crit": ["x"], "x": 1})),
    "claim of another shape": shown(token("alice", {"sessions": 17})),
    "claim with an unknown name": shown(token("alice", {"session": "*"})),
    "claim is a list": shown(token("alice", rowcast=["*"])),
    "jti is too long": shown(token("alice", jti="x" * 129)),
    "jti is no text": shown(token("alice", jti=17)),
    "half a character in a claim": shown(token("alice", note="\ud800")),
    "U+0000 in a claim": shown(token("alice", note="\x00")),
    "unknown right": shown(token("alice", {"rights": ["everything"]})),
    "types that are none": shown(token("alice", {"types": ["a b"]})),
    "signature cut off": shown(token("alice").rpartition(".")[0] + "."),
    "payload exchanged": shown(
        ".".join(b if n == 1 else a for n, (a, b) in enumerate(zip(token("bob").split("."), token("alice").split("."), strict=True)))
    ),
    "a bad cookie": {"Cookie": "rowcast_token=x.y.z"},
    "a cookie of another name": {"Cookie": f"session={token('alice')}"},
    "a bad bearer beside a good cookie": {"Authorization": "Bearer x.y.z", "Cookie": f"rowcast_token={token('alice')}"},
}


@pytest.mark.parametrize("how", NOBODY)
async def test_nobody_gets_nothing(world: World, how: str) -> None:
    found = await each(world, lambda asked: world.status(asked, **NOBODY[how]))
    assert {name: status for name, status in found.items() if status != 401} == {}


async def test_a_token_in_the_query_is_refused_unless_switched_on(world: World, database: str) -> None:
    query = f"token={token('alice')}"
    found = await each(world, lambda asked: world.status(asked, query))
    assert {name: status for name, status in found.items() if status != 401} == {}
    async with Hub(database, key=SECRET, query_token=True) as hub:
        other = World(hub, world.writer, world.ids, world.asked)
        found = await each(other, lambda asked: other.status(asked, query))
        assert found.pop("POST /api/cookie") == 401
        assert {name: status for name, status in found.items() if status not in (200, 201, 202, 204)} == {}


@pytest.mark.parametrize("what", ["subject", "token", "login"])
async def test_what_is_revoked_is_refused(world: World, what: str) -> None:
    text = token("alice", jti="j1", sid="s1", iat=time.time() - 60)
    argument = {"subject": "subject => 'alice'", "token": "token => 'j1'", "login": "token => 's1'"}[what]
    assert (await world.hub.call("GET", f"/api/poll/{world.ids['session_id']}", text))[0] == 200
    await world.writer.db.execute(f"SELECT rowcast.revoke({argument})")
    found = await each(world, lambda asked: world.status(asked, **shown(text)))
    assert found.pop("POST /api/cookie") == 204  # it opens nothing
    assert {name: status for name, status in found.items() if status != 401} == {}
    later = token("alice", jti="j2", sid="s2", iat=time.time() + 1)
    if what == "subject":
        await world.writer.db.execute("UPDATE rowcast.revocation SET at = now() - interval '10 seconds'")  # beyond the leeway
    assert (await world.hub.call("GET", f"/api/poll/{world.ids['session_id']}", later))[0] == 200


async def test_a_revoked_session_is_closed_to_tokens_of_before(world: World) -> None:
    before = token("robot", {"sessions": "*", "jobs": "*"}, iat=time.time() - 60)
    session = world.ids["session_id"]
    await world.writer.db.execute("SELECT rowcast.revoke(session_id => $1)", session)
    for topic in (f"session:{session}", f"job:{world.ids['ingest']}", f"request:{world.ids['request_id']}"):
        assert (await world.hub.call("GET", f"/api/poll?topic={topic}", before))[0] == 401, topic
    assert (await world.hub.call("GET", f"/api/poll?topic=session:{world.ids['other_session_id']}", before))[0] == 200


# What is somebody else's: 403, whether it is there or not.

FOREIGN: dict[str, tuple[str, dict[str, Any] | None]] = {
    "bob": ("bob", None),
    "nobody in particular": ("carol", None),
    "named another session": ("alice", {"sessions": ["another"]}),
    "named nothing": ("alice", {"sessions": []}),
    "named a prefix of another": ("alice", {"sessions": "zzz*", "projects": "zzz*"}),
    "named as the wrong kind": ("alice", {"users": "*", "tables": "*"}),
    "no right": ("alice", {"rights": []}),
    "alice in another case": ("Alice", None),
    "alice with a quote": ("alice' OR 'a' = 'a", None),
    "alice with a percent": ("alic%", None),
}


@pytest.mark.parametrize("how", FOREIGN)
async def test_what_is_somebody_elses_is_refused(world: World, how: str) -> None:
    subject, allowed = FOREIGN[how]
    found = await each(world, lambda asked: world.status(asked, **shown(token(subject, allowed))))
    assert found.pop("POST /api/cookie") == 204
    assert {name: status for name, status in found.items() if status != 403} == {}


async def test_what_is_not_there_is_refused_as_what_is_somebody_elses(world: World) -> None:
    """So that nobody learns which ids there are."""
    nowhere = {name: str(uuid4()) for name in world.ids}
    for ids in (nowhere, {**nowhere, "session_id": "x", "project_id": "x", "task_id": "x"}):
        gone = World(world.hub, world.writer, dict(ids), world.asked)
        for asked in world.asked:
            gone.ids = {**ids, "job_id": str(uuid4())}
            if asked.path != "/api/cookie":
                assert await gone.status(asked, **shown(token("alice"))) == 403, asked


async def test_a_right_is_needed_for_what_is_asked(world: World) -> None:
    ids = {"sessions": "*", "projects": "*", "jobs": "*"}
    for rights, refused in ((["stream"], "cancel"), (["cancel"], "stream"), (None, "cancel")):
        allowed = {**ids, **({"rights": rights} if rights else {})}
        found = await each(world, lambda asked, allowed=allowed: world.status(asked, **shown(token("robot", allowed))))  # type: ignore[misc]
        for asked in world.asked:
            if asked.path != "/api/cookie":
                assert (found[str(asked)] == 403) == (asked.needs == refused), (asked, rights)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1.evil.example", "", "https://"])
async def test_a_page_of_another_origin_is_refused(world: World, origin: str) -> None:
    found = await each(world, lambda asked: world.status(asked, Origin=origin, **shown(token("alice"))))
    assert {name: status for name, status in found.items() if status != 403} == {}


async def test_named_origins_are_let_in_and_told_so(world: World, database: str) -> None:
    async with Hub(database, key=SECRET, origins="https://app.example, https://other.example:8443") as hub:
        path = f"/api/poll/{world.ids['session_id']}"
        for origin in ("https://app.example", "https://other.example:8443"):
            status, headers, _ = await call("GET", hub.url + path, Origin=origin, **shown(token("alice")))
            assert (status, headers["access-control-allow-origin"], headers["access-control-allow-credentials"]) == (200, origin, "true")
            assert "Origin" in headers["vary"]
            asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,last-event-id"}
            status, headers, _ = await call("OPTIONS", hub.url + path, Origin=origin, **asks)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            assert await ws_status(hub.url.replace("http", "ws") + "/api/stream", {"Origin": origin, **shown(token("alice"))}) == 200
        for origin in ("https://app.example:8443", "http://app.example", "https://evil.example"):
            status, headers, _ = await call("GET", hub.url + path, Origin=origin, **shown(token("alice")))
            assert (status, headers.get("access-control-allow-origin")) == (403, None)
            status, headers, _ = await call("OPTIONS", hub.url + path, Origin=origin, **asks)
            assert (status, headers.get("access-control-allow-origin")) == (403, None)


# Tickets


async def ticket(world: World, *topics: str, by: str | None = None) -> str:
    body = json.dumps({"topics": topics}).encode()
    status, answer = await world.hub.call("POST", "/api/tickets", by or token("alice"), body)
    assert status == 201, answer
    assert answer["expires_in"] == 30
    return str(answer["ticket"])


def topics_of(asked: Asked, ids: dict[str, str]) -> str:
    if "job_id" in asked.path or "task_id" in asked.path:
        return f"job:{ids['job_id' if 'job_id' in asked.path else 'task_id']}"
    return f"project:{ids['project_id']}" if "project_id" in asked.path else f"session:{ids['session_id']}"


async def test_a_ticket_opens_one_stream_once(world: World, database: str) -> None:
    async with Hub(database, key=SECRET) as other:
        elsewhere = World(other, world.writer, world.ids, world.asked)
        for asked in world.asked:
            world.ids = elsewhere.ids = job_of(asked, world.ids)
            if asked.path == "/api/cookie":
                continue
            right = await ticket(world, topics_of(asked, world.ids))
            wrong = await ticket(world, f"request:{world.ids['request_id']}")
            if not asked.is_stream:
                assert await world.status(asked, f"ticket={right}") == 401, asked
                assert await world.status(asked, f"ticket={wrong}") == 401, asked
                continue
            assert await world.status(asked, f"ticket={wrong}") == 403, asked
            assert await world.status(asked, f"ticket={wrong}") == 401, asked  # it is used up all the same
            assert await elsewhere.status(asked, f"ticket={right}") == 200, asked
            assert await world.status(asked, f"ticket={right}") == 401, asked
            assert await elsewhere.status(asked, f"ticket={right}") == 401, asked


async def test_of_many_who_show_a_ticket_one_is_let_in(world: World, database: str) -> None:
    path = f"/api/sse/{world.ids['session_id']}"
    async with Hub(database, key=SECRET) as other:
        for _ in range(5):
            text = await ticket(world, f"session:{world.ids['session_id']}")
            streams = await asyncio.gather(*(hub.open(f"{path}?ticket={text}") for hub in (world.hub, other) for _ in range(10)))
            assert sorted(stream.status for stream in streams) == [200, *[401] * 19]
            for stream in streams:
                stream.abort()


async def test_a_ticket_is_for_half_a_minute(world: World) -> None:
    path = f"/api/sse/{world.ids['session_id']}"
    text = await ticket(world, f"session:{world.ids['session_id']}")
    kept = await world.writer.db.fetchrow("SELECT *, expires_at - now() AS left FROM rowcast.ticket")
    assert kept
    assert 25 < kept["left"].total_seconds() <= 30
    assert text.encode() not in kept["hash"] + kept["claims"].encode()
    await world.writer.db.execute("UPDATE rowcast.ticket SET expires_at = now() - interval '1 second'")
    async with await world.hub.open(f"{path}?ticket={text}") as stream:
        assert stream.status == 401
    assert await world.writer.db.fetchval("SELECT count(*) FROM rowcast.ticket") == 0
    await ticket(world, f"session:{world.ids['session_id']}")
    await world.writer.db.execute("UPDATE rowcast.ticket SET expires_at = now() - interval '1 second'")
    await ticket(world, f"session:{world.ids['session_id']}")
    assert await world.writer.db.fetchval("SELECT count(*) FROM rowcast.ticket") == 1, "old ones are swept by new ones"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[]", 400),
        (b'{"topics": []}', 400),
        (b'{"topics": ["session"]}', 400),
        (b'{"topics": "session:x"}', 400),
        (b'{"topics": ["session:x"], "rights": ["admin"]}', 400),
        (b'{"topics": ["session:\\u0000"]}', 400),
        (b'{"topics": ["session:\xff"]}', 400),
        (b"[" * 5000, 400),
        (b'{"topics": ["' + b"x" * 70_000 + b'"]}', 400),
        (json.dumps({"topics": [f"session:{n}" for n in range(101)]}).encode(), 400),
        (b'{"topics": ["session:x"]}', 403),
        (b'{"topics": ["user:bob"]}', 403),
        (b'{"topics": ["table:orders"]}', 403),
        (b'{"topics": ["user:alice"]}', 201),
    ],
)
async def test_what_is_asked_of_tickets(world: World, body: bytes, status: int) -> None:
    found, answer = await world.hub.call("POST", "/api/tickets", token("alice"), body)
    assert found == status, answer
    if status != 201:
        assert await world.writer.db.fetchval("SELECT count(*) FROM rowcast.ticket") == 0


async def test_a_ticket_gives_no_more_than_its_token(world: World) -> None:
    session = world.ids["session_id"]
    limited = token("robot", {"sessions": [session], "types": ["message.*"], "rights": ["stream"]})
    text = await ticket(world, f"session:{session}", by=limited)
    async with await world.hub.open(f"/api/sse/{session}?ticket={text}&from=start") as stream:
        seen = await stream.until("caught_up")
        assert {event.type for event in seen} == {"connected", "caught_up"}
        await world.writer.message(session, "x")
        await world.writer.db.execute("UPDATE message SET text = text || 'y' WHERE session_id = $1", UUID(session))
        assert (await stream.next()).type == "message.delta"  # type: ignore[union-attr]
    text = await ticket(world, f"session:{session}", by=limited)
    url = world.hub.url.replace("http", "ws") + f"/api/stream?ticket={text}"
    async with connect(url, compression=None) as socket:
        for frame, code in (
            ({"action": "subscribe", "topic": f"project:{world.ids['project_id']}"}, "forbidden"),
            ({"action": "cancel", "job_id": world.ids["task_id"]}, "forbidden"),
        ):
            await socket.send(json.dumps(frame))
            while (answer := json.loads(await socket.recv()))["type"] != "error":
                pass
            assert answer["data"]["code"] == code


# What a token limits, in what is let in


async def test_only_types_that_are_allowed_are_told(world: World) -> None:
    session = world.ids["session_id"]
    text = token("robot", {"sessions": [session], "types": ["request_update", "ingest.*"]})
    for query, expected in (
        ("", {"request_update", "ingest.job.created"}),
        ("&types=ingest.*", {"ingest.job.created"}),
        ("&types=message.*,agent.*", set()),
    ):
        async with await world.hub.open(f"/api/sse/{session}?from=start{query}", text) as stream:
            assert {event.type for event in await stream.until("caught_up")} - {"connected", "caught_up"} == expected
        _, answer = await world.hub.call("GET", f"/api/poll/{session}?from=start{query}", text)
        assert {event["type"] for event in answer["events"]} == expected
    assert (await world.hub.call("GET", f"/api/sessions/{session}", text))[0] == 403, "the state would tell more"
    assert (await world.hub.call("GET", f"/api/v1/tasks/{world.ids['task_id']}", text))[0] == 403
    for path in (f"/api/sse/{session}?from=snapshot", f"/api/v1/tasks/{world.ids['task_id']}/stream"):
        async with await world.hub.open(path, text) as stream:
            assert stream.status == 403, path


async def test_of_several_topics_all_must_be_allowed(world: World) -> None:
    both = f"topic=session:{world.ids['session_id']}&topic=session:{world.ids['other_session_id']}"
    for who, status in (("alice", 403), ("bob", 403)):
        assert (await world.hub.call("GET", f"/api/poll?{both}", token(who)))[0] == status
    assert (await world.hub.call("GET", f"/api/poll?{both}", token("robot", {"sessions": "*"})))[0] == 200


@pytest.mark.parametrize(
    ("topic", "who", "status"),
    [
        ("user:alice", "alice", 200),
        ("user:alice", "bob", 403),
        ("table:orders", "alice", 403),
        ("request:{request_id}", "alice", 200),
        ("request:{request_id}", "bob", 403),
        ("job:{task_id}", "alice", 200),
        ("job:{task_id}", "bob", 403),
        ("project:{project_id}", "alice", 200),
        ("project:{project_id}", "bob", 403),
    ],
)
async def test_each_kind_of_topic(world: World, topic: str, who: str, status: int) -> None:
    topic = topic.format_map(world.ids)
    assert (await world.hub.call("GET", f"/api/poll?topic={topic}", token(who)))[0] == status
    if topic == "user:alice":
        assert (await world.hub.call("GET", f"/api/poll?topic={topic}", token("alice", {"sessions": ["a"]})))[0] == 403, (
            "it names something else"
        )
    named = {f"{topic.partition(':')[0]}s": topic.partition(":")[2]}
    assert (await world.hub.call("GET", f"/api/poll?topic={topic}", token("robot", named)))[0] == 200
    assert (await world.hub.call("GET", f"/api/poll?topic={topic}", token("root", {"rights": ["admin"]})))[0] == 200


async def test_what_belongs_to_a_named_session_or_project_is_allowed(world: World) -> None:
    for named in ({"sessions": world.ids["session_id"]}, {"projects": world.ids["project_id"]}):
        for topic in ("job:{task_id}", "request:{request_id}"):
            path = "/api/poll?topic=" + topic.format_map(world.ids)
            assert (await world.hub.call("GET", path, token("robot", named)))[0] == 200
            other = "/api/poll?topic=" + topic.replace("{", "{other_").format_map(world.ids)
            assert (await world.hub.call("GET", other, token("robot", named)))[0] == 403


async def test_a_socket_can_only_subscribe_to_what_is_allowed(world: World) -> None:
    url = world.hub.url.replace("http", "ws") + f"/api/stream?topic=session:{world.ids['session_id']}"
    async with connect(url, additional_headers=shown(token("alice")), compression=None) as socket:

        async def ask(**frame: Any) -> Any:
            await socket.send(json.dumps({**frame, "id": "q"}))
            while (answer := json.loads(await socket.recv())).get("data", {}).get("id") != "q":
                pass
            return answer

        refused = await ask(action="subscribe", topic=f"session:{world.ids['other_session_id']}")
        assert (refused["type"], refused["data"]["code"]) == ("error", "forbidden")
        assert (await ask(action="subscribe", topic=f"job:{world.ids['task_id']}", **{"from": "now"}))["type"] == "subscribed"
        refused = await ask(action="cancel", job_id=world.ids["other_task_id"])
        assert (refused["type"], refused["data"]["code"]) == ("error", "forbidden")
        assert (await ask(action="cancel", job_id=world.ids["task_id"]))["type"] == "cancel"
        await world.writer.message(world.ids["other_session_id"], "not for alice")
        await world.writer.message(world.ids["session_id"], "for alice")
        while (event := json.loads(await socket.recv()))["type"] != "agent.message.appended":
            pass
        assert event["message"]["text"] == "for alice"


# Without authentication


async def test_without_authentication_nobody_comes_by_another_name(hub: Hub) -> None:
    """DNS rebinding: a page of evil.example, whose name was made to point here, is of the same origin as we are."""
    for host, status in (
        ("evil.example", 403),
        (f"evil.example:{hub.url.rpartition(':')[2]}", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("", 200),
    ):
        assert (await call("GET", f"{hub.url}/api/poll/x", Host=host))[0] == status, host
    for name in ("X-Forwarded-For", "Forwarded"):
        assert (await call("GET", f"{hub.url}/api/poll/x", **{name: "192.0.2.1"}))[0] == 403, "a proxy may let anybody in"
    for origin, status in ((hub.url, 200), ("https://evil.example", 403), ("null", 403)):
        assert (await call("GET", f"{hub.url}/api/poll/x", Origin=origin))[0] == status
        assert await ws_status(hub.url.replace("http", "ws") + "/api/stream", {"Origin": origin}) == status


async def test_without_authentication_everything_is_open(hub: Hub, writer: Writer) -> None:
    ids = await populate(writer)
    world = World(hub, writer, ids, endpoints(hub))
    found = await each(world, lambda asked: world.status(asked))
    assert found.pop("POST /api/tickets") == 403
    assert found.pop("POST /api/cookie") == 401
    assert {name: status for name, status in found.items() if status not in (200, 202)} == {}


async def test_the_cause_of_trouble_is_for_who_may_see_everything(database: str) -> None:
    nowhere = "postgresql://somebody@127.0.0.1:1/nothing"
    hub = await Hub(nowhere, key=SECRET).start(ready=False)
    try:
        for text, keys in (
            (None, {"status"}),
            (token("alice"), {"status"}),
            ("x", {"status"}),
            (token("r", {"rights": ["admin"]}), {"status", "cause"}),
        ):
            status, answer = await hub.call("GET", "/readyz", text)
            assert (status, set(answer)) == (503, keys)
    finally:
        await hub.stop()


async def test_what_is_wrong_with_the_database_is_told_to_nobody(database: str) -> None:
    hub = await Hub("postgresql://somebody@127.0.0.1:1/nothing", key=SECRET).start(ready=False)
    try:
        for path, text in (
            ("/api/stream?topic=user:a&ticket=x", None),
            ("/api/sessions/a", token("alice")),
            ("/api/poll/a", token("alice")),
        ):
            status, answer = await hub.call("GET", path, text)
            assert (status, answer) == (503, {"error": "the database cannot be used right now", "code": "unavailable"})
    finally:
        await hub.stop()


async def test_public_paths_need_nothing(world: World) -> None:
    for path in PUBLIC:
        assert (await call("GET", world.hub.url + path))[0] == 200
