"""clients/python: jobs, their steps, and requests."""

import asyncio
import math
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from rowcast_writer import JobCancelled, Lost, WriterError

from .pipelines import Broken, Wire, at_the_end_of, row, writing
from .rig import Hub, Writer, call, until, until_sql

NEVER = {"interval": 60.0, "lease": 600.0}


async def test_a_job_from_its_start_to_its_end(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    async with writing(database) as rows, rows.job("ingest", session_id=session, name="report.pdf") as job:
        (made,) = await stream.expect("ingest.job.created")
        assert (made.data["job"]["status"], made.data["job"]["name"]) == ("running", "report.pdf")
        await job.stage("reading")
        (told,) = await stream.expect("ingest.job.updated")
        assert told.data["job"]["stage"] == "reading"
        async with job.step("read", {"page": 0}) as step:
            (told,) = await stream.expect("job_step.updated")
            assert (told.data["step"]["name"], told.data["step"]["status"], told.data["step"]["state"]) == (
                "read",
                "running",
                {"page": 0},
            )
            await step.state({"page": 7})
            (told,) = await stream.expect("job_step.updated")
            assert told.data["step"]["state"] == {"page": 7}
        (told,) = await stream.expect("job_step.updated")
        assert told.data["step"]["status"] == "completed"
        await job.progress(50, "half of it")
        (told,) = await stream.expect("ingest.job.updated")
        assert (told.data["job"]["progress"], told.data["job"]["message"]) == (50, "half of it")
        await job.result({"pages": 7})
    (end,) = (await stream.until("ingest.job.completed"))[-1:]
    assert (end.data["job"]["progress"], end.data["job"]["result"]) == (100, {"pages": 7})
    stored = await row(db, "job", job.id)
    assert (stored["status"], stored["lease_expires_at"]) == ("completed", None)


@pytest.mark.parametrize(
    ("error", "status", "step_status"),
    [
        (Broken("secret"), "failed", "failed"),
        (JobCancelled(), "cancelled", "cancelled"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
    ],
)
async def test_an_exception_ends_the_job_and_its_steps(
    database: str, db: asyncpg.Connection, error: BaseException, status: str, step_status: str
) -> None:
    async with writing(database, user_text="Please try again later.", **NEVER) as rows:
        with pytest.raises(type(error)):
            async with rows.job("workflow") as job, job.step("outer"):
                open_step = await job.step("never ended").start()
                async with job.step("inner") as step:
                    raise error
        assert not rows._flusher.rows
    stored = await row(db, "job", job.id)
    assert (stored["status"], stored["error"]) == (status, "Please try again later." if status == "failed" else None)
    assert (await row(db, "job_step", step.id))["status"] == step_status
    assert await db.fetchval("SELECT array_agg(DISTINCT status) FROM job_step WHERE job_id = $1", job.id) == [step_status]
    with pytest.raises((WriterError, JobCancelled)):
        await open_step.complete()


async def test_who_asks_for_the_end_of_a_job_is_heard(database: str, db: asyncpg.Connection, writer: Writer, hub: Hub) -> None:
    async with writing(database) as rows:
        with pytest.raises(JobCancelled, match="was asked for"):
            async with rows.job("task", session_id=await writer.session()) as job:
                job.raise_if_cancelled()
                assert not job.cancelled.is_set()
                status, _, _ = await call("POST", f"{hub.url}/api/v1/tasks/{job.id}/cancel")
                assert status == 202
                version = await db.fetchval("SELECT xmin::text FROM job WHERE id = $1", job.id)
                await asyncio.wait_for(job.cancelled.wait(), 10)
                assert await db.fetchval("SELECT xmin::text FROM job WHERE id = $1", job.id) == version, "looking writes nothing"
                job.raise_if_cancelled()
    assert (await row(db, "job", job.id))["status"] == "cancelled"


async def test_a_worker_takes_a_job_that_was_asked_for(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    waiting = await writer.insert("job", kind="ingest", name="asked for", status="pending")
    async with writing(database) as rows, rows.job("ingest", id=waiting) as job:
        assert job.id == waiting
        stored = await row(db, "job", waiting)
        assert (stored["status"], stored["name"]) == ("running", "asked for")
        with pytest.raises(Lost) as lost:
            await rows.job("ingest", id=waiting).start()
        assert lost.value.reason == "taken"
        await job.complete()
        with pytest.raises(Lost) as lost:
            await rows.job("ingest", id=waiting).start()
        assert lost.value.reason == "ended"


async def test_much_progress_is_little_writing(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database, **NEVER) as rows, rows.job("task", session_id=await writer.session()) as job:
        await job.progress(0)
        await until(lambda: not job.is_dirty)
        statements = rows._flusher.statements
        for n in range(1000):
            await job.progress(n / 10, f"{n} of 1,000")
        assert rows._flusher.statements == statements
        await job.fail("no space left")
    stored = await row(db, "job", job.id)
    assert (stored["progress"], stored["message"], stored["status"], stored["error"]) == (
        pytest.approx(99.9),
        "999 of 1,000",
        "failed",
        "no space left",
    )


@pytest.mark.parametrize("value", [math.nan, "7", None])
async def test_progress_is_a_number(database: str, value: Any) -> None:
    async with writing(database) as rows, rows.job("task") as job:
        with pytest.raises(TypeError, match="progress is a number from 0 to 100"):
            await job.progress(value)
        for given, kept in ((-5, 0), (500, 100), (33, 33)):
            await job.progress(given)
            assert job._fields["progress"] == kept


async def test_a_step_that_is_refused_is_told_with_the_end_of_the_job(database: str, db: asyncpg.Connection) -> None:
    await db.execute("ALTER TABLE job_step ADD CONSTRAINT short CHECK (length(name) < 10)")
    async with writing(database) as rows:
        with pytest.raises(WriterError, match="short"):
            async with rows.job("task") as job:
                async with job.step("a name that is too long"):
                    pass
                async with job.step("short"):
                    pass
    assert (await row(db, "job", job.id))["status"] == "completed"
    assert await db.fetchval("SELECT array_agg(name || ' ' || status) FROM job_step") == ["short completed"]


async def test_a_job_ends_after_all_that_its_steps_say(database: str, db: asyncpg.Connection) -> None:
    """A step that somebody holds while the job ends, and lets go of just before the job is written."""
    other = await asyncpg.connect(database)
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        wire = Wire(pool)
        async with at_the_end_of(wire, lease=600) as rows:
            job = await rows.job("task").start()
            step = await job.step("read").start()
            await until(lambda: not step.is_dirty)
            async with other.transaction():
                await other.execute("SELECT FROM job_step WHERE id = $1 FOR UPDATE", step.id)
                wire.paused = "job_write"
                await step.complete({"pages": 7})
                end = asyncio.create_task(job.complete())
                await until(lambda: step.trouble)
                await asyncio.sleep(0.05)
            wire.resumed.set()
            await end
    await other.close()
    assert (await row(db, "job", job.id))["status"] == "completed"
    assert (await row(db, "job_step", step.id))["state"] == {"pages": 7}


async def test_a_request_that_is_answered(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    session = await writer.session()
    asked = await writer.insert("request", session_id=session, request="Why?")
    async with writing(database) as rows:
        async with rows.request(id=asked) as request:
            assert (await row(db, "request", asked))["status"] == "in_progress"
            await request.done("Because.")
        async with rows.request(session, text="And how?") as second:
            pass
        with pytest.raises(Broken):
            async with rows.request(session) as third:
                raise Broken
        with pytest.raises(Lost) as lost:
            await rows.request(id=uuid4()).start()
        assert lost.value.reason == "gone"
        with pytest.raises(ValueError, match="session_id"):
            rows.request()
    stored = await row(db, "request", asked)
    assert (stored["status"], stored["response"], stored["lease_expires_at"]) == ("done", "Because.", None)
    assert ((await row(db, "request", second.id))["status"], (await row(db, "request", second.id))["request"]) == ("done", "And how?")
    stored = await row(db, "request", third.id)
    assert (stored["status"], stored["error"]) == ("error", "Something went wrong. Please try again.")


async def test_a_job_that_was_lost_says_so(database: str, db: asyncpg.Connection, writer: Writer) -> None:
    async with writing(database) as rows:
        with pytest.raises(Lost, match="its lease ran out"):
            async with rows.job("task", session_id=await writer.session()) as job:
                step = await job.step("read").start()
                await until_sql(db, "SELECT count(*) = 1 FROM job_step")
                await db.execute("UPDATE job SET lease_expires_at = now() - interval '1 s'")
                assert await db.fetchval("SELECT rowcast.reap()") == 1
                while True:
                    await job.progress(50)
                    await asyncio.sleep(0.01)
    stored = await row(db, "job", job.id)
    assert (stored["status"], stored["progress"]) == ("failed", 0)
    assert (await row(db, "job_step", step.id))["status"] == "failed"


async def test_handles_are_to_be_started(database: str) -> None:
    async with writing(database) as rows:
        job = rows.job("task")
        with pytest.raises(WriterError, match="is not started"):
            await job.stage("reading")
        with pytest.raises(WriterError, match="is not started"):
            await job.step("read").start()
        with pytest.raises(WriterError, match="is not started"):
            await job.complete()
        assert isinstance((await job.start()).id, UUID)
        await job.complete()
