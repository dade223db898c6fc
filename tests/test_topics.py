"""What can be followed besides a session: projects, jobs, requests, users, tables, and several at once."""

import asyncio
import json
import random
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest
from rowcast.events import Position

from .rig import Hub, Stream, Writer, get, until, until_sql

pytestmark = pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)


async def follow(hub: Hub, path: str, after: str | None = None) -> Stream:
    return await Stream.open(f"{hub.url}/api/stream{path}", after)


async def test_several_topics_come_once_and_in_order(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    one, two = await writer.session(project), await writer.session()
    async with await follow(hub, f"?topic=session:{two}&topic=project:{project}&topic=session:{one}&topic=session:{one}") as stream:
        connected, _ = await stream.expect("connected", "caught_up")
        assert connected.data["topics"] == sorted([f"session:{one}", f"session:{two}", f"project:{project}"])
        await writer.db.execute(
            "INSERT INTO message (session_id, text) SELECT CASE n % 2 WHEN 0 THEN $1::uuid ELSE $2 END, n FROM generate_series(0, 99) n",
            one,
            two,
        )
        seen = await stream.expect(*["agent.message.appended"] * 100)
        assert [int(event.data["message"]["text"]) for event in seen] == list(range(100))
        cursor = seen[39].id
    async with await follow(hub, f"?topic=session:{one}&topic=session:{two}&topic=project:{project}", cursor) as again:
        seen = await again.until("caught_up")
        assert [int(event.data["message"]["text"]) for event in seen[1:-1]] == list(range(40, 100))


async def test_several_topics_catch_up_while_they_are_written(hub: Hub, writer: Writer, database: str) -> None:
    """Each event of any of them once, in order, wherever it is cut."""
    project = await writer.project()
    sessions = [await writer.session(project if n % 3 == 0 else None) for n in range(6)]
    other = await asyncpg.connect(database)

    async def write() -> None:
        for n in range(600):
            await Writer(other).message(sessions[n % 6], str(n))

    writing = asyncio.create_task(write())
    path = f"?topic=project:{project}&from=start&" + "&".join(f"topic=session:{session}" for session in sessions[:5])
    wanted = [n for n in range(600) if n % 6 != 5]
    texts: list[int] = []
    cursor: str | None = None
    while len(texts) < len(wanted):
        async with await follow(hub, path, cursor) as stream:
            for _ in range(random.randrange(1, 60)):
                event = await stream.next()
                assert event is not None
                if event.type == "agent.message.appended":
                    texts.append(int(event.data["message"]["text"]))
                cursor = event.id
                if len(texts) == len(wanted):
                    break
    await writing
    await other.close()
    assert texts == wanted


async def test_a_poll_of_several_topics(hub: Hub, writer: Writer) -> None:
    one, two = await writer.session(), await writer.session()
    await writer.message(one, "1")
    await writer.message(two, "2")
    path = f"{hub.url}/api/poll?topic=session:{one}&topic=session:{two}"
    await until(lambda: hub.rowcast.hub.position >= 2)
    answer = json.loads((await get(path))[2])
    assert [event["data"]["message"]["text"] for event in answer["events"]] == ["1", "2"]
    waiting = asyncio.create_task(get(f"{path}&wait=20&after={answer['cursor']}"))
    await until(lambda: hub.rowcast.feed.clients)
    await writer.message(two, "3")
    answer = json.loads((await waiting)[2])
    assert [event["data"]["message"]["text"] for event in answer["events"]] == ["3"]


async def test_a_request_of_its_own_ends(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    request, other = [await writer.insert("request", session_id=session) for _ in range(2)]
    async with await follow(hub, f"?topic=request:{request}") as stream:
        await writer.update("request", other, status="done")
        await writer.update("request", request, status="in_progress")
        await writer.update("request", request, status="done", response="yes")
        seen = await stream.rest()
        assert [event.data.get("status") for event in seen if event.type == "request_update"] == ["pending", "in_progress", "done"]
        assert seen[-1].type == "end"
        assert stream.ended
    again = await follow(hub, f"?topic=request:{request}", seen[-1].id)
    assert again.status == 204
    begun = next(event for event in seen if event.data.get("status") == "in_progress")
    async with await follow(hub, f"?topic=request:{request}", begun.id) as older:
        assert [event.type for event in await older.rest()] == ["connected", "request_update", "end"]


async def test_a_request_that_goes_ends_too(hub: Hub, writer: Writer) -> None:
    request = await writer.insert("request", session_id=await writer.session())
    async with await follow(hub, f"?topic=request:{request}") as stream:
        await stream.until("request_update")
        await writer.db.execute("DELETE FROM request")
        assert [event.type for event in await stream.rest() if event.type != "caught_up"] == ["request.deleted", "end"]


async def test_all_sessions_of_a_user(hub: Hub, writer: Writer) -> None:
    async with await follow(hub, "?topic=user:ann") as stream:
        await stream.until("caught_up")
        mine = [await writer.insert("session", owner_id="ann") for _ in range(2)]
        theirs = await writer.insert("session", owner_id="bob")
        for session in (mine[0], theirs, mine[1]):
            await writer.insert("message", session_id=session)
        seen = await stream.expect("agent.message.appended", "agent.message.appended")
        assert [event.data["message"]["session_id"] for event in seen] == [str(session) for session in mine]


async def test_any_table(hub: Hub, writer: Writer) -> None:
    await writer.db.execute("CREATE TABLE orders (id int PRIMARY KEY, total numeric, note text)")
    await writer.db.execute("SELECT rowcast.watch('orders', '{total}')")
    async with await follow(hub, "?topic=table:orders") as stream:
        await stream.until("caught_up")
        await writer.db.execute("INSERT INTO orders VALUES (1, 9.50, 'secret'); UPDATE orders SET note = 'x'; UPDATE orders SET total = 10")
        await writer.db.execute("DELETE FROM orders")
        seen = await stream.expect("orders.inserted", "orders.updated", "orders.deleted")
        assert [(event.data["key"], event.data.get("row")) for event in seen] == [
            ({"id": 1}, {"total": 9.50}),
            ({"id": 1}, {"total": 10}),
            ({"id": 1}, None),
        ]
        await writer.db.execute("SELECT rowcast.emit('news.read', '{\"n\": 1}', session_id => 's')")
    async with await follow(hub, "?topic=session:s") as stream:
        (news,) = (await stream.until("news.read"))[-1:]
        assert news.data == {"n": 1}


KINDS = {"ingest": ("ingest", "ingest.job"), "agent": ("agent-runs", "agent.run"), "workflow": ("workflows/runs", "workflow.run")}


@pytest.mark.parametrize("kind", KINDS)
async def test_one_job_of_a_project(hub: Hub, writer: Writer, kind: str) -> None:
    path, family = KINDS[kind]
    project = await writer.project()
    job = await writer.insert("job", kind=kind, session_id=await writer.session(project), status="running")
    other = await writer.insert("job", kind=kind, project_id=project)
    async with await follow(hub, f"/projects/{project}/{path}/{job}") as stream:
        (connected,) = await stream.expect("connected")
        assert (connected.data["project_id"], connected.data["job_id"]) == (str(project), str(job))
        await writer.update("job", other, progress=1.0)
        await writer.insert("job_step", job_id=job, name="look")
        await writer.update("job", job, progress=50.0)
        await writer.update("job", job, status="failed", error="no")
        seen = await stream.rest()
        assert seen[-2].data["errorMessage"] == "no"
        assert [event.type for event in seen if event.type.startswith(family) or event.type == "end"] == [
            f"{family}.created", f"{family}.updated", f"{family}.failed", "end",
        ]  # fmt: skip
    assert (await follow(hub, f"/projects/{project}/{path}/{job}", seen[-1].id)).status == 204
    for wrong in (f"/projects/{uuid4()}/{path}/{job}", *(f"/projects/{project}/{p}/{job}" for p, _ in KINDS.values() if p != path)):
        stream = await follow(hub, wrong)
        assert stream.status == 404
        assert b"has no" in await stream.body()


async def test_a_job_that_comes_later_with_another_project_is_not_told(hub: Hub, writer: Writer) -> None:
    mine, theirs = await writer.project(), await writer.project()
    one, two = uuid4(), uuid4()
    async with await follow(hub, f"/projects/{mine}/ingest/{one}") as right, await follow(hub, f"/projects/{mine}/ingest/{two}") as wrong:
        for stream in (right, wrong):
            await stream.until("caught_up")
        await writer.insert("job", id=two, kind="ingest", project_id=theirs)
        await writer.insert("job", id=one, kind="ingest", project_id=mine)
        await right.expect("ingest.job.created")
        await writer.update("job", one, status="completed")
        await right.expect("ingest.job.completed", "end")
        wrong.close()
        assert "ingest.job" not in str(await wrong.rest())


async def test_the_last_event_is_not_lost(hub: Hub, writer: Writer) -> None:
    """Cut after every frame: a reconnect yields the rest, the end included; after the end it is 204."""
    project = await writer.project()
    job = await writer.insert("job", kind="agent", project_id=project)
    for n in range(5):
        await writer.update("job", job, progress=float(n + 1))
    await writer.update("job", job, status="completed")
    path = f"/projects/{project}/agent-runs/{job}"
    async with await follow(hub, path) as stream:
        whole = await stream.rest()
    assert [event.type for event in whole] == ["connected", "agent.run.created", *["agent.run.updated"] * 5, "agent.run.completed", "end"]
    for cut in range(len(whole) - 2):
        async with await follow(hub, path, whole[cut].id) as stream:
            assert [event.id for event in (await stream.rest())[1:]] == [event.id for event in whole[cut + 1 :]]
    assert (await follow(hub, path, whole[-2].id)).status == 204


async def test_all_of_a_job_comes_whatever_its_session_is_in(hub: Hub, writer: Writer) -> None:
    project, other = await writer.project(), await writer.project()
    for session in (await writer.session(), await writer.session(other)):
        job = await writer.insert("job", kind="agent", project_id=project, session_id=session, status="running")
        await until_sql(writer.db, "SELECT NOT EXISTS (SELECT FROM job WHERE id NOT IN (SELECT job_id::uuid FROM rowcast.event))")
        async with await follow(hub, f"/projects/{project}/agent-runs/{job}") as stream:
            await writer.message(session, "x", job_id=job)
            await stream.until("agent.message.appended")
            await writer.update("job", job, status="completed")
            assert [event.type for event in await stream.rest() if event.type != "caught_up"] == ["agent.run.completed", "end"]


async def test_a_job_that_was_there_before_its_session_had_a_project(hub: Hub, writer: Writer) -> None:
    project, session = await writer.project(), await writer.session()
    job = await writer.insert("job", kind="ingest", session_id=session, status="running")
    await writer.update("session", session, project_id=project)
    async with await follow(hub, f"/projects/{project}/ingest/{job}?from=start") as stream:
        await stream.until("ingest.job.created")


@pytest.mark.parametrize("wrong", ["project", "kind"])
async def test_a_job_that_turns_out_to_be_another_is_refused(hub: Hub, writer: Writer, wrong: str) -> None:
    mine, theirs, job = await writer.project(), await writer.project(), uuid4()
    async with await follow(hub, f"/projects/{mine}/ingest/{job}") as stream:
        await stream.until("caught_up")
        await writer.insert(
            "job",
            id=job,
            kind="agent" if wrong == "kind" else "ingest",
            project_id=theirs if wrong == "project" else mine,
            status="completed",
        )
        (error,) = await stream.rest()
        assert (error.type, error.data["error"]) == ("error", f"project {mine} has no ingest job {job}")


async def test_a_job_that_moves_to_another_project_is_no_longer_told(hub: Hub, writer: Writer) -> None:
    mine, theirs = await writer.project(), await writer.project()
    job = await writer.insert("job", kind="ingest", project_id=mine, status="running")
    async with await follow(hub, f"/projects/{mine}/ingest/{job}") as stream:
        await stream.until("caught_up")
        await writer.db.execute("UPDATE job SET project_id = $2, message = 'secret' WHERE id = $1", job, theirs)
        seen = await stream.rest()
        assert seen[-1].type == "error"
        assert "secret" not in str(seen)


async def test_a_job_that_is_no_longer_what_was_asked_for(hub: Hub, writer: Writer) -> None:
    mine, theirs = await writer.project(), await writer.project()
    session = await writer.session(mine)
    one = await writer.insert("job", kind="ingest", session_id=session, status="running")
    two = await writer.insert("job", kind="ingest", project_id=mine, status="running")
    await until(lambda: hub.rowcast.hub.position >= 2)
    async with await follow(hub, f"/projects/{mine}/ingest/{one}") as moved, await follow(hub, f"/projects/{mine}/ingest/{two}") as changed:
        for stream in (moved, changed):
            await stream.until("caught_up")
        await writer.update("session", session, project_id=theirs)
        await writer.insert("job_step", job_id=one, name="secret")
        await writer.message(session, "secret", job_id=one)
        await writer.update("job", two, kind="agent")
        for stream in (moved, changed):
            seen = await stream.rest()
            assert [event.type for event in seen] == ["error"]
    await writer.update("session", session, project_id=mine)
    await writer.insert("job_step", job_id=one, name="seen")
    async with await follow(hub, f"/projects/{mine}/ingest/{one}?from=start") as stream:
        seen = await stream.until("job_step.updated")
        assert "secret" not in str([event for event in seen if event.type.startswith("job_step")])


async def test_what_waits_for_its_window_is_not_lost_when_it_is_asked_about(hub: Hub, writer: Writer) -> None:
    mine, theirs = await writer.project(), await writer.project()
    session = await writer.session(theirs)
    job = await writer.insert("job", kind="agent", project_id=mine, session_id=session, status="running")
    await until(lambda: hub.rowcast.hub.position >= 1)
    async with await follow(hub, f"/projects/{mine}/agent-runs/{job}?from=now&batch=2000") as stream:
        await stream.until("caught_up")
        await writer.update("job", job, progress=5.0)
        await until(lambda: hub.rowcast.hub.position >= 2)
        await writer.message(session, "x", job_id=job)
        await stream.expect("agent.run.updated", "agent.message.appended")


async def test_who_comes_after_the_end_is_told_so(hub: Hub, writer: Writer) -> None:
    """Also where the end is not the last event, or older than what is asked for."""
    project = await writer.project()
    job = await writer.insert("job", kind="ingest", project_id=project, status="running")
    path = f"/projects/{project}/ingest/{job}"
    async with await follow(hub, path) as stream:
        await stream.until("caught_up")
        async with await follow(hub, f"{path}?from=now") as running:
            await running.until("caught_up")
        await writer.update("job", job, status="completed")
        end = (await stream.rest())[-1]
    await writer.insert("job_step", job_id=job, name="late")
    await until(lambda: hub.rowcast.hub.position >= 3)
    assert (await follow(hub, path, end.id)).status == 204
    await writer.update("job", job, message="late, too")
    await until(lambda: hub.rowcast.hub.position >= 4)
    async with await follow(hub, path, end.id) as again:
        seen = await again.rest()
        assert [event.type for event in seen] == ["connected", "job_step.updated", "ingest.job.updated", "end"]
    assert (await follow(hub, path, seen[-1].id)).status == 204
    for query in ("from=now", "from=snapshot"):
        async with await follow(hub, f"{path}?{query}") as late:
            assert (await late.rest())[-1].type == "end"
    async with await follow(hub, f"?topic=job:{job}&until=never&from=now") as stays:
        await stays.until("caught_up")
    await writer.update("job", job, status="running")  # tried again
    await until(lambda: hub.rowcast.hub.position >= 5)
    async with await follow(hub, path, end.id) as again, await follow(hub, path) as anew:
        for each in (again, anew):
            await each.until("caught_up")
        await writer.update("job", job, status="failed")
        for each in (again, anew):
            assert [event.type for event in await each.rest()] == ["ingest.job.failed", "end"]


async def test_who_was_away_for_too_long_is_told_of_the_end(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", kind="ingest", status="running")
    await until(lambda: hub.rowcast.hub.position >= 1)
    first = str(hub.rowcast.hub.cursor(Position(0)))
    await writer.update("job", job, progress=5.0)
    await until(lambda: hub.rowcast.hub.position >= 2)
    await writer.db.execute("DELETE FROM rowcast.event WHERE position = 1; UPDATE rowcast.pruned SET floor = 1")
    async with await follow(hub, f"?topic=job:{job}&from=snapshot", first) as stream:
        connected, reset, snapshot, _ = await stream.expect("connected", "reset", "snapshot", "caught_up")
        assert (connected.data["reason"], reset.data["reason"]) == ("truncated", "truncated")
        assert snapshot.data["job"]["progress"] == 5
    await writer.update("job", job, status="completed")
    await until(lambda: hub.rowcast.hub.position >= 3)
    async with await follow(hub, f"?topic=job:{job}", first) as stream:
        assert [event.type for event in await stream.rest()] == ["connected", "reset", "end"]


async def test_a_stream_of_one_job_waits_for_the_database() -> None:
    hub = await Hub("postgresql://nobody@127.0.0.1:1/nothing").start(ready=False)
    try:
        async with await follow(hub, f"/projects/p/ingest/{uuid4()}") as stream:
            assert stream.status == 200
            assert await stream.line() is not None
    finally:
        await hub.stop()


async def test_what_others_emit_ends_nothing(hub: Hub, writer: Writer) -> None:
    job = await writer.insert("job", kind="ingest", status="running")
    async with await follow(hub, f"?topic=job:{job}") as stream:
        await writer.db.execute("SELECT rowcast.emit('request_update', '{\"status\": \"done\"}', job_id => $1)", str(job))
        await stream.until("request_update")
        await writer.update("job", job, status="completed")
        assert (await stream.rest())[-1].type == "end"


async def test_a_window_ends_early_where_much_waits(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with await follow(hub, f"?topic=session:{session}&batch=60000&from=now") as stream:
        await stream.until("caught_up")
        for _ in range(3):
            await writer.message(session, "x" * 400_000)
        await stream.expect(*["agent.message.appended"] * 3)


async def test_one_that_batches_and_does_not_read_loses_nothing(database: str, writer: Writer) -> None:
    session = await writer.session()
    async with Hub(database, buffer=16_384) as hub, await follow(hub, f"?topic=session:{session}&batch=30&from=now") as stream:
        await stream.until("caught_up")
        for n in range(0, 1000, 20):
            await writer.db.execute(
                "INSERT INTO message (session_id, text) SELECT $1, n || repeat('x', 20000) FROM generate_series($2::int, $2 + 19) n",
                session,
                n,
            )
        (follower,) = hub.rowcast.feed._clients
        await until(lambda: not hub.rowcast.hub.is_live(follower))  # type: ignore[arg-type]
        seen = await stream.expect(*["agent.message.appended"] * 1000)
        assert [int(event.data["message"]["text"].rstrip("x")) for event in seen] == list(range(1000))


async def test_rows_without_a_key_are_not_merged(hub: Hub, writer: Writer) -> None:
    await writer.db.execute("CREATE TABLE loose (status text); SELECT rowcast.watch('loose', '{status}', name => 'loose')")
    await writer.db.execute("INSERT INTO loose VALUES ('new'), ('new')")
    await until(lambda: hub.rowcast.hub.position >= 2)
    async with await follow(hub, "?topic=table:loose&batch=200&from=now") as stream:
        await stream.until("caught_up")
        await writer.db.execute(
            "UPDATE loose SET status = 'paid' WHERE ctid = (SELECT min(ctid) FROM loose); UPDATE loose SET status = 'gone' WHERE status = 'new'"
        )
        seen = await stream.expect("loose.updated", "loose.updated")
        assert [event.data["row"]["status"] for event in seen] == ["paid", "gone"]


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/api/stream", "topic"),
        ("/api/stream?topic=session", "topic"),
        ("/api/stream?topic=nobody:1", "topic"),
        ("/api/stream?topic=user:" + "x" * 129, "topic"),
        ("/api/stream?topic=table:a%00b", "topic"),
        ("/api/stream?" + "&".join(f"topic=job:{n}" for n in range(101)), "topic"),
        ("/api/poll?topic=", "topic"),
        ("/api/poll/x?from=snapshot", "from"),
        ("/api/stream?topic=project:x&from=snapshot", "from"),
        ("/api/stream?topic=job:x&until=whenever", "until"),
        ("/api/stream?topic=job:x&batch=1.5", "batch"),
        ("/api/stream?topic=job:x&batch=60001", "batch"),
        ("/api/stream?topic=job:x&types=a;b", "types"),
        ("/api/stream/projects/" + "x" * 129, "project_id"),
        ("/api/stream/projects/p/ingest/", "job_id"),
        ("/api/v1/tasks/" + "x" * 200, "task_id"),
    ],
)
async def test_bad_input_is_named(hub: Hub, path: str, parameter: str) -> None:
    status, _, body = await get(hub.url + path)
    answer = json.loads(body)
    assert (status, answer["parameter"]) == (400, parameter)
    assert "\n" not in answer["error"]


async def test_an_id_may_be_odd(hub: Hub, writer: Writer) -> None:
    odd = "a/b ingest/?&=:ü"
    async with (
        await follow(hub, f"?topic={quote(f'project:{odd}', safe='')}") as stream,
        await follow(hub, f"/projects/{quote(odd, safe='')}") as same,
    ):
        for each in (stream, same):
            await each.until("caught_up")
        await writer.db.execute("SELECT rowcast.emit('x.y', '{}', project_id => $1)", odd)
        for each in (stream, same):
            await each.expect("x.y")


def positions(events: list[Any]) -> list[int]:
    return [event.position for event in events]


async def test_batches_are_written_once_a_window(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    job = await writer.insert("job", kind="ingest", session_id=session)
    message = await writer.message(session)
    await until(lambda: hub.rowcast.hub.position >= 2)
    async with await follow(hub, f"?topic=session:{session}&batch=300&from=now") as stream:
        await stream.until("caught_up")
        async with writer.db.transaction():
            for n in range(1, 11):
                await writer.update("message", message, text="x" * n)
                await writer.update("job", job, progress=float(n))
        delta, progress = await stream.expect("message.delta", "ingest.job.updated")
        assert (delta.data["offset"], delta.data["delta"]) == (0, "x" * 10)
        assert progress.data["job"]["progress"] == 10
        assert progress.position == delta.position + 1 == 22
        # Nothing is merged across an end, and the end is there.
        async with writer.db.transaction():
            await writer.update("message", message, text="x" * 11)
            await writer.update("job", job, progress=11.0)
            await writer.update("job", job, status="completed")
            await writer.update("message", message, text="x" * 12)
        seen = await stream.expect("message.delta", "ingest.job.updated", "ingest.job.completed", "message.delta")
        assert [event.data.get("delta") for event in seen] == ["x", None, None, "x"]


async def test_batches_lose_nothing_wherever_they_are_cut(hub: Hub, writer: Writer, database: str) -> None:
    session = await writer.session()
    message = await writer.message(session)
    other = await asyncpg.connect(database)
    whole = "".join(random.choice("aä🎯") for _ in range(300))

    async def write() -> None:
        for n in range(1, 301):
            await Writer(other).update("message", message, text=whole[:n])

    writing = asyncio.create_task(write())
    text, cursor = "", None
    while len(text) < 300:
        async with await follow(hub, f"?topic=session:{session}&batch=20", cursor) as stream:
            for _ in range(random.randrange(1, 8)):
                event = await stream.next()
                assert event is not None
                if event.type == "message.delta":
                    assert event.data["offset"] <= len(text)
                    text = text[: event.data["offset"]] + event.data["delta"]
                cursor = event.id
                if len(text) == 300:
                    break
    await writing
    await other.close()
    assert text == whole
