"""One job as a task, and the state of a session."""

import asyncio
import json
import random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from websockets.asyncio.client import connect

from .rig import Hub, Stream, Writer, get, on_database, until, until_sql


async def task(hub: Hub, id: object, after: str | None = None) -> Stream:
    return await Stream.open(f"{hub.url}/api/v1/tasks/{id}/stream", after)


async def post(url: str) -> tuple[int, Any]:
    host, path = url.removeprefix("http://").split("/", 1)
    reader, writer = await asyncio.open_connection(*host.split(":"))
    writer.write(f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)
async def test_a_task_from_its_state_to_its_end(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", name="report", status="running", progress=10.0)
    async with await task(hub, job) as stream:
        (first,) = await stream.expect("progress")
        state = {"id": str(job), "status": "processing", "progress": 10, "message": None, "result": None, "error": None}
        assert first.data == state
        await writer.update("job", job, progress=60.0, message="reading")
        await writer.insert("job_step", job_id=job)
        await writer.update("job", job, status="completed", progress=100.0, result='{"pages": 3}')
        progress, completed = await stream.expect("progress", "completed")
        assert progress.data == {**state, "progress": 60, "message": "reading"}
        assert completed.data == {"id": str(job), "name": "report", "status": "completed", "progress": 100, "result": {"pages": 3}}
        assert await stream.next() is None
        assert stream.ended
    assert (await task(hub, job, completed.id)).status == 204
    async with await task(hub, job, progress.id) as again:
        assert [event.type for event in await again.rest()] == ["completed"]
    async with await task(hub, job) as late:  # it has finished long ago
        assert [event.type for event in await late.rest()] == ["completed"]
    assert (await task(hub, job, late.last_id)).status == 204


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_other_ends(hub: Hub, writer: Writer, status: str) -> None:
    job = await writer.insert("job", kind="agent", status="running")
    async with await task(hub, job) as stream:
        await stream.expect("progress")
        await writer.update("job", job, status=status, error="why")
        event = (await stream.until(status))[-1]
        assert event.data == {"id": str(job), "status": status, "progress": 0, "message": None, "result": None, "error": "why"}
        assert await stream.next() is None


async def test_other_events_of_the_job_do_not_disturb(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", kind="agent", status="running")
    async with await task(hub, job) as stream:
        await stream.expect("progress")
        for type in ("task.thought", "agent.run.updated", "news"):
            await writer.db.execute("SELECT rowcast.emit($2, '{\"status\": 1}', job_id => $1)", str(job), type)
        await writer.update("job", job, status="completed")
        assert {event.type for event in (await stream.rest())[:-1]} <= {"progress"}


async def test_no_such_task(hub: Hub, writer: Writer) -> None:
    for id in (uuid4(), "nonsense"):
        async with await task(hub, id) as stream:
            (error,) = await stream.rest()
            assert (error.type, error.data) == ("error", {"error": "Task not found"})
            assert error.id
            assert (await task(hub, id, error.id)).status == 204
        assert (await get(f"{hub.url}/api/v1/tasks/{id}"))[0] == 404
        assert (await post(f"{hub.url}/api/v1/tasks/{id}/cancel"))[0] == 404


async def test_a_task_that_is_deleted(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", status="running")
    async with await task(hub, job) as stream:
        await stream.expect("progress")
        await writer.db.execute("DELETE FROM job")
        *before, last = await stream.rest()
        assert (last.type, last.data) == ("error", {"error": "Task not found"})
        assert {event.type for event in before} <= {"progress"}


async def test_a_database_error_is_tried_again_before_it_is_told(hub: Hub, writer: Writer, database: str) -> None:
    job = await writer.insert("job", status="running")
    await on_database(
        database, "ALTER FUNCTION rowcast.job_state(text) RENAME TO away", "ALTER FUNCTION rowcast.away(text) OWNER TO CURRENT_USER"
    )
    refusing = "CREATE FUNCTION rowcast.job_state(id text) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('tries'); RAISE 'away'; END $$"
    await on_database(database, "CREATE SEQUENCE tries", refusing)
    async with await task(hub, job) as stream:
        (error,) = await stream.rest()
        assert (error.type, error.data, error.id) == (
            "error",
            {"error": "the database cannot be used right now", "code": "unavailable"},
            None,
        )
    assert await writer.db.fetchval("SELECT last_value FROM tries") == 4
    opening = asyncio.create_task(task(hub, job))
    await until_sql(writer.db, "SELECT last_value > 4 FROM tries")
    await on_database(database, "DROP FUNCTION rowcast.job_state(text); ALTER FUNCTION rowcast.away(text) RENAME TO job_state")
    async with await opening as stream:
        await stream.expect("progress")


async def test_a_state_that_is_nested_too_deep_is_one_line(hub: Hub, database: str) -> None:
    """Ours is not."""
    for function in ("job_state(id text)", "session_state(id text, most integer)"):
        body = "SELECT ('{\"job\": ' || repeat('[', 2000) || repeat(']', 2000) || '}')::jsonb"
        await on_database(database, f"CREATE OR REPLACE FUNCTION rowcast.{function} RETURNS jsonb LANGUAGE sql AS $${body}$$")
    says = {"error": "the state is nested too deep to be read", "code": "unavailable"}
    for path in ("/api/v1/tasks/x", "/api/sessions/x"):
        status, _, answer = await get(hub.url + path)
        assert (status, json.loads(answer)) == (503, says)
    async with await task(hub, "x") as stream:
        assert [(event.type, event.data) for event in await stream.rest()] == [("error", says)]


async def test_cancel_asks_and_the_pipeline_decides(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    job = await writer.insert("job", kind="agent", status="running", session_id=session)
    async with await hub.follow(session) as stream:
        await stream.until("caught_up")
        assert await post(f"{hub.url}/api/v1/tasks/{job}/cancel") == (202, {"id": str(job), "cancel_requested": True})
        (event,) = await stream.expect("agent.run.updated")
        assert event.data["run"]["cancel_requested_at"]
        assert event.data["run"]["status"] == "running"
        assert (await post(f"{hub.url}/api/v1/tasks/{job}/cancel"))[0] == 202  # once more changes nothing
        await writer.update("job", job, status="cancelled")
        await stream.expect("agent.run.cancelled")
    assert await post(f"{hub.url}/api/v1/tasks/{job}/cancel") == (409, {"id": str(job), "cancel_requested": False})


async def test_cancels_of_a_row_that_is_held_give_up_and_hinder_no_read(hub: Hub, writer: Writer, database: str) -> None:
    job = await writer.insert("job", status="running")
    cancel = f"{hub.url}/api/v1/tasks/{job}/cancel"
    most = 0
    async with connect(f"ws{hub.url[4:]}/api/stream?topic=job:{job}", compression=None) as socket:
        holder = await asyncpg.connect(database)
        async with holder.transaction():
            await holder.execute("SELECT FROM job FOR UPDATE")
            cancels = [asyncio.create_task(post(cancel)) for _ in range(6)]
            while not all(task.done() for task in cancels):
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                most = max(most, await writer.db.fetchval(waiting))
                assert (await get(f"{hub.url}/api/v1/tasks/{job}"))[0] == 200
            assert most == 1
            for task in cancels:
                status, answer = await task
                assert status == 503
                assert answer["error"].endswith(": try again")
            await socket.send(json.dumps({"action": "cancel", "job_id": str(job)}))
            while (frame := json.loads(await asyncio.wait_for(socket.recv(), 20)))["type"] != "error":
                pass
            assert frame["data"] == {
                "error": "another transaction holds the row of this task: try again",
                "code": "unavailable",
                "id": None,
            }
        await holder.close()
    assert (await post(cancel))[0] == 202


async def test_cancel_over_websocket(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    job = await writer.insert("job", kind="agent", status="running", project_id=project)
    async with connect(f"ws{hub.url[4:]}/api/stream/projects/{project}/agent-runs/{job}", compression=None) as socket:
        await socket.send('{"action":"cancel","id":1}')
        seen = []
        while len(seen) < 2:
            frame = json.loads(await asyncio.wait_for(socket.recv(), 20))
            if frame["type"] in ("cancel", "agent.run.updated", "error"):
                seen.append(frame)
        assert {frame["type"] for frame in seen} == {"cancel", "agent.run.updated"}
        await socket.send(json.dumps({"action": "cancel", "job_id": str(uuid4())}))
        while (frame := json.loads(await asyncio.wait_for(socket.recv(), 20)))["type"] != "error":
            pass
        assert frame["data"]["code"] == "not_found"


async def test_the_state_of_a_task(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", name="n", status="processing", kind="ingest")
    status, _, body = await get(f"{hub.url}/api/v1/tasks/{job}")
    answer = json.loads(body)
    assert status == 200
    assert (answer["id"], answer["name"], answer["status"], answer["kind"]) == (str(job), "n", "processing", "ingest")


async def test_without_reference_tables_it_says_so(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rowcast import schema

    monkeypatch.setenv("ROWCAST_REFERENCE_TABLES", "off")
    await schema.migrate(empty_database, "head")
    async with Hub(empty_database) as hub:
        for path in ("/api/v1/tasks/x", "/api/v1/tasks/x/stream", "/api/sessions/x"):
            status, _, body = await get(hub.url + path)
            assert status == 404
            assert "reference tables" in json.loads(body)["error"]
        async with await hub.follow("x", from_="snapshot") as stream:
            (error,) = await stream.rest()
            assert "reference tables" in error.data["error"]


# The state of a session


class Page:
    """What a browser keeps: the state, and events applied to it."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.jobs: dict[str, Any] = {}
        self.steps: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}

    def begin(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.requests = {request["request_id"]: request for request in state["requests"]}
        for job in state["jobs"]:
            self.steps.update((step["id"], step) for step in job.pop("steps"))
            self.jobs[job["id"]] = job
        self.messages = {message["id"]: message for message in state["messages"]}

    def apply(self, type: str, data: dict[str, Any]) -> None:
        if type == "request_update":
            self.requests[data["request_id"]] = data
        elif type == "request.deleted":
            self.requests.pop(data["request_id"], None)
        elif type == "message.deleted":
            self.messages.pop(data["message"]["id"], None)
        elif type == "job.deleted":
            self.jobs.pop(data["job"]["id"], None)
        elif type == "message.delta":
            if data["message_id"] in self.messages:
                self._grow(self.messages[data["message_id"]], data)
        elif "message" in data and isinstance(data["message"], dict):
            message = self.messages.setdefault(data["message"]["id"], {"text": ""})
            message.update(data["message"])
            if "delta" in data:
                self._grow(message, data)
        elif job := data.get("job") or data.get("run"):
            self.jobs[job["id"]] = job
            if job["status"] in ("completed", "failed", "cancelled"):
                del self.jobs[job["id"]]
        elif step := data.get("step") or data.get("nodeState"):
            self.steps[step["id"]] = step

    @staticmethod
    def _grow(message: dict[str, Any], data: dict[str, Any]) -> None:
        message["text"] = message["text"][: data["offset"]] + data["delta"]

    @property
    def picture(self) -> dict[str, Any]:
        """Without the time of a change that made no event or carried none, and steps of jobs that are not shown."""
        steps = {id: step for id, step in self.steps.items() if step["job_id"] in self.jobs}
        kinds = {"requests": self.requests, "jobs": self.jobs, "steps": steps, "messages": self.messages}
        return {kind: {id: {k: v for k, v in row.items() if k != "updated_at"} for id, row in rows.items()} for kind, rows in kinds.items()}


async def change(writer: Writer, session: str, random: random.Random) -> None:
    db = writer.db
    pick = "(SELECT id FROM {} WHERE session_id = $1 ORDER BY random() LIMIT 1)"
    statements = [
        "INSERT INTO message (session_id, text) VALUES ($1, 'ä🎯')",
        f"UPDATE message SET text = text || 'mehr🎯' WHERE id = {pick.format('message')}",
        f"UPDATE message SET text = text || 'x', metadata = metadata || '{{\"n\": 1}}' WHERE id = {pick.format('message')}",
        f"UPDATE message SET text = 'new' WHERE id = {pick.format('message')}",
        f"UPDATE message SET status = 'completed', text = text || '!' WHERE id = {pick.format('message')}",
        f"DELETE FROM message WHERE id = {pick.format('message')}",
        "INSERT INTO request (session_id) VALUES ($1)",
        f"UPDATE request SET status = 'done', response = 'r' WHERE id = {pick.format('request')}",
        "INSERT INTO job (session_id, kind, status) VALUES ($1, 'agent', 'running')",
        f"UPDATE job SET progress = (progress + 7)::int % 100 WHERE id = {pick.format('job')}",
        f"UPDATE job SET status = 'completed' WHERE id = {pick.format('job')}",
        f"INSERT INTO job_step (job_id, name) SELECT id, 's' FROM job WHERE id = {pick.format('job')}",
        f"DELETE FROM job WHERE id = {pick.format('job')}",
    ]
    await db.execute(random.choice(statements), session)


async def test_state_and_then_the_stream_is_as_having_followed_from_the_start(
    hub: Hub, writer: Writer, database: str, request: pytest.FixtureRequest
) -> None:
    """For cuts at every moment while the session is written."""
    seed = request.config.getoption("--seed") or random.randrange(10**6)
    print(f"--seed {seed}")
    dice = random.Random(seed)
    session = await writer.session()
    from_start, late = Page(), []
    other = await asyncpg.connect(database)
    async with await hub.follow(session, from_="start") as stream:
        for n in range(250):
            await change(writer, session, dice)
            if n % 5 == 0:
                late.append(await hub.follow(session, from_="snapshot"))
        await writer.insert("message", session_id=session, role="last")

        async def catch_up(client: Stream, page: Page) -> Page:
            while (event := await client.next()) is not None:
                if event.type == "snapshot":
                    assert str(event.data["cursor"]) == event.id
                    page.begin(event.data)
                page.apply(event.type, event.data)
                if any(message.get("role") == "last" for message in page.messages.values()):
                    break
            return page

        await catch_up(stream, from_start)
        pages = [await catch_up(client, Page()) for client in late]
    await other.close()
    for page in pages:
        assert page.picture == from_start.picture
    status, headers, body = await get(f"{hub.url}/api/sessions/{session}")
    state = json.loads(body)
    assert (status, headers["cache-control"]) == (200, "no-store")
    page = Page()
    page.begin(state)
    assert page.picture == from_start.picture
    assert state["session"]["id"] == session


async def test_a_snapshot_comes_with_the_first_connect_only(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    await writer.message(session, "a")
    async with await hub.follow(session, from_="snapshot") as stream:
        connected, snapshot, _ = await stream.expect("connected", "snapshot", "caught_up")
        assert connected.id is None  # cut here, it begins with the state again
        assert [message["text"] for message in snapshot.data["messages"]] == ["a"]
    async with await hub.follow(session, snapshot.id, from_="snapshot") as again:
        assert (await again.until("caught_up"))[0].data["resumed"] is True
    async with await hub.follow(session, "00000000-7", from_="snapshot") as foreign:
        _, reset, snapshot, _ = await foreign.expect("connected", "reset", "snapshot", "caught_up")
        assert (reset.data["reason"], snapshot.data["messages"][0]["text"]) == ("epoch", "a")


async def test_a_session_that_is_not_there(hub: Hub) -> None:
    for id in (uuid4(), "nonsense"):
        assert (await get(f"{hub.url}/api/sessions/{id}"))[0] == 404
        async with await hub.follow(str(id), from_="snapshot") as stream:
            _, snapshot, _ = await stream.expect("connected", "snapshot", "caught_up")
            assert (snapshot.data["session"], snapshot.data["messages"]) == (None, [])


async def test_a_snapshot_of_a_job(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    job = await writer.insert("job", kind="workflow", project_id=project)
    await writer.insert("job_step", job_id=job, name="one")
    await until(lambda: hub.rowcast.hub.position >= 2)
    async with await Stream.open(f"{hub.url}/api/stream/projects/{project}/workflows/runs/{job}?from=snapshot") as stream:
        _, snapshot, _ = await stream.expect("connected", "snapshot", "caught_up")
        assert (snapshot.data["job"]["id"], [step["name"] for step in snapshot.data["steps"]]) == (str(job), ["one"])
