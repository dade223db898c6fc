"""session_state(), job_state() and cancel(): what is there now, and the position that it is true at."""

import asyncio
import json
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from .rig import Writer, on_database
from .test_sequence import drain

NOBODY = "00000000-0000-4000-8000-000000000000"


async def session_state(db: asyncpg.Connection, id: str | None, most: int = 500) -> Any:
    return json.loads(await db.fetchval("SELECT rowcast.session_state($1, $2)", id, most))


async def job_state(db: asyncpg.Connection, id: object) -> Any:
    return json.loads(await db.fetchval("SELECT rowcast.job_state($1)", str(id)))


async def told(db: asyncpg.Connection) -> list[tuple[str, Any]]:
    """What the log has."""
    await drain(db)
    return [(row[0], json.loads(row[1])) for row in await db.fetch("SELECT type, payload FROM rowcast.event ORDER BY position")]


@pytest.fixture
def epoch(runner: asyncio.Runner, db: asyncpg.Connection) -> str:
    return str(runner.run(db.fetchval("SELECT rowcast.adopt()")))


async def test_rows_look_as_in_events(writer: Writer, epoch: str) -> None:
    await writer.db.execute("SET timezone = 'Asia/Kathmandu'")
    project = await writer.project()
    session = await writer.session(project)
    await writer.db.execute("UPDATE session SET owner_id = 'ann'")
    jobs = [
        await writer.insert("job", session_id=session, kind=kind, name="n", error="e", result='{"a": 1}') for kind in ("ingest", "agent")
    ]
    for n in range(2):
        await writer.insert("job_step", job_id=jobs[1], name=f"step {n}", state='{"tokens": 3}')
        await writer.message(session, f"text {n}", job_id=jobs[0], metadata='{"model": "large"}')
        await writer.insert("request", session_id=session, response="r")
    events = await told(writer.db)
    state = await session_state(writer.db, session)
    assert state["requests"] == [payload for type, payload in events if type == "request_update"]
    assert state["messages"] == [payload["message"] for type, payload in events if type == "agent.message.appended"]
    steps = [payload["step"] for type, payload in events if type == "agent.step.updated"]
    nouns = [payload.get("job") or payload["run"] for type, payload in events if type.endswith(".created")]
    assert state["jobs"] == [{**nouns[0], "steps": []}, {**nouns[1], "steps": steps}]
    assert (len(state["requests"]), len(state["messages"]), len(steps)) == (2, 2, 2)
    assert (state["epoch"], state["position"], state["more"]) == (epoch, len(events), False)
    row = await writer.db.fetchrow("SELECT * FROM session")
    assert {name: state["session"][name] for name in ("id", "project_id", "owner_id")} == {
        "id": session,
        "project_id": str(project),
        "owner_id": "ann",
    }
    assert datetime.fromisoformat(state["session"]["created_at"]) == row["created_at"]
    assert state["session"]["created_at"].endswith("+00:00")
    assert state["session"].keys() == dict(row).keys()
    one = await job_state(writer.db, jobs[1])
    assert one == {"epoch": epoch, "position": len(events), "job": {**nouns[1], "project_id": str(project)}, "steps": steps, "more": False}


async def test_changed_rows_look_as_in_events_too(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    job = await writer.insert("job", session_id=session, kind="workflow", project_id=await writer.project())
    step, message = await writer.insert("job_step", job_id=job), await writer.message(session)
    request = await writer.insert("request", session_id=session)
    await drain(writer.db)
    await writer.db.execute("DELETE FROM rowcast.event")
    await writer.update("job", job, status="running", progress=33.5, stage="reading")
    await writer.update("job_step", step, status="failed", error="oh")
    await writer.update("message", message, text="other", role="user", status="completed")
    await writer.update("request", request, status="error", error="oh")
    events = [payload for _, payload in await told(writer.db)]
    state = await session_state(writer.db, session)
    assert state["jobs"] == [{**events[0]["run"], "steps": [events[1]["nodeState"]]}]
    assert state["messages"] == [{**events[2]["message"], "text": "other"}]
    assert state["requests"] == [events[3]]


async def test_only_jobs_that_go_on_and_only_what_is_of_the_session(writer: Writer, epoch: str) -> None:
    session, other = await writer.session(), await writer.session()
    for status in ("pending", "running", "processing", "completed", "failed", "cancelled"):
        await writer.insert("job", session_id=session, status=status)
    elsewhere = await writer.insert("job", session_id=other)
    await writer.insert("job_step", job_id=elsewhere)
    await writer.insert("request", session_id=other)
    await writer.message(other)
    state = await session_state(writer.db, session)
    assert [job["status"] for job in state["jobs"]] == ["pending", "running", "processing"]
    assert (state["requests"], state["messages"]) == ([], [])


async def test_an_ended_job_can_still_be_asked_for(writer: Writer, epoch: str) -> None:
    job = await writer.insert("job", status="completed", result='{"pages": 10}')
    state = await job_state(writer.db, job)
    assert (state["job"]["status"], state["job"]["result"], state["steps"]) == ("completed", {"pages": 10}, [])


async def test_the_newest_rows_oldest_first_and_whether_there_are_more(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    for n in range(4):
        job = await writer.insert("job", session_id=session, name=str(n))
        for step in range(2):
            await writer.insert("job_step", job_id=job, name=f"{n}.{step}")
        await writer.message(session, str(n))
        await writer.insert("request", session_id=session, status="done" if n % 2 else "pending")
    for most, more in ((0, True), (1, True), (3, True), (4, True), (8, False)):
        state = await session_state(writer.db, session, most)
        assert [job["name"] for job in state["jobs"]] == ["0", "1", "2", "3"][max(4 - most, 0) :]
        assert [message["text"] for message in state["messages"]] == ["0", "1", "2", "3"][max(4 - most, 0) :]
        assert [r["sequence_number"] for r in state["requests"]] == [1, 2, 3, 4][max(4 - most, 0) :]
        assert state["more"] is more
        steps = [step["name"] for job in state["jobs"] for step in job["steps"]]
        assert steps == [f"{n}.{step}" for n in range(4) for step in range(2)][8 - min(2 * len(state["jobs"]), most) :]


@pytest.mark.parametrize("table", ["request", "job", "job_step", "message"])
async def test_any_list_that_was_cut_says_so(writer: Writer, epoch: str, table: str) -> None:
    session = await writer.session()
    job = await writer.insert("job", session_id=session)
    for _ in range(3):
        await writer.insert(table, **({"job_id": job} if table == "job_step" else {"session_id": session}))
    n = 4 if table == "job" else 3
    assert (await session_state(writer.db, session, n))["more"] is False
    assert (await session_state(writer.db, session, n - 1))["more"] is True


async def test_steps_of_one_job_are_bounded(writer: Writer, epoch: str) -> None:
    job = await writer.insert("job", name="a")
    await writer.db.execute("INSERT INTO job_step (job_id) SELECT $1 FROM generate_series(1, 501)", job)
    state = await job_state(writer.db, job)
    assert [step["sequence_number"] for step in state["steps"]] == list(range(2, 502))
    assert state["more"]


async def test_large_texts_are_null_and_the_whole_has_a_bound(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    for n in range(6):
        await writer.message(session, str(n) * 3_000_000)
    await writer.db.execute("INSERT INTO message (session_id, text) VALUES ($1, repeat('x', 300000000))", UUID(session))
    job = await writer.db.fetchval("INSERT INTO job (session_id, error) VALUES ($1, repeat('x', 20000000)) RETURNING id", UUID(session))
    state = await session_state(writer.db, session)
    assert [message["text"] and message["text"][0] for message in state["messages"]] == ["3", "4", "5", None]
    assert state["more"]
    assert state["jobs"][0]["error"] is None
    assert (await job_state(writer.db, job))["job"]["error"] is None


async def test_what_is_nested_too_deep_is_null(writer: Writer, epoch: str) -> None:
    """In events too: a reader may not get past it."""
    session = await writer.session()
    for depth in (200, 201, 1100):
        nested = "[" * depth + "]" * depth
        job = await writer.insert("job", session_id=session, kind="agent", result=nested)
        await writer.insert("job_step", job_id=job, state=nested)
        message = await writer.message(session, metadata=f'{{"a": {nested[1:-1]}}}')
        await writer.update("message", message, status="failed", metadata=f'{{"error": {nested}}}')
    kept = json.loads("[" * 200 + "]" * 200)
    state = await session_state(writer.db, session)
    assert [job["result"] for job in state["jobs"]] == [kept, None, None]
    assert [job["steps"][0]["state"] for job in state["jobs"]] == [kept, None, None]
    assert [message["metadata"] for message in state["messages"]] == [None] * 3
    assert (await job_state(writer.db, job))["job"]["result"] is None
    events = await told(writer.db)
    assert [payload["run"]["result"] for type, payload in events if type == "agent.run.created"] == [kept, None, None]
    assert [payload["step"]["state"] for type, payload in events if type == "agent.step.updated"] == [kept, None, None]
    created = [payload["message"]["metadata"] for type, payload in events if type == "agent.message.appended"]
    assert created == [{"a": kept[0]}, None, None]
    failed = [payload for type, payload in events if type == "message.failed"]
    assert [payload["message"]["metadata"] for payload in failed] == [None] * 3
    assert [payload["errorMessage"] for payload in failed] == [kept, None, None]


async def test_steps_and_jobs_have_the_bound_too(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    jobs = [await writer.insert("job", session_id=session, error="x" * 3_000_000) for _ in range(4)]
    for _ in range(4):
        await writer.insert("job_step", job_id=jobs[-1], error="x" * 3_000_000)
    state = await session_state(writer.db, session)
    assert [job["id"] for job in state["jobs"]] == [str(job) for job in jobs[1:]]
    assert [len(job["steps"]) for job in state["jobs"]] == [0, 0, 3]
    one = await job_state(writer.db, jobs[-1])
    assert (len(one["steps"]), one["more"], state["more"]) == (3, True, True)


ODD = ["", "x", "%", "'; DROP TABLE session", NOBODY, NOBODY.replace("-", ""), f"{{{NOBODY}}}", NOBODY + "\n", "x" * 100_000]


@pytest.mark.parametrize("id", ODD, ids=range(len(ODD)))
async def test_an_id_of_nothing_is_no_error(writer: Writer, epoch: str, id: str) -> None:
    empty = {"epoch": epoch, "position": 0, "more": False}
    assert await session_state(writer.db, id) == {**empty, "session": None, "requests": [], "jobs": [], "messages": []}
    assert await job_state(writer.db, id) == {**empty, "job": None, "steps": []}
    assert await writer.db.fetchval("SELECT rowcast.cancel($1)", id) is None


async def test_an_id_is_spelt_as_in_its_topic(writer: Writer, epoch: str) -> None:
    """Another spelling of the uuid would be a stream that stays silent."""
    session = await writer.session()
    assert (await session_state(writer.db, session))["session"]["id"] == session
    assert (await session_state(writer.db, "A" + session[1:].upper()))["session"] is None
    assert (await session_state(writer.db, None))["session"] is None


async def test_state_holds_all_that_the_log_holds_up_to_its_position(writer: Writer, epoch: str, database: str) -> None:
    """And is of one moment: what one transaction wrote is there whole or not at all."""
    session = await writer.session()
    done = asyncio.Event()

    async def write() -> None:
        db = await asyncpg.connect(database)
        for _ in range(150):
            async with db.transaction():
                await Writer(db).message(session)
                await Writer(db).insert("request", session_id=session)
        await db.close()
        done.set()

    async def sequence() -> None:
        db = await asyncpg.connect(database)
        while not done.is_set():
            await drain(db)
        await db.close()

    tasks = [asyncio.create_task(write()), asyncio.create_task(sequence())]
    while not done.is_set():
        state = await session_state(writer.db, session)
        assert len(state["messages"]) == len(state["requests"])
        ids = {message["id"] for message in state["messages"]} | {request["request_id"] for request in state["requests"]}
        logged = await writer.db.fetch(
            "SELECT coalesce(payload #>> '{message,id}', payload ->> 'request_id') FROM rowcast.event WHERE position <= $1",
            state["position"],
        )
        assert {row[0] for row in logged} <= ids
    await asyncio.gather(*tasks)


async def test_cancel_asks_once(writer: Writer, epoch: str) -> None:
    job, ended = await writer.insert("job", name="a"), await writer.insert("job", status="completed")
    await writer.outbox()
    cancel = "SELECT rowcast.cancel($1)"
    assert await writer.db.fetchval(cancel, str(job)) is True
    asked = await writer.db.fetchval("SELECT cancel_requested_at FROM job WHERE id = $1", job)
    assert asked is not None
    assert await writer.db.fetchval(cancel, str(job)) is True
    assert await writer.db.fetchval("SELECT cancel_requested_at FROM job WHERE id = $1", job) == asked
    assert await writer.db.fetchval(cancel, str(ended)) is False
    assert await writer.db.fetchval("SELECT cancel_requested_at FROM job WHERE id = $1", ended) is None
    assert await writer.db.fetchval(cancel, NOBODY) is None
    assert [row["type"] for row in await writer.outbox()] == ["task.progress"]
    await writer.update("job", job, status="cancelled")
    assert await writer.db.fetchval(cancel, str(job)) is False


async def test_cancel_waits_for_a_row_for_a_second(writer: Writer, epoch: str, database: str) -> None:
    job = await writer.insert("job", name="a")
    holder = await asyncpg.connect(database)
    async with holder.transaction():
        await holder.execute("SELECT FROM job FOR UPDATE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await writer.db.fetchval("SELECT rowcast.cancel($1)", str(job), timeout=10)
    await holder.close()
    assert await writer.db.fetchval("SHOW lock_timeout") == "0"
    assert await writer.db.fetchval("SELECT rowcast.cancel($1)", str(job)) is True


async def test_the_hub_may_ask_and_nobody_else(writer: Writer, epoch: str, database: str) -> None:
    """Also where row security is on: its owner has policies, and no rights but these."""
    session = await writer.session()
    job = await writer.insert("job", session_id=session)
    await writer.insert("job_step", job_id=job)
    await writer.message(session)
    await writer.insert("request", session_id=session)
    for table in ("session", "job", "job_step", "message", "request"):
        await writer.db.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    role = "rowcast_test_hub"
    await writer.db.execute(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    calls = ("rowcast.session_state($1, 500)", "rowcast.job_state($1)", "rowcast.cancel($1)")
    try:
        await writer.db.execute(f"SET ROLE {role}")
        for call in calls:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await writer.db.fetchval(f"SELECT {call}", str(job))
        await writer.db.execute(f"RESET ROLE; GRANT rowcast_hub TO {role}; SET ROLE {role}; SET row_security = off")
        state = await session_state(writer.db, session)
        assert [len(state[name]) for name in ("requests", "jobs", "messages")] == [1, 1, 1]
        assert len((await job_state(writer.db, job))["steps"]) == 1
        assert await writer.db.fetchval("SELECT rowcast.cancel($1)", str(job)) is True
        await writer.db.execute("RESET ROLE; SET ROLE rowcast_owner")
        for forbidden in (
            "UPDATE job SET status = 'failed'",
            "DELETE FROM message",
            "UPDATE message SET text = ''",
            "SELECT name FROM project",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await writer.db.execute(forbidden)
        await writer.db.execute("RESET ROLE")
    finally:
        await on_database(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_state_follows_a_rename(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    await writer.message(session, "a")
    await writer.db.execute("ALTER TABLE message RENAME COLUMN text TO body; ALTER TABLE message ADD COLUMN private text")
    (message,) = (await session_state(writer.db, session))["messages"]
    assert message["text"] == "a"
    assert "private" not in message


async def test_a_session_among_many_is_found_by_its_keys(writer: Writer, epoch: str) -> None:
    session = await writer.session()
    await writer.db.execute(
        """INSERT INTO session (id) SELECT gen_random_uuid() FROM generate_series(1, 2000);
           INSERT INTO message (session_id) SELECT id FROM session; INSERT INTO request (session_id) SELECT id FROM session;
           INSERT INTO job (session_id) SELECT id FROM session; INSERT INTO job_step (job_id) SELECT id FROM job"""
    )
    async with writer.db.transaction():
        scanned = """SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables
                      WHERE relid = ANY ('{session,message,request,job,job_step}'::regclass[])"""
        before = await writer.db.fetchval(scanned)
        state = await session_state(writer.db, session)
        assert await writer.db.fetchval(scanned) - before < 50
    assert [len(state[name]) for name in ("requests", "jobs", "messages")] == [1, 1, 1]
