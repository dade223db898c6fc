"""How long a grant holds: streams and polls end with it, on every process, in the order of the log."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from rowcast import schema
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from .rig import SECRET, Hub, Stream, token, until
from .test_access import World, keyed, shown, until_sequenced, world

__all__ = ["keyed", "world"]


LOSSES: dict[str, tuple[str, str, str]] = {
    "revoked": ("/api/sse/{session_id}", "SELECT rowcast.revoke('alice')", "unauthorized"),
    "revoked by token": ("/api/sse/{session_id}", "SELECT rowcast.revoke(token => 'j')", "unauthorized"),
    "session revoked": ("/api/sse/{session_id}", "SELECT rowcast.revoke(session_id => '{session_id}')", "unauthorized"),
    "given to bob": (
        "/api/sse/{session_id}",
        "UPDATE session SET owner_id = 'bob', project_id = NULL WHERE id = '{session_id}'",
        "forbidden",
    ),
    "owned by nobody": (
        "/api/sse/{session_id}",
        "UPDATE session SET owner_id = NULL, project_id = NULL WHERE id = '{session_id}'",
        "forbidden",
    ),
    "session deleted": ("/api/sse/{session_id}", "DELETE FROM session WHERE id = '{session_id}'", "forbidden"),
    "no longer a member": ("/api/stream/projects/{project_id}", "DELETE FROM project_member WHERE user_id = 'alice'", "forbidden"),
    "membership changed": (
        "/api/stream/projects/{project_id}",
        "UPDATE project_member SET user_id = 'carol' WHERE user_id = 'alice'",
        "forbidden",
    ),
    "project deleted": ("/api/stream/projects/{project_id}", "DELETE FROM project WHERE id = '{project_id}'", "forbidden"),
    "a job's session given to bob": (
        "/api/stream?topic=job:{task_id}",
        "UPDATE job SET project_id = NULL WHERE id = '{task_id}'; UPDATE session SET owner_id = 'bob', project_id = NULL WHERE id = '{session_id}'",
        "forbidden",
    ),
    "a job moved to bob's session": (
        "/api/stream?topic=job:{task_id}",
        "UPDATE job SET session_id = '{other_session_id}', project_id = NULL WHERE id = '{task_id}'",
        "forbidden",
    ),
    "a request moved": (
        "/api/stream?topic=request:{request_id}",
        "UPDATE request SET session_id = '{other_session_id}' WHERE id = '{request_id}'",
        "forbidden",
    ),
    "a task's session given to bob": (
        "/api/v1/tasks/{task_id}/stream",
        "UPDATE job SET project_id = NULL WHERE id = '{task_id}'; UPDATE session SET owner_id = 'bob', project_id = NULL WHERE id = '{session_id}'",
        "forbidden",
    ),
}


@pytest.mark.parametrize("how", LOSSES)
async def test_a_stream_ends_when_access_is_lost(world: World, how: str) -> None:
    """Within a second, on another process too, and nothing of later is told: what is written in the same transaction
    after the loss is not."""
    path, statement, code = LOSSES[how]
    async with Hub(world.hub.settings.database_url, key=SECRET) as other:
        text = token("alice", jti="j", iat=time.time() - 60)
        streams = [await hub.open(path.format_map(world.ids), text) for hub in (world.hub, other)]
        for stream in streams:
            assert stream.status == 200
            await stream.until("progress" if "tasks" in path else "caught_up")
        db = world.writer.db
        async with db.transaction():
            await db.execute(statement.format_map(world.ids))
            for table, column in (("message", "session_id"), ("request", "session_id"), ("job", "session_id")):
                await db.execute(f"UPDATE {table} SET {'metadata' if table == 'message' else 'status' if table == 'request' else 'message'} = $1 WHERE {column} = ANY ($2)", *(
                    ('{"after": "the loss"}' if table == "message" else "done" if table == "request" else "after the loss"),
                    [UUID(world.ids[name]) for name in ("session_id", "other_session_id")],
                ))  # fmt: skip
        began = time.monotonic()
        for stream in streams:
            seen = await stream.rest()
            assert stream.ended
            assert seen[-1].type == "error"
            assert seen[-1].data["code"] == code
            assert "after the loss" not in json.dumps([event.data for event in seen[:-1]])
            assert not any(event.type == "request_update" for event in seen)
        assert time.monotonic() - began < 1
    again = await world.hub.open(path.format_map(world.ids), text)
    assert again.status == (401 if code == "unauthorized" else 403)


@pytest.mark.parametrize(
    "path",
    [
        "/api/poll/{session_id}?from=start",
        "/api/poll/{session_id}?from=start&wait=1",
        "/api/sessions/{session_id}",
        "/api/v1/tasks/{task_id}",
        "/api/v1/tasks/{task_id}/stream",
        "/api/sse/{session_id}?from=snapshot",
    ],
)
async def test_what_is_read_after_a_loss_is_not_told(world: World, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access is lost between the answer that let the client in and the read of what it asked for."""
    rowcast, db = world.hub.rowcast, world.writer.db

    holding = await asyncpg.connect(world.hub.settings.database_url)

    async def lose() -> None:
        monkeypatch.undo()
        if "poll" not in path:  # nobody hears of it, and yet the state is of later
            await holding.execute("SELECT pg_advisory_lock(7499639, 3)")
        await db.execute("UPDATE job SET project_id = NULL, message = 'a secret of later'")
        await db.execute("UPDATE session SET owner_id = 'bob', project_id = NULL")
        await world.writer.message(world.ids["session_id"], "a secret of later")
        if "poll" in path:
            await until_sequenced(world)

    def after_the_loss(call: Any) -> Any:
        async def called(*arguments: Any) -> Any:
            await lose()
            return await call(*arguments)

        return called

    monkeypatch.setattr(rowcast.feed, "locate", after_the_loss(rowcast.feed.locate)) if "poll" in path else monkeypatch.setattr(
        rowcast.state, "of", after_the_loss(rowcast.state.of)
    )
    async with await world.hub.open(path.format_map(world.ids), token("alice")) as stream:
        async with asyncio.timeout(10):
            body = await stream.body()
    await holding.close()
    assert b"a secret" not in body
    assert b"forbidden" in body
    assert stream.status == (200 if "sse" in path else 403)


async def test_a_session_that_is_revoked_closes_whatever_is_of_it(world: World) -> None:
    """Also to who is let in for another reason, or before it was there."""
    db, ids = world.writer.db, world.ids
    of_project = f"/api/stream/projects/{ids['project_id']}/ingest/{ids['ingest']}"
    later = UUID("00000000-0000-4000-8000-0000000000f1")
    everything = token("root", {"rights": ["admin"]}, iat=time.time() - 60)
    named = token("robot", {"jobs": "*"}, iat=time.time() - 60)
    await db.execute("INSERT INTO project_member (project_id, user_id) VALUES ($1, 'carol')", UUID(ids["project_id"]))
    cases = [(of_project, token("carol", iat=time.time() - 60)), (f"/api/stream?topic=job:{later}", named)]
    cases += [
        (f"/api/stream?topic={kind}:{ids[key]}", everything)
        for kind, key in (("session", "session_id"), ("job", "agent"), ("request", "request_id"))
    ]
    streams = [await world.hub.open(path, text) for path, text in cases]
    for stream in streams:
        await stream.until("caught_up")
    await db.execute("INSERT INTO job (id, session_id) VALUES ($1, $2)", later, UUID(ids["session_id"]))
    await streams[1].until("task.created")
    await db.execute("SELECT rowcast.revoke(session_id => $1)", ids["session_id"])
    for (path, text), stream in zip(cases, streams, strict=True):
        assert (await stream.rest())[-1].data["code"] == "unauthorized", path
        assert (await world.hub.open(path, text)).status == 401, path


async def test_a_user_who_is_revoked_ends_their_own_streams_alone(world: World) -> None:
    async with await world.hub.open("/api/stream?topic=user:bob", token("root", {"rights": ["admin"]}, iat=time.time() - 60)) as stream:
        await stream.until("caught_up")
        await world.writer.db.execute("SELECT rowcast.revoke('bob')")
        await world.writer.message(world.ids["other_session_id"], "of bob's")
        await stream.until("agent.message.appended")


async def test_what_waits_for_its_window_is_told_before_the_loss(world: World) -> None:
    session = world.ids["session_id"]
    async with await world.hub.open(f"/api/sse/{session}?from=now&batch=60000", token("alice")) as stream:
        await stream.until("caught_up")
        await world.writer.message(session, "before")
        await until_sequenced(world)
        await world.writer.db.execute("UPDATE session SET owner_id = 'bob', project_id = NULL WHERE id = $1", UUID(session))
        await world.writer.message(session, "after")
        assert [event.type for event in await stream.rest()] == ["agent.message.appended", "error"]


async def test_who_does_not_read_is_ended_too(world: World, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.follower.GRACE", 0.2)
    session = world.ids["session_id"]
    async with Hub(database, key=SECRET, buffer=4096) as hub:
        stream = await Stream.open(hub.url + f"/api/sse/{session}?from=start", limit=1024, **shown(token("alice")))
        message = await world.writer.message(session)
        for _ in range(30):
            await world.writer.db.execute("UPDATE message SET text = text || repeat('x', 500000) WHERE id = $1", message)
        await until(lambda: any(client.sink.full for client in hub.rowcast.feed._clients))  # type: ignore[attr-defined]
        await world.writer.db.execute("SELECT rowcast.revoke('alice')")
        await until(lambda: not hub.rowcast.feed.clients, patience=5)
        stream.abort()


async def test_who_keeps_access_misses_nothing_when_it_is_asked_again(world: World) -> None:
    """A member of the project goes on when the owner changes: exactly once, and in order."""
    session, db = world.ids["session_id"], world.writer.db
    await db.execute("INSERT INTO project_member (project_id, user_id) VALUES ($1, 'carol')", UUID(world.ids["project_id"]))
    async with await world.hub.open(f"/api/sse/{session}?from=now", token("carol")) as stream:
        await stream.until("caught_up")
        message = await world.writer.message(session)
        for n in range(40):
            await db.execute("UPDATE message SET text = text || $2 WHERE id = $1", message, f"{n},")
            if n % 4 == 0:
                await db.execute("UPDATE session SET owner_id = $2 WHERE id = $1", UUID(session), f"owner {n}")
        await world.writer.update("message", message, status="completed")
        seen = await stream.until("message.completed")
    assert "".join(event.data["delta"] for event in seen if event.type == "message.delta") == "".join(f"{n}," for n in range(40))


async def test_recheck_ends_what_a_function_of_the_users_no_longer_allows(
    world: World, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKED.clear()
    allowed = {"alice"}
    monkeypatch.setattr("tests.test_access_life.ALLOWED", allowed)
    async with Hub(database, key=SECRET, authorize="tests.test_access_life:may") as hub:
        session = world.ids["other_session_id"]  # bob's: ownership does not count here
        async with await hub.open(f"/api/sse/{session}", token("alice")) as stream:
            await stream.until("caught_up")
            assert ("alice", "stream", f"session:{session}") in CHECKED
            assert (await hub.call("POST", f"/api/v1/tasks/{world.ids['other_task_id']}/cancel", token("alice")))[0] == 202
            assert ("alice", "cancel", f"job:{world.ids['other_task_id']}") in CHECKED
            allowed.clear()
            await world.writer.db.execute("SELECT rowcast.recheck('alice')")
            assert (await stream.rest())[-1].data["code"] == "forbidden"
        for who, status in (("alice", 403), ("raises", 503), ("answers with a text", 403)):
            assert (await hub.call("GET", f"/api/poll/{session}", token(who)))[0] == status
        assert (await hub.call("GET", f"/api/poll/{session}", token("root", {"rights": ["admin"]})))[0] == 403, "it decides alone"
        allowed.add("powerless")
        assert (await hub.call("GET", f"/api/poll/{session}", token("powerless", {"rights": []})))[0] == 200


CHECKED: set[tuple[str, str, str]] = set()
ALLOWED: set[str] = set()


async def may(grant: Any, right: str, topic: Any) -> Any:
    CHECKED.add((grant.subject, right, str(topic)))
    if grant.subject == "raises":
        raise RuntimeError("no")
    return "yes" if grant.subject.startswith("answers") else grant.subject in ALLOWED


async def test_a_stream_is_told_before_its_token_ends_and_ends_with_it(world: World, database: str) -> None:
    session = world.ids["session_id"]
    async with Hub(database, key=SECRET, expiring=1) as hub:
        ends = time.time() + 2.2
        text = token("alice", exp=ends)
        async with (
            await hub.open(f"/api/sse/{session}?from=now", text) as stream,
            connect(hub.url.replace("http", "ws") + "/api/stream", additional_headers=shown(text), compression=None) as socket,
        ):
            await stream.until("caught_up")
            (warned,) = await stream.expect("expiring")
            assert warned.data == {"expires_at": pytest.approx(ends)}
            assert warned.id == stream.last_id, "it moves no cursor"
            assert 0.5 < ends - time.time() <= 1.1
            (end,) = await stream.rest()
            assert abs(time.time() - ends) < 0.7
            assert (end.type, end.data["code"]) == ("error", "unauthorized")
            frames = []
            with suppress(ConnectionClosed):
                while True:
                    frames.append(json.loads(await socket.recv()))
            assert [frame["type"] for frame in frames if frame["type"] != "keepalive"] == ["connected", "caught_up", "expiring", "error"]
            assert socket.close_code == 3000
        again = await hub.open(f"/api/sse/{session}", token("alice"), stream.last_id)
        assert (await again.next()).data["resumed"] is True  # type: ignore[union-attr]


async def test_a_token_that_ends_soon_is_told_so_at_once(world: World) -> None:
    async with await world.hub.open(f"/api/sse/{world.ids['session_id']}?from=now", token("alice", lives=30)) as stream:
        await stream.expect("connected", "expiring", "caught_up")


async def test_within_the_leeway_a_token_is_taken_once_more_and_then_ends(world: World, database: str) -> None:
    async with Hub(database, key=SECRET, leeway=2) as hub:
        ended = time.time() - 0.5
        async with await hub.open(f"/api/sse/{world.ids['session_id']}", token("alice", exp=ended)) as stream:
            assert stream.status == 200
            assert (await stream.rest())[-1].data["code"] == "unauthorized"
            assert abs(time.time() - ended - 2) < 0.7


async def test_a_poll_that_waits_is_ended_too(world: World) -> None:
    path = f"/api/poll/{world.ids['session_id']}?from=now&wait=20"
    for text, act, status in (
        (token("alice", iat=time.time() - 60), "UPDATE session SET owner_id = 'bob', project_id = NULL WHERE id = '{session_id}'", 403),
        (token("bob", iat=time.time() - 60), "SELECT rowcast.revoke('bob')", 401),
        (token("robot", {"sessions": "*"}, lives=1), "SELECT 1", 401),
    ):
        waiting = asyncio.create_task(world.hub.call("GET", path, text))
        await until(lambda: world.hub.rowcast.feed.clients)
        await world.writer.db.execute(act.format_map(world.ids))
        began = time.monotonic()
        found, _ = await waiting
        assert found == status
        assert time.monotonic() - began < 7  # the leeway, for the last
        await until(lambda: not world.hub.rowcast.feed.clients)
    assert not world.hub.rowcast.hub.grounds._resting


async def test_nothing_is_left_of_who_is_gone(world: World) -> None:
    session = world.ids["session_id"]
    streams = [await world.hub.open(f"/api/sse/{session}", token("alice")) for _ in range(20)]
    for stream in streams:
        await stream.until("caught_up")
    assert world.hub.rowcast.hub.grounds._resting
    for stream in streams:
        stream.abort()
    await until(lambda: not world.hub.rowcast.feed.clients)
    grounds, limits = world.hub.rowcast.hub.grounds, world.hub.rowcast.limits
    assert not grounds._resting
    assert not grounds._heard
    assert not limits._counts
    assert not limits._held


async def test_a_reset_of_the_log_asks_everybody_again(world: World) -> None:
    """What told of the loss may be gone with what was pruned."""
    async with await world.hub.open(f"/api/sse/{world.ids['session_id']}", token("alice")) as stream:
        await stream.until("caught_up")
        # As if its event had not been seen.
        await world.writer.db.execute("ALTER TABLE session DISABLE TRIGGER rowcast_access_update")
        await world.writer.db.execute("UPDATE session SET owner_id = NULL, project_id = NULL")
        world.hub.rowcast.hub.skip(world.hub.rowcast.hub.position)
        assert [event.type for event in await stream.rest()] == ["reset", "error"]


async def test_access_is_asked_for_while_the_database_is_away(world: World, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream waits, and is told nothing before it has been let in."""
    authority = world.hub.rowcast.authority
    assert authority
    ask = authority._belongings

    async def away(*_: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(authority, "_belongings", away)
    session = world.ids["session_id"]
    async with (
        await world.hub.open(f"/api/sse/{session}?from=start", token("alice")) as mine,
        await world.hub.open(f"/api/sse/{session}?from=start", token("bob")) as foreign,
    ):
        assert (mine.status, foreign.status) == (200, 200)
        await world.writer.message(session, "meanwhile")
        await until(lambda: mine.comments or world.hub.rowcast.feed.clients == 2)
        assert (await world.hub.call("GET", f"/api/poll/{session}", token("alice")))[0] == 503
        monkeypatch.setattr(authority, "_belongings", ask)
        assert (await mine.until("caught_up"))[0].type == "connected"
        assert [(event.type, event.data["code"]) for event in await foreign.rest()] == [("error", "forbidden")]


async def test_without_reference_tables_only_claims_open(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWCAST_REFERENCE_TABLES", "off")
    await schema.migrate(empty_database, "head")
    async with Hub(empty_database, key=SECRET) as hub:
        assert (await hub.call("GET", "/api/poll/x", token("alice")))[0] == 403
        assert (await hub.call("GET", "/api/poll/x", token("alice", {"sessions": ["x"]})))[0] == 200
        db = await asyncpg.connect(empty_database)
        async with await hub.open("/api/sse/x", token("alice", {"sessions": ["x"]}, iat=time.time() - 60)) as stream:
            await stream.until("caught_up")
            await db.execute("SELECT rowcast.revoke('alice')")
            assert (await stream.rest())[-1].data["code"] == "unauthorized"
        await db.close()
