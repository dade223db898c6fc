"""Rows under a lease: what the functions to write with answer, what they change, who may use them, and the reaper's SQL."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from rowcast import schema

from .rig import Writer, on_database, until_sql
from .test_state import told

F, G = UUID("00000000-0000-4000-8000-0000000000f1"), UUID("00000000-0000-4000-8000-0000000000f2")
SOON, LATER, PAST = "10 seconds", "30 seconds", "-1 second"
TABLES = ("message", "job", "job_step", "request")


def text(value: object) -> Any:
    return (
        str(value) if isinstance(value, UUID) else {name: text(each) for name, each in value.items()} if isinstance(value, dict) else value
    )


async def write(db: asyncpg.Connection, what: str, *writes: dict[str, Any], **options: Any) -> list[str]:
    """The outcomes of a batch."""
    given = "".join(f", {name} => {value!r}" for name, value in options.items())
    return [row["outcome"] for row in await answers(db, what, *writes, given=given)]


async def answers(db: asyncpg.Connection, what: str, *writes: dict[str, Any], given: str = "") -> list[asyncpg.Record]:
    rows = await db.fetch(f"SELECT * FROM rowcast.{what}_write($1{given})", json.dumps([text(each) for each in writes]))
    assert [str(row["id"]) for row in rows] == [str(each["id"]) for each in writes]
    return list(rows)


async def row(db: asyncpg.Connection, table: str, id: UUID) -> dict[str, Any]:
    found = await db.fetchrow(f"SELECT *, ctid::text, xmin::text FROM {table} WHERE id = $1", id)
    assert found is not None
    return dict(found)


async def lease_left(db: asyncpg.Connection, table: str, id: UUID) -> float:
    """In seconds."""
    left = await db.fetchval(f"SELECT extract(epoch FROM lease_expires_at - clock_timestamp()) FROM {table} WHERE id = $1", id)
    return float(left)


async def leased(writer: Writer, table: str = "message", lease: str = LATER, fence: UUID | None = F, **columns: Any) -> UUID:
    """A row of a session of its own, under a lease that has so long left, or ran out."""
    if table == "job":
        columns = {"kind": "task", **columns}
    elif "session_id" not in columns:
        columns["session_id"] = await writer.session()
    id = await writer.insert(table, **columns)
    await writer.db.execute(
        f"UPDATE {table} SET fence = $2, lease_expires_at = clock_timestamp() + $3::text::interval WHERE id = $1", id, fence, lease
    )
    await writer.db.execute("DELETE FROM rowcast.outbox")
    return id


@pytest.fixture
def other(runner: asyncio.Runner, database: str) -> Iterator[asyncpg.Connection]:
    """Somebody else, who holds rows."""
    connection = runner.run(asyncpg.connect(database))
    yield connection
    runner.run(connection.close(timeout=5))


async def hold(other: asyncpg.Connection, table: str, id: UUID) -> asyncpg.transaction.Transaction:
    transaction = other.transaction()
    await transaction.start()
    await other.execute(f"SELECT FROM {table} WHERE id = $1 FOR UPDATE", id)
    return transaction


# What is of no event


@pytest.mark.parametrize("table", ["message", "job", "request"])
async def test_a_lease_is_of_no_event(writer: Writer, table: str) -> None:
    id = await leased(writer, table)
    await writer.update(table, id, fence=G)
    await writer.db.execute(f"UPDATE {table} SET lease_expires_at = now()")
    if table != "request":
        await writer.update(table, id, revision=7)
    assert await writer.outbox() == []


# message_write


async def test_what_is_asked_of_a_message_is_done_and_told_once(writer: Writer) -> None:
    id = await leased(writer, text="Hello")
    assert await write(writer.db, "message", {"id": id, "fence": F, "delta": ", world", "revision": 3}) == ["written"]
    found = await row(writer.db, "message", id)
    assert (found["text"], found["status"], found["fence"], found["revision"]) == ("Hello, world", "streaming", F, 3)
    assert await write(writer.db, "message", {"id": id, "fence": F, "delta": "!", "status": "completed", "metadata": {"n": 1}}) == [
        "written"
    ]
    found = await row(writer.db, "message", id)
    assert (found["text"], found["status"], found["metadata"]) == ("Hello, world!", "completed", '{"n": 1}')
    assert (found["fence"], found["revision"], found["lease_expires_at"]) == (F, 3, None)
    assert [event["type"] for event in await writer.outbox()] == ["message.delta", "message.completed"]


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ("abc", {"delta": "d"}, "abcd"),
        ("abc", {"delta": ""}, "abc"),
        ("abc", {"offset": 3, "delta": "d"}, "abcd"),
        ("abc", {"offset": 1, "delta": "bcd"}, "abcd"),
        ("abc", {"offset": 1, "delta": "x"}, "ax"),
        ("abc", {"offset": 1}, "a"),
        ("abc", {"offset": 0, "delta": "new"}, "new"),
        ("abc", {"offset": 0}, ""),
        ("日本👍", {"offset": 3, "delta": "é"}, "日本👍é"),
        ("日本👍", {"offset": 2, "delta": "語"}, "日本語"),
        ("abc", {"offset": 4, "delta": "d"}, None),
        ("abc", {"offset": 99_999_999_999, "delta": "d"}, None),
        ("", {"offset": 0, "delta": "\t\n\u0001\u2028"}, "\t\n\u0001\u2028"),
    ],
)
async def test_text_is_cut_to_the_offset_and_goes_on_with_the_delta(
    writer: Writer, before: str, asked: dict[str, Any], after: str | None
) -> None:
    id = await leased(writer, text=before)
    expected = ["cut" if after is None else "written"]
    assert await write(writer.db, "message", {"id": id, **asked}) == expected
    assert (await row(writer.db, "message", id))["text"] == (before if after is None else after)
    if "offset" in asked:  # once more is harmless
        assert await write(writer.db, "message", {"id": id, **asked}) == expected
        assert (await row(writer.db, "message", id))["text"] == (before if after is None else after)


async def test_metadata_is_merged_and_what_is_none_replaced(writer: Writer) -> None:
    id, odd = await leased(writer, metadata='{"a": 1, "b": 2}'), await leased(writer, metadata="[1]")
    given = {"b": None, "c": {"d": 3}}
    assert await write(writer.db, "message", {"id": id, "metadata": given}, {"id": odd, "metadata": given}) == ["written"] * 2
    assert json.loads((await row(writer.db, "message", id))["metadata"]) == {"a": 1, **given}
    assert json.loads((await row(writer.db, "message", odd))["metadata"]) == given


async def test_each_outcome_and_which_comes_first(writer: Writer, other: asyncpg.Connection) -> None:
    ids = {name: await leased(writer, text="abc", revision=5) for name in ("plain", "expired", "taken", "ended", "locked")}
    await writer.update("message", ids["expired"], fence=None, status="failed", lease_expires_at=None)
    await writer.update("message", ids["taken"], fence=G, status="completed")
    await writer.update("message", ids["ended"], status="completed", lease_expires_at=None)
    await hold(other, "message", ids["locked"])
    gone = uuid4()
    before = {name: await row(writer.db, "message", id) for name, id in ids.items()}
    asked = {"fence": F, "offset": 9, "delta": "x", "revision": 4, "status": "failed"}
    for name, given, outcome in (
        ("gone", asked, "gone"),
        ("expired", asked, "expired"),
        ("taken", asked, "taken"),
        ("ended", asked, "ended"),
        ("ended", {"fence": F, "status": "failed"}, "ended"),
        ("ended", {"fence": F, "delta": "x"}, "ended"),
        ("ended", {"fence": F, "metadata": {"a": 1}}, "ended"),
        ("ended", {"fence": F, "status": "streaming"}, "ended"),
        ("ended", {"fence": F, "status": "completed", "offset": 0, "delta": "abc", "revision": 4}, "written"),
        ("ended", {"fence": F, "status": "completed", "offset": 2, "delta": "c", "revision": 6}, "written"),
        ("plain", asked, "overtaken"),
        ("plain", {**asked, "revision": 5}, "cut"),
        ("plain", {"fence": F, "offset": 0, "delta": "abc", "revision": 4}, "written"),
        ("locked", asked, "overtaken"),
        ("locked", {**asked, "revision": 5}, "cut"),
        ("locked", {"fence": F, "offset": 1, "delta": "bc"}, "written"),
        ("locked", {"fence": F, "delta": "x"}, "locked"),
        ("locked", {"delta": "x"}, "locked"),
    ):
        assert await write(writer.db, "message", {"id": ids.get(name, gone), **given}) == [outcome], (name, given)
    assert {name: await row(writer.db, "message", id) for name, id in ids.items()} == before


async def test_without_a_fence_none_is_checked(writer: Writer) -> None:
    none, some, null = await leased(writer, fence=None), await leased(writer), await leased(writer)
    asked = [{"id": none, "delta": "a"}, {"id": some, "delta": "a"}, {"id": null, "delta": "a", "fence": None}]
    assert await write(writer.db, "message", *asked) == ["written"] * 3


async def test_one_that_fails_fails_nobody_else(writer: Writer, other: asyncpg.Connection) -> None:
    """And none that is locked makes the others wait; the answers come in the order of the writes."""
    ids = [await leased(writer) for _ in range(4)]
    await hold(other, "message", ids[1])
    await writer.db.execute("SET lock_timeout = '1ms'")
    asked = [{"id": id, "delta": "x", "fence": F} for id in (ids[3], uuid4(), ids[1], ids[0], ids[2])]
    asked[3]["fence"] = G
    assert await write(writer.db, "message", *asked) == ["written", "gone", "locked", "taken", "written"]
    assert [event["type"] for event in await writer.outbox()] == ["message.delta"] * 2


async def test_only_revisions_that_are_not_below_are_applied(writer: Writer) -> None:
    id = await leased(writer)
    for revision, delta, outcome in (
        (-1, "z", "overtaken"),
        (0, "a", "written"),
        (2, "b", "written"),
        (1, "z", "overtaken"),
        (2, "c", "written"),
    ):
        assert await write(writer.db, "message", {"id": id, "delta": delta, "revision": revision}) == [outcome], revision
    assert await write(writer.db, "message", {"id": id, "delta": "d"}) == ["written"]
    found = await row(writer.db, "message", id)
    assert (found["text"], found["revision"]) == ("abcd", 2)


async def test_a_revision_counts_also_where_nothing_else_changes(writer: Writer) -> None:
    """What is older than it comes too late from then on."""
    id = await leased(writer, text="abc")
    assert await write(writer.db, "message", {"id": id, "offset": 0, "delta": "abc", "revision": 5}) == ["written"]
    assert await write(writer.db, "message", {"id": id, "offset": 0, "delta": "a", "revision": 4}) == ["overtaken"]


async def test_where_nothing_changes_no_version_is_written(writer: Writer) -> None:
    message = await leased(writer, text="abc", metadata='{"a": 1}', revision=2)
    job = await leased(writer, "job", status="running", progress=40, stage="s", result='{"a": 1}', revision=2)
    request = await leased(writer, "request", status="in_progress", response="r")
    step = await writer.insert("job_step", job_id=job, name="n", status="running", state='{"a": 1}')
    before = [
        await row(writer.db, table, id) for table, id in (("message", message), ("job", job), ("request", request), ("job_step", step))
    ]
    same = {"id": message, "fence": F, "offset": 1, "delta": "bc", "status": "streaming", "metadata": {"a": 1}, "revision": 2}
    for asked in ({"id": message}, {"id": message, "delta": ""}, same):
        assert await write(writer.db, "message", asked) == ["written"]
    for asked in (
        {"id": job},
        {"id": job, "fence": F, "status": "running", "progress": 40, "stage": "s", "message": None, "result": {"a": 1}, "revision": 1},
    ):
        assert await write(writer.db, "job", asked) == ["written"]
    for asked in ({"id": request}, {"id": request, "fence": F, "status": "in_progress", "response": "r", "error": None}):
        assert await write(writer.db, "request", asked) == ["written"]
    for asked in (
        {"id": step, "job_id": job},
        {"id": step, "job_id": job, "name": "n", "status": "running", "state": {"a": 1}, "error": None},
    ):
        assert await write(writer.db, "job_step", asked) == ["written"]
    after = [
        await row(writer.db, table, id) for table, id in (("message", message), ("job", job), ("request", request), ("job_step", step))
    ]
    assert after == before


@pytest.mark.parametrize("table", ["message", "job", "request"])
async def test_a_lease_is_renewed_once_a_third_of_it_is_gone(writer: Writer, table: str) -> None:
    fresh, stale = await leased(writer, table, "21 seconds"), await leased(writer, table, "19 seconds")
    past, none = await leased(writer, table, PAST), await leased(writer, table)
    await writer.update(table, none, lease_expires_at=None)
    before = (await row(writer.db, table, fresh))["lease_expires_at"]
    assert (
        await write(writer.db, table, *({"id": id, "fence": F} for id in (fresh, stale, past, none)), lease="30 seconds") == ["written"] * 4
    )
    assert (await row(writer.db, table, fresh))["lease_expires_at"] == before
    for id in (stale, past):
        assert 25 < await lease_left(writer.db, table, id) <= 30
    assert (await row(writer.db, table, none))["lease_expires_at"] is None
    assert await write(writer.db, table, {"id": fresh}, lease="40 seconds") == ["written"]
    assert 35 < await lease_left(writer.db, table, fresh) <= 40
    assert await writer.outbox() == []


async def test_appends_stay_hot(writer: Writer) -> None:
    """The lease's column is indexed: an append that wrote it would have to touch each index of the table."""
    id = await leased(writer)
    hot = "SELECT pg_stat_get_xact_tuples_hot_updated('message'::regclass)"
    async with writer.db.transaction():
        before = await writer.db.fetchval(hot)
        for _ in range(20):
            await write(writer.db, "message", {"id": id, "fence": F, "delta": "x"})
        assert await writer.db.fetchval(hot) - before == 20


@pytest.mark.parametrize("table", ["message", "job", "request", "job_step"])
async def test_not_durable_is_of_that_transaction(writer: Writer, table: str) -> None:
    job = await leased(writer, "job")
    asked = (
        {"id": uuid4(), "job_id": job}
        if table == "job_step"
        else {"id": await leased(writer, table), "status": {"request": "done"}.get(table, "failed")}
    )
    for caller, durable, during in (("on", "true", "on"), ("on", "false", "off"), ("off", "true", "on"), ("local", "true", "local")):
        await writer.db.execute(f"SET synchronous_commit = {caller}")
        async with writer.db.transaction():
            assert await write(writer.db, table, asked, durable=durable) == ["written"]
            assert await writer.db.fetchval("SHOW synchronous_commit") == during
        assert await writer.db.fetchval("SHOW synchronous_commit") == caller


async def test_a_capture_runs_once_for_all(writer: Writer) -> None:
    await writer.db.execute(
        """CREATE TABLE ran (what text);
           CREATE FUNCTION ran() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran VALUES (TG_TABLE_NAME || ' ' || TG_OP); RETURN NULL; END $$"""
    )
    job = await leased(writer, "job")
    ids = {table: [await leased(writer, table) for _ in range(3)] for table in ("message", "job", "request")}
    for id in ids["job"] * 2:
        await writer.insert("job_step", job_id=id)
    for table in TABLES:
        await writer.db.execute(f"CREATE TRIGGER ran AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION ran()")
    end = {"message": "completed", "job": "completed", "request": "done"}
    for table in ids:
        assert await write(writer.db, table, *({"id": id, "status": end[table]} for id in ids[table])) == ["written"] * 3
    ran = [row["what"] for row in await writer.db.fetch("SELECT what FROM ran")]
    assert sorted(ran) == ["job UPDATE", "job_step UPDATE", "message UPDATE", "request UPDATE"]
    await writer.db.execute("DELETE FROM ran")
    assert await write(writer.db, "job_step", *({"id": uuid4(), "job_id": job} for _ in range(3))) == ["written"] * 3
    assert [row["what"] for row in await writer.db.fetch("SELECT what FROM ran WHERE what LIKE '%INSERT'")] == ["job_step INSERT"]


ID = "00000000-0000-4000-8000-0000000000c1"
BAD: list[tuple[str, Any, str]] = [
    ("message", {"id": ID}, "array of objects"),
    ("message", "x", "array of objects"),
    ("message", [1], "object with id"),
    ("message", [{"delta": "x"}], "object with id"),
    ("message", [{"id": None}], "object with id"),
    ("message", [{"id": ID, "status": "done"}], 'status "done" is none of streaming, completed, failed'),
    ("message", [{"id": ID, "status": "pending"}], "none of"),
    ("message", [{"id": ID, "offset": -1}], "below 0"),
    ("message", [{"id": ID, "metadata": [1]}], "metadata is an object"),
    ("message", [{"id": ID}, {"id": ID}], "same id"),
    ("message", [{"id": ID}, {"id": ID.upper()}], "same id"),
    ("job", [{"id": ID, "status": "pending"}], "none of running, processing, completed, failed, cancelled"),
    ("job_step", [{"id": ID, "job_id": ID, "status": "done"}], "none of"),
    ("job_step", [{"id": ID}], "object with id and job_id"),
    ("request", [{"id": ID, "status": "completed"}], "none of in_progress, done, error"),
]


@pytest.mark.parametrize(("what", "writes", "why"), BAD, ids=range(len(BAD)))
async def test_what_is_wrong_in_itself_fails_before_anything_is_done(writer: Writer, what: str, writes: Any, why: str) -> None:
    """Two writes of one row too: one statement changes a row once, and to leave one of two appends out loses text."""
    id = await leased(writer, what if what != "job_step" else "job")
    if isinstance(writes, list) and what != "job_step":
        writes = [{"id": str(id), "delta": "x", "response": "x", "stage": "x"}, *writes]
    before = await row(writer.db, what if what != "job_step" else "job", id)
    with pytest.raises(asyncpg.InvalidParameterValueError, match=why):
        await writer.db.fetch(f"SELECT * FROM rowcast.{what}_write($1)", json.dumps(writes))
    assert await row(writer.db, what if what != "job_step" else "job", id) == before


@pytest.mark.parametrize("what", TABLES)
async def test_no_writes_are_no_trouble(writer: Writer, what: str) -> None:
    for none in ("[]", None):
        assert await writer.db.fetch(f"SELECT * FROM rowcast.{what}_write($1)", none) == []


async def test_appends_of_many_at_once_are_all_there(writer: Writer, database: str) -> None:
    """What each saw while it locked the row is what it changes, also where its snapshot is older."""
    ids = [await leased(writer) for _ in range(3)]

    async def append(letter: str) -> None:
        db = await asyncpg.connect(database)
        left = dict.fromkeys(ids, 40)
        while any(left.values()):
            asked = [{"id": id, "fence": F, "delta": letter} for id, n in left.items() if n]
            for each, outcome in zip(asked, await write(db, "message", *asked), strict=True):
                assert outcome in ("written", "locked")
                left[each["id"]] -= outcome == "written"
        await db.close()

    await asyncio.gather(*(append(letter) for letter in "abcd"))
    for id in ids:
        assert sorted((await row(writer.db, "message", id))["text"]) == sorted("abcd" * 40)
    await writer.db.execute("SELECT rowcast.adopt()")
    heard = {str(id): "" for id in ids}
    for _, payload in await told(writer.db):
        assert payload["offset"] == len(heard[payload["message_id"]])
        heard[payload["message_id"]] += payload["delta"]
    assert list(heard.values()) == [(await row(writer.db, "message", id))["text"] for id in ids]


async def test_rows_among_many_are_found_by_their_keys(writer: Writer) -> None:
    """Also by plans that were made when the tables were small."""
    session = await writer.session()
    job, message = await leased(writer, "job"), await leased(writer)
    request, step = await leased(writer, "request"), await writer.insert("job_step", job_id=job)
    asked: dict[str, dict[str, Any]] = {"message": {"id": message, "delta": "x"}, "request": {"id": request, "response": "x"}}
    asked |= {"job_step": {"id": step, "job_id": job, "name": "x"}, "job": {"id": job, "status": "completed"}}
    await writer.db.execute("ANALYZE message, job, job_step, request")
    await writer.db.execute(
        f"""INSERT INTO message (session_id, lease_expires_at) SELECT '{session}', now() + '1 hour' FROM generate_series(1, 2000);
            INSERT INTO request (session_id, lease_expires_at) SELECT '{session}', now() + '1 hour' FROM generate_series(1, 2000);
            INSERT INTO job (name, lease_expires_at) SELECT 'x', now() + '1 hour' FROM generate_series(1, 2000);
            INSERT INTO job_step (job_id) SELECT id FROM job"""
    )
    scanned = """SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables
                  WHERE relid = ANY ('{message,request,job,job_step}'::regclass[])"""
    async with writer.db.transaction():
        before = await writer.db.fetchval(scanned)
        for table, each in asked.items():
            assert await write(writer.db, table, each) == ["written"]
        for start in (
            f"message_start('{session}', id => '{message}', fence => '{F}')",
            f"request_start(id => '{request}', fence => '{F}')",
        ):
            await writer.db.execute(f"SELECT * FROM rowcast.{start}")
        assert await writer.db.fetchval("SELECT rowcast.reap()") == 0
        assert await writer.db.fetchval(scanned) - before < 80


async def test_a_column_may_be_renamed_and_added(writer: Writer) -> None:
    id = await leased(writer, text="a")
    await writer.db.execute(
        "ALTER TABLE message RENAME COLUMN text TO body; ALTER TABLE message RENAME COLUMN fence TO token; ALTER TABLE message ADD held text"
    )
    assert await write(writer.db, "message", {"id": id, "fence": F, "delta": "b"}, {"id": uuid4()}) == ["written", "gone"]
    assert (await row(writer.db, "message", id))["body"] == "ab"


# job_write


async def test_what_is_asked_of_a_job(writer: Writer) -> None:
    id = await leased(writer, "job", name="n", stage="s", message="m", error="e", result="[1]")
    await writer.db.execute("UPDATE job SET cancel_requested_at = now()")
    asked = {"id": id, "fence": F, "status": "processing", "stage": None, "progress": 140, "result": {"a": None}, "revision": 1}
    (answer,) = await answers(writer.db, "job", asked)
    assert (answer["outcome"], answer["cancel_requested"]) == ("written", True)
    found = await row(writer.db, "job", id)
    assert [found[name] for name in ("name", "status", "stage", "progress", "message", "error", "revision")] == [
        "n",
        "processing",
        None,
        100,
        "m",
        "e",
        1,
    ]
    assert json.loads(found["result"]) == {"a": None}
    await write(writer.db, "job", {"id": id, "progress": -3.5, "result": None, "error": None})
    found = await row(writer.db, "job", id)
    assert (found["progress"], found["result"], found["error"]) == (0, None, None)
    await write(writer.db, "job", {"id": id, "progress": 33.3, "status": "running"})
    assert (await row(writer.db, "job", id))["progress"] == pytest.approx(33.3)
    (gone,) = await answers(writer.db, "job", {"id": uuid4()})
    assert (gone["outcome"], gone["cancel_requested"]) == ("gone", None)


@pytest.mark.parametrize(
    ("status", "given", "progress"),
    [("completed", {}, 100), ("completed", {"progress": 90}, 90), ("failed", {"error": "oh"}, 40), ("cancelled", {}, 40)],
)
async def test_a_job_that_ends_takes_its_steps_along(writer: Writer, status: str, given: dict[str, Any], progress: float) -> None:
    id, elsewhere = await leased(writer, "job", status="running", progress=40), await leased(writer, "job", status="running")
    before = ("pending", "running", "processing", "completed", "failed", "cancelled")
    steps = [await writer.insert("job_step", job_id=id, status=each, error="own") for each in before]
    foreign = await writer.insert("job_step", job_id=elsewhere, status="running")
    await writer.db.execute("DELETE FROM rowcast.outbox")
    asked = {"id": id, "fence": F, "status": status, "revision": 1, **given}
    assert await write(writer.db, "job", asked, {"id": elsewhere, "stage": "x"}) == ["written"] * 2
    found = await row(writer.db, "job", id)
    assert (found["status"], found["progress"], found["lease_expires_at"], found["fence"]) == (status, progress, None, F)
    after = [await row(writer.db, "job_step", step) for step in steps]
    assert [step["status"] for step in after] == [status] * 3 + ["completed", "failed", "cancelled"]
    assert [step["error"] for step in after] == ["oh" if status == "failed" else "own"] * 3 + ["own"] * 3
    assert (await row(writer.db, "job_step", foreign))["status"] == "running"
    types = [event["type"] for event in await writer.outbox()]
    assert types[:3] == ["job_step.updated"] * 3
    assert sorted(types[3:]) == sorted([f"task.{status}", "task.progress"])
    assert await write(writer.db, "job", asked) == ["written"]
    assert await write(writer.db, "job", {"id": id, "status": "running"}) == ["ended"]
    assert await write(writer.db, "job", {"id": id, "stage": "late"}) == ["ended"]
    assert await writer.outbox() == []


async def test_each_outcome_of_a_job(writer: Writer, other: asyncpg.Connection) -> None:
    id, expired, taken, held = [await leased(writer, "job", status="running", revision=5) for _ in range(4)]
    await writer.update("job", expired, fence=None, status="failed")
    await writer.update("job", taken, fence=G)
    await hold(other, "job", held)
    await writer.db.execute("SET lock_timeout = '1ms'")
    asked = [{"id": each, "fence": F, "stage": "x", "revision": 5} for each in (uuid4(), expired, taken, held, id)]
    assert await write(writer.db, "job", *asked) == ["gone", "expired", "taken", "locked", "written"]
    assert await write(writer.db, "job", {"id": id, "stage": "y", "revision": 4}) == ["overtaken"]


async def test_a_job_one_of_whose_steps_is_held_does_not_end_yet(writer: Writer, other: asyncpg.Connection) -> None:
    id = await leased(writer, "job", status="running")
    step, done = [await writer.insert("job_step", job_id=id, status=each) for each in ("running", "completed")]
    transaction = await hold(other, "job_step", step)
    await other.execute("SELECT FROM job_step WHERE id = $1 FOR UPDATE", done)
    await writer.db.execute("SET lock_timeout = '1ms'")
    assert await write(writer.db, "job", {"id": id, "status": "completed"}) == ["locked"]
    assert await write(writer.db, "job", {"id": id, "stage": "x"}) == ["written"]
    await transaction.rollback()
    await hold(other, "job_step", done)
    assert await write(writer.db, "job", {"id": id, "status": "completed"}) == ["written"]
    assert (await row(writer.db, "job_step", step))["status"] == "completed"


# job_step_write


async def test_steps_are_made_and_changed(writer: Writer) -> None:
    job = await leased(writer, "job", kind="agent", status="running")
    first, second, third = [uuid4() for _ in range(3)]
    made = [{"id": id, "job_id": job, "fence": F} for id in (second, first, third)]
    made[1] |= {"name": "read", "status": "pending", "state": {"n": 1}, "error": "e"}
    assert await write(writer.db, "job_step", *made) == ["written"] * 3
    found = await writer.db.fetch("SELECT id, name, status, state, error FROM job_step ORDER BY sequence_number")
    assert [row["id"] for row in found] == [second, first, third]
    assert [tuple(row)[1:] for row in found[:2]] == [("", "running", None, None), ("read", "pending", '{"n": 1}', "e")]
    changed = [{"id": first, "job_id": job, "status": "completed", "error": None}, {"id": second, "job_id": job, "state": [1]}]
    assert await write(writer.db, "job_step", *changed) == ["written"] * 2
    step = await row(writer.db, "job_step", first)
    assert (step["name"], step["status"], step["state"], step["error"]) == ("read", "completed", '{"n": 1}', None)
    assert await write(writer.db, "job_step", *changed) == ["written"] * 2
    assert await write(writer.db, "job_step", {"id": first, "job_id": job, "name": "other"}) == ["ended"]
    types = [event["type"] for event in await writer.outbox()]
    assert sorted(types) == ["agent.step.updated"] * 4 + ["workflow.node_state.updated"]  # those of one statement in any order


async def test_each_outcome_of_a_step(writer: Writer, other: asyncpg.Connection) -> None:
    job, expired, taken, held, ended = [await leased(writer, "job", status="running") for _ in range(5)]
    await writer.update("job", expired, fence=None, status="failed")
    await writer.update("job", taken, fence=G)
    await writer.update("job", ended, status="completed")
    step, locked = [await writer.insert("job_step", job_id=job) for _ in range(2)]
    done = await writer.insert("job_step", job_id=ended, status="completed", name="x")
    await hold(other, "job", held)
    await other.execute("SELECT FROM job_step WHERE id = $1 FOR UPDATE", locked)
    await writer.db.execute("SET lock_timeout = '1ms'")
    for id, of, outcome in (
        (uuid4(), uuid4(), "gone"),
        (uuid4(), expired, "expired"),
        (uuid4(), taken, "taken"),
        (uuid4(), ended, "ended"),
        (done, ended, "written"),
        (uuid4(), held, "locked"),
        (locked, job, "locked"),
        (step, ended, "gone"),  # of another job
        (step, job, "written"),
    ):
        assert await write(writer.db, "job_step", {"id": id, "job_id": of, "fence": F, "name": "x"}) == [outcome], outcome
    assert await writer.db.fetchval("SELECT count(*) FROM job_step") == 3


async def test_a_job_does_not_end_while_a_step_of_it_is_written(writer: Writer, other: asyncpg.Connection) -> None:
    """Nor does a step begin while its job ends; steps of one job may be written side by side."""
    job = await leased(writer, "job", status="running")
    step = uuid4()
    async with other.transaction():
        assert await write(other, "job_step", {"id": step, "job_id": job}) == ["written"]
        assert await write(writer.db, "job", {"id": job, "status": "completed"}) == ["locked"]
        assert await write(writer.db, "job_step", {"id": uuid4(), "job_id": job}) == ["written"]
        assert await writer.db.fetchval("SELECT rowcast.reap()") == 0
    async with other.transaction():
        assert await write(other, "job", {"id": job, "status": "completed"}) == ["written"]
        assert await write(writer.db, "job_step", {"id": uuid4(), "job_id": job}) == ["locked"]
    assert await write(writer.db, "job_step", {"id": uuid4(), "job_id": job}) == ["ended"]
    assert await writer.db.fetch("SELECT status FROM job_step") == [("completed",)] * 2


async def test_no_step_goes_on_after_its_job(writer: Writer, database: str) -> None:
    jobs = [await leased(writer, "job", status="running") for _ in range(30)]

    async def make() -> None:
        db = await asyncpg.connect(database)
        left = set(jobs)
        while left:
            asked = [{"id": uuid4(), "job_id": job} for job in left]
            outcomes = await write(db, "job_step", *asked)
            left -= {each["job_id"] for each, outcome in zip(asked, outcomes, strict=True) if outcome == "ended"}
        await db.close()

    async def end() -> None:
        db = await asyncpg.connect(database)
        for job in jobs:
            while await write(db, "job", {"id": job, "status": "failed", "error": "e"}) != ["written"]:
                pass
        await db.close()

    await asyncio.gather(make(), make(), end())
    assert await writer.db.fetch("SELECT DISTINCT status, error FROM job_step") == [("failed", "e")]


# request_write


async def test_what_is_asked_of_a_request(writer: Writer, other: asyncpg.Connection) -> None:
    id, expired, taken, held = [await leased(writer, "request", status="in_progress") for _ in range(4)]
    await writer.update("request", expired, fence=None)
    await writer.update("request", taken, fence=G)
    await hold(other, "request", held)
    asked = {"id": id, "fence": F, "status": "done", "response": "42"}
    assert await write(writer.db, "request", *({**asked, "id": each} for each in (uuid4(), expired, taken, held))) == [
        "gone",
        "expired",
        "taken",
        "locked",
    ]
    assert await write(writer.db, "request", asked) == ["written"]
    found = await row(writer.db, "request", id)
    assert (found["status"], found["response"], found["error"], found["fence"], found["lease_expires_at"]) == ("done", "42", None, F, None)
    assert [event["type"] for event in await writer.outbox()] == ["request_update"]
    assert await write(writer.db, "request", asked) == ["written"]
    assert await write(writer.db, "request", {**asked, "response": "43"}) == ["ended"]
    assert await write(writer.db, "request", {**asked, "status": "error"}) == ["ended"]
    assert await writer.outbox() == []


# Starting


async def start(db: asyncpg.Connection, what: str, **given: Any) -> asyncpg.Record:
    names = ", ".join(f"{name} => ${n}" + ("::text::interval" if name == "lease" else "") for n, name in enumerate(given, 1))
    found = await db.fetchrow(f"SELECT * FROM rowcast.{what}_start({names})", *given.values())
    assert found is not None
    return found


async def refused(code: str, why: str, call: Any) -> None:
    with pytest.raises(asyncpg.PostgresError, match=why) as error:
        await call
    assert error.value.sqlstate == code
    assert "\n" not in str(error.value)


async def startable(writer: Writer, what: str) -> dict[str, Any]:
    return {} if what == "job" else {"session_id": UUID(await writer.session())}


STARTED = {"message": "streaming", "job": "running", "request": "in_progress"}
ENDED = {"message": "completed", "job": "cancelled", "request": "error"}


@pytest.mark.parametrize("what", STARTED)
async def test_a_row_begins_under_a_lease(writer: Writer, what: str) -> None:
    given = await startable(writer, what)
    one = await start(writer.db, what, **given)
    found = await row(writer.db, what, one["id"])
    assert (found["status"], found["fence"], found.get("revision")) == (STARTED[what], one["fence"], None)
    assert 25 < await lease_left(writer.db, what, one["id"]) <= 30
    again = await start(writer.db, what, **given)
    assert one["id"] != again["id"]
    assert one["fence"] != again["fence"]
    endless = await start(writer.db, what, **given, lease=None)
    assert (await row(writer.db, what, endless["id"]))["lease_expires_at"] is None
    assert len(await writer.outbox()) == 3


@pytest.mark.parametrize("what", STARTED)
async def test_to_begin_once_more_with_the_same_fence_is_a_retry(writer: Writer, what: str) -> None:
    given = {**await startable(writer, what), "id": uuid4(), "fence": F}
    first = await start(writer.db, what, **given)
    before = await row(writer.db, what, given["id"])
    assert await start(writer.db, what, **given) == first
    assert await row(writer.db, what, given["id"]) == before
    assert len(await writer.outbox()) == 1
    await start(writer.db, what, **given, lease="1 hour")
    assert await lease_left(writer.db, what, given["id"]) > 3000
    await writer.update(what, given["id"], status=ENDED[what], lease_expires_at=None)
    assert await start(writer.db, what, **given) == first  # its answer was lost, and all that came after was not
    assert (await row(writer.db, what, given["id"]))["status"] == ENDED[what]


@pytest.mark.parametrize("what", STARTED)
@pytest.mark.parametrize("before", ["pending", "started"])
@pytest.mark.parametrize("lease", [None, PAST])
async def test_one_that_nobody_holds_is_taken(writer: Writer, what: str, before: str, lease: str | None) -> None:
    id = await leased(writer, what, PAST, fence=G, status=STARTED[what] if before == "started" else "pending")
    if lease is None:
        await writer.update(what, id, lease_expires_at=None)
    if what != "request":
        await writer.update(what, id, revision=9)
    session = (await row(writer.db, what, id))["session_id"]
    one = await start(writer.db, what, **({"session_id": session} if what == "message" else {}), id=id, fence=F)
    found = await row(writer.db, what, id)
    assert (one["id"], one["fence"], found["fence"], found["status"], found.get("revision")) == (id, F, F, STARTED[what], None)
    assert 25 < await lease_left(writer.db, what, id) <= 30
    assert await write(writer.db, what, {"id": id, "fence": G}) == ["taken"]


async def test_a_message_that_is_taken_goes_on_where_it_was(writer: Writer) -> None:
    id = await leased(writer, lease=PAST, text="Hi 👍", role="tool", metadata='{"a": 1}')
    session, job = (await row(writer.db, "message", id))["session_id"], await writer.insert("job", name="j")
    one = await start(writer.db, "message", session_id=session, text="other", job_id=job, metadata='{"b": 2}', id=id, fence=G)
    assert one["length"] == 4
    found = await row(writer.db, "message", id)
    assert (found["text"], found["role"], found["job_id"], json.loads(found["metadata"])) == ("Hi 👍", "tool", job, {"a": 1, "b": 2})
    new = await start(writer.db, "message", session_id=session, text="日本", role="user")
    assert new["length"] == 2
    assert (await row(writer.db, "message", new["id"]))["role"] == "user"


async def test_a_job_that_is_taken_keeps_what_is_not_given(writer: Writer) -> None:
    session, project = UUID(await writer.session()), await writer.project()
    id = await writer.insert("job", kind="ingest", name="n", session_id=session, project_id=project, cancel_requested_at=None)
    await writer.db.execute("UPDATE job SET cancel_requested_at = now()")
    one = await start(writer.db, "job", kind="ingest", id=id)
    assert one["cancel_requested"] is True
    found = await row(writer.db, "job", id)
    assert (found["name"], found["session_id"], found["project_id"]) == ("n", session, project)
    await writer.update("job", id, fence=None, lease_expires_at=None, status="processing")
    other_project = await writer.project()
    await start(writer.db, "job", kind="ingest", id=id, project_id=other_project, name="m")
    found = await row(writer.db, "job", id)
    assert (found["name"], found["session_id"], found["project_id"], found["status"]) == ("m", session, other_project, "processing")


async def test_a_request_is_taken_without_its_session(writer: Writer) -> None:
    id = await writer.insert("request", session_id=await writer.session(), request="what?")
    number = (await row(writer.db, "request", id))["sequence_number"]
    await start(writer.db, "request", id=id, fence=F)
    assert (await row(writer.db, "request", id))["request"] == "what?"
    await writer.update("request", id, lease_expires_at=None)
    await start(writer.db, "request", id=id, request="and how?")
    found = await row(writer.db, "request", id)
    assert (found["request"], found["sequence_number"]) == ("and how?", number)
    following = await start(writer.db, "request", session_id=found["session_id"])
    assert (await row(writer.db, "request", following["id"]))["sequence_number"] == number + 1  # a taken one uses none up


@pytest.mark.parametrize("what", STARTED)
async def test_one_that_cannot_be_begun_says_why(writer: Writer, what: str) -> None:
    session = await startable(writer, what)
    running = await leased(writer, what, fence=G, **session)
    ended = await leased(writer, what, PAST, status=ENDED[what], **session)
    before = [await row(writer.db, what, id) for id in (running, ended)]
    await refused("RC012", f"^{what} {running}: another writer holds it until 2", start(writer.db, what, **session, id=running))
    await refused("RC013", f"^{what} {ended}: it is {ENDED[what]} already", start(writer.db, what, **session, id=ended))
    if what == "job":
        idle = await leased(writer, what, PAST, kind="agent")
        await refused("RC012", f"^job {idle}: it is of the kind agent, not task", start(writer.db, what, id=idle))
    else:
        idle = await leased(writer, what, PAST)
        await refused("RC012", f"^{what} {idle}: it is in another session", start(writer.db, what, **session, id=idle))
    if what == "request":
        gone = uuid4()
        await refused("RC010", f"^request {gone}: there is none", start(writer.db, what, id=gone))
    await refused("22023", "an id and a fence", start(writer.db, what, **session, fence=None))
    await refused("22023", "an id and a fence", start(writer.db, what, **session, id=None))
    assert [await row(writer.db, what, id) for id in (running, ended)] == before


@pytest.mark.parametrize("what", STARTED)
async def test_taking_waits_for_whoever_has_the_row(writer: Writer, other: asyncpg.Connection, what: str) -> None:
    id = await leased(writer, what, fence=G)
    session = {"session_id": (await row(writer.db, what, id))["session_id"]} if what == "message" else {}
    transaction = await hold(other, what, id)
    taking = asyncio.create_task(start(writer.db, what, **session, id=id, fence=F))
    await until_sql(other, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    await other.execute(f"UPDATE {what} SET lease_expires_at = NULL")
    await transaction.commit()
    assert (await taking)["fence"] == F


@pytest.mark.parametrize("what", STARTED)
async def test_of_many_that_begin_one_begins(writer: Writer, database: str, what: str) -> None:
    given = {**await startable(writer, what), "id": uuid4()}
    connections = [await asyncpg.connect(database) for _ in range(5)]
    outcomes = await asyncio.gather(*(start(db, what, **given, fence=uuid4()) for db in connections), return_exceptions=True)
    begun = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(begun) == 1
    assert {each.sqlstate for each in outcomes if isinstance(each, asyncpg.PostgresError)} == {"RC012"}
    assert (await row(writer.db, what, given["id"]))["fence"] == begun[0]["fence"]
    for db in connections:
        await db.close()


# One row, and an error instead of an outcome


async def call(db: asyncpg.Connection, what: str, *arguments: Any, **given: Any) -> Any:
    names = [f"${n}" for n in range(1, len(arguments) + 1)]
    names += [f"{name} => ${n}" + ("::text::interval" if name == "lease" else "") for n, name in enumerate(given, len(arguments) + 1)]
    return await db.fetchval(f"SELECT rowcast.{what}({', '.join(names)})", *arguments, *given.values())


async def test_one_message_from_its_beginning_to_its_end(writer: Writer) -> None:
    id = await leased(writer, lease=SOON, text="日")
    assert await call(writer.db, "message_append", id, "本", fence=F) == 2
    assert await call(writer.db, "message_append", id, "!", lease="15 seconds") == 3
    assert await call(writer.db, "message_append", id, "", fence=F, lease="1 hour") == 3
    assert await lease_left(writer.db, "message", id) > 3000
    await call(writer.db, "message_replace", id, "other", fence=F)
    assert (await row(writer.db, "message", id))["text"] == "other"
    for _ in range(2):
        await call(writer.db, "message_complete", id, "all of it", metadata='{"a": 1}', fence=F)
    found = await row(writer.db, "message", id)
    assert (found["text"], found["status"], found["metadata"], found["lease_expires_at"]) == ("all of it", "completed", '{"a": 1}', None)
    second, third = await leased(writer, text="part"), await leased(writer, text="part")
    await call(writer.db, "message_complete", second)
    assert (await row(writer.db, "message", second))["text"] == "part"
    await call(writer.db, "message_fail", third, metadata='{"a": 1}')
    found = await row(writer.db, "message", third)
    assert (found["text"], found["status"]) == ("part", "failed")
    assert json.loads(found["metadata"]) == {"a": 1, "error": "Something went wrong. Please try again."}


async def test_one_job_from_its_beginning_to_its_end(writer: Writer) -> None:
    done, failed, stopped = [await leased(writer, "job", SOON, status="running", message="m") for _ in range(3)]
    for id in (done, failed, stopped):
        await writer.insert("job_step", job_id=id, status="running")
    assert await call(writer.db, "job_progress", done, 40.5, stage="reading", fence=F) is False
    await writer.update("job", done, cancel_requested_at=(await row(writer.db, "job", done))["created_at"])
    assert await call(writer.db, "job_progress", done, lease="1 hour") is True
    found = await row(writer.db, "job", done)
    assert (found["progress"], found["stage"], found["message"]) == (40.5, "reading", "m")
    assert await lease_left(writer.db, "job", done) > 3000
    for _ in range(2):
        await call(writer.db, "job_complete", done, '{"a": null}', fence=F)
        await call(writer.db, "job_fail", failed, "oh", fence=F)
        await call(writer.db, "job_stop", stopped, fence=F)
    jobs = [await row(writer.db, "job", id) for id in (done, failed, stopped)]
    assert [(job["status"], job["progress"], job["result"], job["error"]) for job in jobs] == [
        ("completed", 100, '{"a": null}', None),
        ("failed", 0, None, "oh"),
        ("cancelled", 0, None, None),
    ]
    steps = await writer.db.fetch("SELECT status, error FROM job_step ORDER BY sequence_number")
    assert steps == [("completed", None), ("failed", "oh"), ("cancelled", None)]


async def test_one_request_to_its_end(writer: Writer) -> None:
    done, failed = await leased(writer, "request"), await leased(writer, "request")
    for _ in range(2):
        await call(writer.db, "request_done", done, "42", fence=F)
        await call(writer.db, "request_fail", failed, "oh", fence=F)
    rows = [await row(writer.db, "request", id) for id in (done, failed)]
    assert [(row["status"], row["response"], row["error"]) for row in rows] == [("done", "42", None), ("error", None, "oh")]


async def test_each_outcome_is_an_error_of_its_own(writer: Writer) -> None:
    """One line, which names the row and says why; nothing was changed."""
    id, ended = await leased(writer, text="abc"), await leased(writer, status="completed")
    expired = await leased(writer, fence=None, status="failed")
    unheld = await leased(writer, fence=None)
    gone = uuid4()
    await refused("RC010", f"^message {gone}: there is none", call(writer.db, "message_append", gone, "x"))
    await refused(
        "RC011",
        f"^message {expired}: its lease ran out, and it was failed: nothing was changed$",
        call(writer.db, "message_append", expired, "x", fence=F),
    )
    await refused(
        "RC011", f"^message {unheld}: nobody holds it .* it is streaming", call(writer.db, "message_append", unheld, "x", fence=F)
    )
    await refused("RC012", f"^message {id}: another writer took it", call(writer.db, "message_replace", id, "x", fence=G))
    await refused("RC013", f"^message {ended}: it is completed already", call(writer.db, "message_fail", ended, fence=F))
    for code, why, change in (("RC014", "shorter", {"offset": 9}), ("RC015", "higher revision", {"revision": -1, "delta": "x"})):
        given = json.dumps({"id": str(id), **change})
        await refused(code, f"^message {id}: .*{why}", call(writer.db, "change_message", given, lease=LATER))
    job, request = await leased(writer, "job", status="failed"), await leased(writer, "request", fence=None, status="error")
    await refused("RC013", f"^job {job}: it is failed already", call(writer.db, "job_complete", job))
    await refused("RC012", f"^job {job}: another writer", call(writer.db, "job_progress", job, 1, fence=G))
    await refused("RC010", f"^job {gone}: there is none", call(writer.db, "job_stop", gone))
    await refused("RC011", f"^request {request}: its lease ran out", call(writer.db, "request_done", request, fence=F))
    await refused("RC010", f"^request {gone}: there is none", call(writer.db, "request_fail", gone, "oh"))
    await refused("22023", "object with id", call(writer.db, "message_append", None, "x"))
    assert (await row(writer.db, "message", id))["text"] == "abc"
    assert await writer.outbox() == []


@pytest.mark.parametrize(
    ("what", "arguments"),
    [("message_append", ("x",)), ("job_progress", (5,)), ("job_stop", ()), ("request_done", ("x",))],
    ids=lambda value: str(value),
)
async def test_one_row_is_waited_for(writer: Writer, other: asyncpg.Connection, what: str, arguments: tuple[Any, ...]) -> None:
    table = what.partition("_")[0]
    id = await leased(writer, table)
    held = id if what != "job_stop" else await writer.insert("job_step", job_id=id)
    transaction = await hold(other, table if held == id else "job_step", held)
    calling = asyncio.create_task(call(writer.db, what, id, *arguments, fence=F))
    await until_sql(other, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    await transaction.rollback()
    await calling
    assert len(await writer.outbox()) in (1, 3)


# Who may


PUBLIC_FACE = {
    *(f"{table}_write" for table in TABLES),
    *(f"{what}_start" for what in STARTED),
    *("message_append", "message_replace", "message_complete", "message_fail"),
    *("job_progress", "job_complete", "job_fail", "job_stop", "request_done", "request_fail"),
}
PRIVATE = {"refuse", "check_writes", "renewed", "hold_steps", "end_steps", "settled", "change_message", "change_job", "change_request"}

ROLE = "rowcast_test_writer"


@pytest.fixture
def stranger(runner: asyncio.Runner, database: str) -> Iterator[str]:
    """A role that may nothing."""
    runner.run(on_database(database, f"DO $$ BEGIN CREATE ROLE {ROLE}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
    yield ROLE
    runner.run(on_database(database, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}"))


async def allowed(db: asyncpg.Connection, role: str) -> set[str]:
    return {
        row["proname"]
        for row in await db.fetch(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace AND has_function_privilege($1, oid, 'EXECUTE')", role
        )
    }


async def test_a_writer_may_use_these_and_nothing_else_of_rowcasts(writer: Writer, stranger: str) -> None:
    session = await writer.session()
    before, hubs = await allowed(writer.db, stranger), await allowed(writer.db, "rowcast_hub")
    await writer.db.execute(f"GRANT rowcast_writer TO {stranger}")
    assert await allowed(writer.db, stranger) - before == PUBLIC_FACE | PRIVATE
    assert not hubs & (PUBLIC_FACE | PRIVATE)
    tables = """SELECT count(*) FROM pg_class c WHERE c.relnamespace = 'rowcast'::regnamespace AND c.relkind IN ('r', 'v') AND c.relname <> 'watches'
                 AND (has_table_privilege($1, c.oid, 'SELECT, INSERT, UPDATE, DELETE') OR has_any_column_privilege($1, c.oid, 'SELECT, INSERT, UPDATE'))"""
    assert await writer.db.fetchval(tables, stranger) == 0
    await writer.db.execute(f"SET ROLE {stranger}")
    for forbidden in (
        "SELECT * FROM rowcast.event",
        "SELECT rowcast.reap()",
        "SELECT rowcast.reap_jobs(1)",
        "DELETE FROM message",
        "SELECT * FROM session",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.db.execute(forbidden)
    one = await start(writer.db, "message", session_id=UUID(session))
    assert await call(writer.db, "message_append", one["id"], "a", fence=one["fence"]) == 1
    await call(writer.db, "message_replace", one["id"], "b", fence=one["fence"])
    await call(writer.db, "message_complete", one["id"], fence=one["fence"])
    await call(writer.db, "message_fail", (await start(writer.db, "message", session_id=UUID(session)))["id"])
    for end in ("job_complete", "job_stop"):
        job = await start(writer.db, "job")
        await writer.insert("job_step", job_id=job["id"])
        assert await write(writer.db, "job_step", {"id": uuid4(), "job_id": job["id"], "fence": job["fence"]}) == ["written"]
        assert await call(writer.db, "job_progress", job["id"], 5, fence=job["fence"]) is False
        await call(writer.db, end, job["id"], fence=job["fence"])
    await call(writer.db, "job_fail", (await start(writer.db, "job"))["id"], "oh")
    for end, said in (("request_done", "42"), ("request_fail", "oh")):
        await call(writer.db, end, (await start(writer.db, "request", session_id=UUID(session)))["id"], said)
    await refused("RC013", "already", call(writer.db, "message_append", one["id"], "x"))
    await writer.db.execute("RESET ROLE")
    assert len(await writer.outbox()) == 26


async def test_nobody_else_may(writer: Writer, stranger: str) -> None:
    id = await leased(writer)
    await writer.db.execute(
        f"GRANT USAGE ON SCHEMA rowcast TO {stranger}; GRANT ALL ON message, job, job_step, request TO {stranger}; SET ROLE {stranger}"
    )
    for forbidden in (f"message_append('{id}', 'x')", "message_write('[]')", "job_start()", "reap()", "refuse('RC010', 'x')"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.db.execute(f"SELECT rowcast.{forbidden}")
    await writer.db.execute("RESET ROLE")


async def test_where_the_tables_are_anothers_there_is_nothing_of_it(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWCAST_REFERENCE_TABLES", "off")
    await on_database(empty_database, "CREATE TABLE message (id int)")
    await schema.migrate(empty_database, "head")
    db = await asyncpg.connect(empty_database)
    assert not await allowed(db, (await db.fetchval("SELECT current_user"))) & (PUBLIC_FACE | PRIVATE | {"reap"})
    assert await db.fetchval("SELECT count(*) FROM pg_attribute WHERE attrelid = 'message'::regclass AND attnum > 0") == 1
    await db.close()
    await schema.migrate(empty_database, "-1")


# The reaper's SQL

INTERRUPTED = {"error": "The answer was interrupted. Please try again.", "reason": "lease_expired"}
JOB_GONE = "the program that ran it is gone: its lease ran out"
REQUEST_GONE = "the program that answered it is gone: its lease ran out"


async def reap(db: asyncpg.Connection, most: int = 1000) -> int:
    return int(await db.fetchval("SELECT rowcast.reap($1)", most))


async def test_what_nobody_holds_any_more_is_ended_and_told(writer: Writer) -> None:
    message = await leased(writer, lease=PAST, text="Once upon", metadata='{"model": "large"}', revision=4)
    odd = await leased(writer, lease=PAST, metadata="[1]", status="pending", fence=None)
    job = await leased(writer, "job", PAST, kind="ingest", status="processing", progress=40)
    agent = await leased(writer, "job", PAST, kind="agent", status="running")
    steps = [await writer.insert("job_step", job_id=agent, status=status) for status in ("pending", "running", "completed")]
    request = await leased(writer, "request", PAST, status="in_progress")
    await writer.db.execute("DELETE FROM rowcast.outbox; SELECT rowcast.adopt()")
    assert await reap(writer.db) == 5
    for table, ids in (("message", (message, odd)), ("job", (job, agent)), ("request", (request,))):
        for id in ids:
            found = await row(writer.db, table, id)
            assert (found["fence"], found["lease_expires_at"]) == (None, None)
            assert found["status"] == ("error" if table == "request" else "failed")
    found = await row(writer.db, "message", message)
    assert (found["text"], found["revision"], json.loads(found["metadata"])) == ("Once upon", 4, {"model": "large", **INTERRUPTED})
    assert json.loads((await row(writer.db, "message", odd))["metadata"]) == INTERRUPTED
    found = await row(writer.db, "job", job)
    assert (found["error"], found["progress"]) == (JOB_GONE, 40)
    assert [(await row(writer.db, "job_step", step))["status"] for step in steps] == ["failed", "failed", "completed"]
    assert [(await row(writer.db, "job_step", step))["error"] for step in steps] == [JOB_GONE, JOB_GONE, None]
    assert (await row(writer.db, "request", request))["error"] == REQUEST_GONE
    events = await told(writer.db)
    assert sorted(type for type, _ in events) == sorted(
        [
            "message.failed",
            "message.failed",
            "ingest.job.failed",
            "agent.run.failed",
            "agent.step.updated",
            "agent.step.updated",
            "request_update",
        ]
    )
    for type, payload in events:
        if type == "message.failed":
            assert payload["errorMessage"] == INTERRUPTED["error"]
            assert payload["message"]["metadata"]["reason"] == "lease_expired"
        elif type == "request_update":
            assert (payload["status"], payload["has_error"]) == ("error", True)
        else:
            assert payload["errorMessage"] == JOB_GONE
    assert await reap(writer.db) == 0
    assert await write(writer.db, "message", {"id": message, "fence": F, "delta": "x"}) == ["expired"]
    assert await write(writer.db, "job_step", {"id": uuid4(), "job_id": job, "fence": F}) == ["expired"]


async def test_what_somebody_holds_and_what_has_no_lease_goes_on(writer: Writer) -> None:
    ids = {table: [await leased(writer, table), await leased(writer, table, PAST)] for table in STARTED}
    for table, (_, endless) in ids.items():
        await writer.update(table, endless, lease_expires_at=None)
    before = {table: [await row(writer.db, table, id) for id in ids[table]] for table in ids}
    assert await reap(writer.db) == 0
    assert {table: [await row(writer.db, table, id) for id in ids[table]] for table in ids} == before


async def test_what_has_ended_only_loses_its_lease(writer: Writer) -> None:
    ended = {"message": ("completed", "failed"), "job": ("completed", "failed", "cancelled"), "request": ("done", "error")}
    ids = [(table, await leased(writer, table, PAST, status=status)) for table, all in ended.items() for status in all]
    step = await writer.insert("job_step", job_id=next(id for table, id in ids if table == "job"), status="running")
    await writer.outbox()
    before = [await row(writer.db, table, id) for table, id in ids]
    assert await reap(writer.db) == 7
    same = ("ctid", "xmin", "updated_at", "lease_expires_at")
    for (table, id), was in zip(ids, before, strict=True):
        now = await row(writer.db, table, id)
        assert now["lease_expires_at"] is None
        assert {name: now[name] for name in now if name not in same} == {name: was[name] for name in was if name not in same}
    assert (await row(writer.db, "job_step", step))["status"] == "running"
    assert await writer.outbox() == []


async def test_rows_that_somebody_has_are_left_for_the_next_time(writer: Writer, other: asyncpg.Connection) -> None:
    ids = {table: [await leased(writer, table, PAST) for _ in range(2)] for table in STARTED}
    stepped = await leased(writer, "job", PAST, status="running")
    step = await writer.insert("job_step", job_id=stepped, status="running")
    await writer.db.execute("SET lock_timeout = '1ms'")
    async with other.transaction():
        for table in STARTED:
            await other.execute(f"SELECT FROM {table} WHERE id = $1 FOR UPDATE", ids[table][0])
        await other.execute("SELECT FROM job_step WHERE id = $1 FOR UPDATE", step)
        assert await reap(writer.db) == 3
        assert (await row(writer.db, "job", stepped))["status"] == "running"
    assert await reap(writer.db) == 4
    assert (await row(writer.db, "job_step", step))["status"] == "failed"


async def test_a_lease_that_is_renewed_at_the_same_moment_holds(writer: Writer, other: asyncpg.Connection) -> None:
    """The reaper found the row by what it was, and looks again at what it has locked."""
    id = await leased(writer, lease=PAST)
    first = await leased(writer, lease="-1 hour")
    await writer.db.execute(
        """CREATE FUNCTION slow(public.message) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN true; END $$;
           DROP POLICY rowcast_reap ON message; CREATE POLICY slow ON message FOR UPDATE TO rowcast_owner USING (slow(message.*));
           ALTER TABLE message ENABLE ROW LEVEL SECURITY"""
    )
    await other.execute("SELECT pg_advisory_lock(77)")
    reaping = asyncio.create_task(reap(writer.db))
    await until_sql(other, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND objid = 77")
    await other.execute("UPDATE message SET lease_expires_at = now() + '1 hour' WHERE id = $1", id)
    await other.execute("SELECT pg_advisory_unlock(77)")
    assert await reaping == 1
    assert (await row(writer.db, "message", id))["status"] == "streaming"
    assert (await row(writer.db, "message", first))["status"] == "failed"


async def test_a_table_that_is_locked_is_not_waited_for(writer: Writer, other: asyncpg.Connection) -> None:
    """Whoever waits for it longest would be first, before those who renew their leases."""
    id = await leased(writer, lease=PAST)
    async with other.transaction():
        await other.execute("LOCK TABLE message IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await writer.db.fetchval("SELECT rowcast.reap()", timeout=10)
    assert (await row(writer.db, "message", id))["status"] == "streaming"


async def test_with_nothing_due_it_takes_no_transaction_id(writer: Writer) -> None:
    for table in STARTED:
        await leased(writer, table)
    async with writer.db.transaction():
        assert await reap(writer.db) == 0
        assert await writer.db.fetchval("SELECT pg_current_xact_id_if_assigned()") is None
    await writer.db.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    for table in TABLES:
        await writer.db.execute(f"CREATE TRIGGER no BEFORE UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION no()")
    assert await reap(writer.db) == 0


async def test_the_oldest_are_ended_first_and_so_many_at_a_time(writer: Writer) -> None:
    ids = {table: {age: await leased(writer, table, f"-{age} minutes") for age in (3, 1, 4, 2)} for table in STARTED}
    for most, ages in ((1, {4}), (2, {4, 3, 2}), (3, {4, 3, 2, 1}), (3, {4, 3, 2, 1})):
        await reap(writer.db, most)
        for table, of in ids.items():
            assert {age for age, id in of.items() if (await row(writer.db, table, id))["fence"] is None} == ages, (table, most)


async def test_3000_at_once(writer: Writer) -> None:
    """Each is ended and told once, whoever else reaps beside it, and found by the index."""
    session = await writer.session()
    await writer.db.execute(
        f"""ANALYZE message, job, job_step, request;
            INSERT INTO message (session_id, fence, lease_expires_at)
            SELECT '{session}', gen_random_uuid(), now() + (n > 3000)::int * interval '1 hour' - n * interval '1 ms' FROM generate_series(1, 6000) n;
            INSERT INTO job (status, fence, lease_expires_at)
            SELECT 'running', gen_random_uuid(), now() + (n > 3000)::int * interval '1 hour' - n * interval '1 ms' FROM generate_series(1, 6000) n;
            INSERT INTO job_step (job_id, status) SELECT id, 'running' FROM job;
            INSERT INTO request (session_id, fence, lease_expires_at)
            SELECT '{session}', gen_random_uuid(), now() + (n > 3000)::int * interval '1 hour' - n * interval '1 ms' FROM generate_series(1, 6000) n;
            DELETE FROM rowcast.outbox"""
    )
    scanned = """SELECT sum(seq_tup_read) + sum(coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables
                  WHERE relid = ANY ('{message,request,job,job_step}'::regclass[])"""
    async with writer.db.transaction():
        before = await writer.db.fetchval(scanned)
        assert await reap(writer.db, 100) == 300
        assert await writer.db.fetchval(scanned) - before < 4000
    total = 300
    while n := await reap(writer.db):
        total += n
    assert total == 9000
    counts = {row["type"]: row["n"] for row in await writer.db.fetch("SELECT type, count(*) AS n FROM rowcast.outbox GROUP BY type")}
    assert counts == {"message.failed": 3000, "task.failed": 3000, "job_step.updated": 3000, "request_update": 3000}


@pytest.mark.parametrize("table", STARTED)
async def test_what_is_due_is_found_by_its_index(writer: Writer, table: str) -> None:
    """Whatever the planner believed of the table."""
    await writer.db.execute(f"ANALYZE {table}")
    columns, values = ("", "") if table == "job" else ("session_id, ", f"'{await writer.session()}', ")
    await writer.db.execute(
        f"INSERT INTO {table} ({columns}lease_expires_at) SELECT {values}now() + interval '1 hour' * CASE WHEN n % 100 = 0 THEN -1 ELSE 1 END FROM generate_series(1, 3000) n"
    )
    scans = f"SELECT coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = '{table}'"
    read = f"SELECT seq_scan, pg_stat_get_xact_tuples_fetched('{table}_lease_expires_at_idx'::regclass) FROM pg_stat_xact_user_tables WHERE relname = '{table}'"
    async with writer.db.transaction():
        assert await writer.db.fetchval(scans) == 0
        assert await reap(writer.db) == 30
        seq, fetched = await writer.db.fetchrow(read)
        assert seq == 0
        assert 30 <= fetched <= 40


async def test_reapers_side_by_side_end_each_row_once(writer: Writer, database: str) -> None:
    session = await writer.session()
    await writer.db.execute(
        f"INSERT INTO message (session_id, lease_expires_at) SELECT '{session}', now() - interval '1 s' FROM generate_series(1, 500); DELETE FROM rowcast.outbox"
    )

    async def work() -> int:
        db = await asyncpg.connect(database)
        total = 0
        while await db.fetchval("SELECT EXISTS (SELECT FROM message WHERE lease_expires_at IS NOT NULL)"):
            total += await reap(db, 20)
        await db.close()
        return total

    assert sum(await asyncio.gather(*(work() for _ in range(4)))) == 500
    assert len(await writer.outbox()) == 500


async def test_the_hub_reaps_and_its_owner_may_no_more_than_that(writer: Writer, stranger: str) -> None:
    """Also where row security is on: its owner has policies."""
    ids = {table: await leased(writer, table, PAST) for table in STARTED}
    step = await writer.insert("job_step", job_id=ids["job"])
    for table in ("session", *TABLES):
        await writer.db.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    await writer.db.execute(f"GRANT rowcast_hub TO {stranger}; SET ROLE {stranger}; SET row_security = off")
    assert await reap(writer.db) == 3
    for forbidden in ("SELECT rowcast.reap_messages(1)", "SELECT rowcast.end_steps('{}')", "UPDATE message SET text = ''"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.db.execute(forbidden)
    await writer.db.execute("RESET ROLE; SET ROLE rowcast_owner; RESET row_security")
    for forbidden in (
        *(
            "UPDATE message SET text = ''",
            "UPDATE message SET revision = 0",
            "UPDATE job SET result = NULL",
            "UPDATE job_step SET state = NULL",
        ),
        *("UPDATE request SET response = ''", "DELETE FROM job", "INSERT INTO job DEFAULT VALUES"),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.db.execute(forbidden)
    await writer.db.execute("RESET ROLE")
    assert (await row(writer.db, "job_step", step))["status"] == "failed"


async def test_one_that_cannot_be_ended_keeps_no_other_from_it(writer: Writer) -> None:
    """A constraint or a trigger of the user's may refuse any change of a row."""
    db, session = writer.db, await writer.session()
    for text in ("refused", "one", "two"):
        await db.execute("SELECT rowcast.message_start($1::uuid, $2, lease => '0.01 s')", session, text)
    await db.execute("SELECT rowcast.job_start(lease => '0.01 s')")
    await db.execute("ALTER TABLE message ADD CONSTRAINT polite CHECK (text <> 'refused') NOT VALID")
    await asyncio.sleep(0.02)
    said: list[str] = []
    db.add_log_listener(lambda _, message: said.append(message.message))
    assert await db.fetchval("SELECT rowcast.reap()") == 3
    assert await db.fetchval("SELECT array_agg(text ORDER BY text) FROM message WHERE status = 'failed'") == ["one", "two"]
    assert await db.fetchval("SELECT array_agg(status) FROM job") == ["failed"]
    assert len(said) == 1
    assert "a message whose lease ran out cannot be ended" in said[0]
    assert "polite" in said[0]
    await db.execute("ALTER TABLE message DROP CONSTRAINT polite")
    assert await db.fetchval("SELECT rowcast.reap()") == 1


@pytest.mark.parametrize("start", ["message_start($1::uuid)", "job_start(session_id => $1::uuid)", "request_start($1::uuid)"])
async def test_what_begins_is_durable_whatever_the_session_says(writer: Writer, start: str) -> None:
    session = await writer.session()
    await writer.db.execute("SET synchronous_commit = off")
    async with writer.db.transaction():
        await writer.db.execute(f"SELECT rowcast.{start}", session)
        assert await writer.db.fetchval("SHOW synchronous_commit") == "on"
