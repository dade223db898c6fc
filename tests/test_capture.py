"""What a write becomes in the outbox."""

import json
import re
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from rowcast import schema

from .rig import Writer, on_database


async def captured(writer: Writer) -> list[tuple[str, Any]]:
    return [(row["type"], json.loads(row["payload"])) for row in await writer.outbox()]


async def types(writer: Writer) -> list[str]:
    return [type for type, _ in await captured(writer)]


@pytest.fixture
def session(runner: Any, writer: Writer) -> str:
    return runner.run(writer.session())


async def test_an_insert_that_names_only_what_it_must_works(writer: Writer, session: str) -> None:
    await writer.insert("request", session_id=session)
    await writer.insert("message", session_id=session)
    job: Any = await writer.db.fetchval("INSERT INTO job DEFAULT VALUES RETURNING id")
    await writer.insert("job_step", job_id=job)
    assert await types(writer) == ["request_update", "agent.message.appended", "task.created", "job_step.updated"]


async def test_request_update_says_what_it_must(writer: Writer, session: str) -> None:
    request = await writer.insert("request", session_id=session, request="hello")
    await writer.outbox()
    await writer.update("request", request, status="done", response="hi")
    ((type, payload),) = await captured(writer)
    row = await writer.db.fetchrow("SELECT *, date_part('epoch', updated_at) AS epoch FROM request WHERE id = $1", request)
    assert type == "request_update"
    assert payload == {
        "request_id": str(request),
        "session_id": session,
        "status": "done",
        "updated_at": row["epoch"],
        "has_response": True,
        "has_error": False,
        "sequence_number": row["sequence_number"],
    }


async def test_only_real_changes_become_events(writer: Writer, session: str) -> None:
    request = await writer.insert("request", session_id=session)
    message = await writer.message(session, "text")
    job = await writer.insert("job", session_id=session)
    step = await writer.insert("job_step", job_id=job)
    await writer.outbox()
    for table, id in (("request", request), ("message", message), ("job", job), ("job_step", step)):
        before = await writer.db.fetchval(f"SELECT updated_at FROM {table} WHERE id = $1", id)
        await writer.update(table, id, created_at=before)  # a heartbeat, to us
        assert await writer.db.fetchval(f"SELECT updated_at FROM {table} WHERE id = $1", id) > before
    await writer.update("request", request, request="asked otherwise")
    await writer.update("message", message, status="streaming", text="text")
    await writer.update("job", job, progress=0)
    assert await types(writer) == []


async def test_text_that_grows_is_told_as_a_delta(writer: Writer, session: str) -> None:
    message = await writer.message(session, "né🎯")
    await writer.outbox()
    await writer.db.execute("UPDATE message SET text = text || '语𝄞!' WHERE id = $1", message)
    ((type, payload),) = await captured(writer)
    assert type == "message.delta"
    assert payload.pop("timestamp").endswith("+00:00")
    assert payload == {"message_id": str(message), "offset": 3, "delta": "语𝄞!"}


@pytest.mark.parametrize(
    ("change", "type", "carries"),
    [
        ({"text": "other"}, "message.updated", {"text": "other"}),
        ({"text": "te"}, "message.updated", {"text": "te"}),
        ({"metadata": '{"a": 1}'}, "message.updated", {}),
        ({"text": "text and more", "metadata": '{"a": 1}'}, "message.updated", {"offset": 4, "delta": " and more"}),
        ({"status": "completed"}, "message.completed", {}),
        ({"status": "completed", "text": "text and more"}, "message.completed", {"offset": 4, "delta": " and more"}),
        ({"status": "completed", "text": "other"}, "message.completed", {"text": "other"}),
        ({"status": "failed", "metadata": '{"error": "no luck"}'}, "message.failed", {"errorMessage": "no luck"}),
        ({"role": "system"}, "message.updated", {}),
    ],
)
async def test_no_event_repeats_text_that_was_sent(
    writer: Writer, session: str, change: dict[str, str], type: str, carries: dict[str, Any]
) -> None:
    message = await writer.message(session, "text")
    await writer.outbox()
    await writer.update("message", message, **change)
    ((seen, payload),) = await captured(writer)
    told = {**payload, **({"text": payload["message"]["text"]} if "text" in payload["message"] else {})}
    assert seen == type
    assert {name: told[name] for name in told if name in ("text", "offset", "delta", "errorMessage")} == carries


@pytest.mark.parametrize(
    ("kind", "noun", "prefix", "middle"),
    [
        ("ingest", "job", "ingest.job", "updated"),
        ("agent", "run", "agent.run", "updated"),
        ("workflow", "run", "workflow.run", "updated"),
        ("task", "job", "task", "progress"),
    ],
)
@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_the_life_of_a_job(writer: Writer, session: str, kind: str, noun: str, prefix: str, middle: str, end: str) -> None:
    job = await writer.insert("job", session_id=session, kind=kind)
    await writer.update("job", job, status="running")
    await writer.update("job", job, progress=40.5, stage="reading", message="page 4")
    await writer.update("job", job, status=end, error="oh" if end == "failed" else None, result='{"pages": 10}')
    events = await captured(writer)
    assert [type for type, _ in events] == [f"{prefix}.created", f"{prefix}.{middle}", f"{prefix}.{middle}", f"{prefix}.{end}"]
    assert events[2][1][noun]["progress"] == 40.5
    assert events[3][1][noun]["result"] == {"pages": 10}
    assert events[3][1].get("errorMessage") == ("oh" if end == "failed" else None)


async def test_steps_are_told_by_the_kind_of_their_job(writer: Writer, session: str) -> None:
    seen = {}
    for kind in ("agent", "workflow"):
        job = await writer.insert("job", session_id=session, kind=kind)
        step = await writer.insert("job_step", job_id=job, name="plan")
        await writer.update("job_step", step, status="running")
        await writer.update("job_step", step, state='{"tokens": 3}')
        await writer.update("job_step", step, name="plan well")
        await writer.update("job_step", step, status="failed", error="oh")
        rows = await writer.outbox()
        assert {row["job_id"] for row in rows} == {str(job)}
        assert {row["session_id"] for row in rows} == {session}
        assert json.loads(rows[-1]["payload"])["errorMessage"] == "oh"
        seen[kind] = [row["type"] for row in rows[1:]]
    assert seen["agent"] == ["agent.step.updated"] * 2 + ["workflow.node_state.updated"] + ["agent.step.updated"] * 2
    assert seen["workflow"] == [
        "workflow.node_state.updated",
        "workflow.node.started",
        "workflow.node_state.updated",
        "workflow.node_state.updated",
        "workflow.node.failed",
    ]


async def test_the_audience_is_session_project_and_job(writer: Writer) -> None:
    project, other = await writer.project(), await writer.project()
    session = await writer.session(project)
    job = await writer.insert("job", session_id=session)
    elsewhere = await writer.insert("job", session_id=session, project_id=other)
    alone = await writer.insert("job", kind="ingest")
    await writer.insert("job_step", job_id=elsewhere)
    await writer.message(session, job_id=job)
    await writer.insert("request", session_id=session)
    audiences = [(row["session_id"], row["project_id"], row["job_id"]) for row in await writer.outbox()]
    assert audiences == [
        (session, str(project), str(job)),
        (session, str(other), str(elsewhere)),
        (None, None, str(alone)),
        (session, str(other), str(elsewhere)),
        (session, str(project), str(job)),
        (session, str(project), None),
    ]


async def test_a_deletion_is_told_to_the_old_audience(writer: Writer, session: str) -> None:
    request = await writer.insert("request", session_id=session)
    message = await writer.message(session, "secret")
    job = await writer.insert("job", session_id=session)
    step = await writer.insert("job_step", job_id=job)
    await writer.outbox()
    for table, id in (("request", request), ("message", message), ("job_step", step), ("job", job)):
        await writer.db.execute(f"DELETE FROM {table} WHERE id = $1", id)
    rows = await writer.outbox()
    assert [row["type"] for row in rows] == ["request.deleted", "message.deleted", "job_step.deleted", "job.deleted"]
    assert {row["session_id"] for row in rows} == {session}
    assert "secret" not in rows[1]["text"]


async def test_a_row_that_moves_leaves_one_audience_and_enters_the_other(writer: Writer, session: str) -> None:
    project = await writer.project()
    other = await writer.session(project)
    ids = {
        "request": await writer.insert("request", session_id=session),
        "message": await writer.message(session, "text"),
        "job": await writer.insert("job", session_id=session),
    }
    await writer.outbox()
    for table, id in ids.items():
        await writer.db.execute(f"UPDATE {table} SET session_id = $2::uuid WHERE id = $1", id, other)
    rows = await writer.outbox()
    assert [(row["type"], row["session_id"], row["project_id"]) for row in rows] == [
        ("request.deleted", session, None),
        ("request_update", other, str(project)),
        ("message.deleted", session, None),
        ("agent.message.appended", other, str(project)),
        ("job.deleted", session, None),
        ("task.progress", None, None),  # to who follows the job itself
        ("task.created", other, str(project)),
    ]
    assert json.loads(rows[3]["payload"])["message"]["text"] == "text"


async def test_a_message_that_joins_a_job_is_new_to_its_followers_only(writer: Writer) -> None:
    project = await writer.project()
    session = await writer.session(project)
    job, other = await writer.insert("job", session_id=session), await writer.insert("job", session_id=session)
    message = await writer.message(session, "text")
    await writer.outbox()
    for target in (job, other, None):
        await writer.update("message", message, job_id=target)
    rows = await writer.outbox()
    ours = (session, str(project), None)
    assert [(row["type"], (row["session_id"], row["project_id"], row["job_id"])) for row in rows] == [
        ("message.updated", ours),
        ("agent.message.appended", (None, None, str(job))),
        ("message.deleted", (None, None, str(job))),
        ("message.updated", ours),
        ("agent.message.appended", (None, None, str(other))),
        ("message.deleted", (None, None, str(other))),
        ("message.updated", ours),
    ]
    assert ["text" in json.loads(row["payload"])["message"] for row in rows] == [False, True, False, False, True, False, False]


async def test_a_job_that_changes_its_project_stays_where_it_was_followed(writer: Writer) -> None:
    first, second = await writer.project(), await writer.project()
    session = await writer.session(first)
    job = await writer.insert("job", session_id=session)
    await writer.outbox()
    await writer.update("job", job, project_id=second)
    rows = await writer.outbox()
    assert [(row["type"], row["session_id"], row["project_id"], row["job_id"]) for row in rows] == [
        ("job.deleted", None, str(first), None),
        ("task.progress", session, None, str(job)),
        ("task.created", None, str(second), None),
    ]


async def test_a_row_whose_key_changes_is_another_row(writer: Writer, session: str) -> None:
    message = await writer.message(session)
    await writer.outbox()
    await writer.db.execute("UPDATE message SET id = gen_random_uuid() WHERE id = $1", message)
    assert sorted(await types(writer)) == ["agent.message.appended", "message.deleted"]


async def test_a_cascade_is_captured(writer: Writer, session: str) -> None:
    await writer.message(session)
    await writer.insert("request", session_id=session)
    await writer.outbox()
    await writer.db.execute("DELETE FROM session WHERE id = $1::uuid", session)
    first, *rows = await writer.outbox()
    assert first["type"] == "access.changed"
    assert sorted(row["type"] for row in rows) == ["message.deleted", "request.deleted"]
    assert {row["session_id"] for row in rows} == {session}


async def test_what_is_rolled_back_was_never_there(writer: Writer, session: str) -> None:
    transaction = writer.db.transaction()
    await transaction.start()
    await writer.message(session)
    await transaction.rollback()
    async with writer.db.transaction():
        await writer.message(session, "kept")
        savepoint = writer.db.transaction()
        await savepoint.start()
        await writer.message(session, "not kept")
        await savepoint.rollback()
    rows = await writer.outbox()
    assert [json.loads(row["payload"])["message"]["text"] for row in rows] == ["kept"]


async def test_upserts_and_merges_are_captured(writer: Writer, session: str) -> None:
    message = await writer.message(session, "a")
    await writer.outbox()
    upsert = "INSERT INTO message (id, session_id, text) VALUES ($1, $2::uuid, $3) ON CONFLICT (id) DO UPDATE SET text = excluded.text"
    await writer.db.execute(upsert, message, session, "ab")
    await writer.db.execute(upsert, "00000000-0000-0000-0000-000000000001", session, "new")
    await writer.db.copy_records_to_table("message", records=[(session, "copied")], columns=["session_id", "text"])
    assert await types(writer) == ["message.delta", "agent.message.appended", "agent.message.appended"]


async def test_a_bulk_update_is_set_based_and_rings_once(writer: Writer, session: str, database: str) -> None:
    await writer.db.execute("INSERT INTO message (session_id, text) SELECT $1::uuid, 'x' FROM generate_series(1, 10000)", session)
    await writer.outbox()
    bells: list[str] = []
    listening = await asyncpg.connect(database)
    await listening.add_listener("rowcast_doorbell", lambda *a: bells.append(a[2]))
    async with writer.db.transaction():
        await writer.db.execute("UPDATE message SET text = text || 'y'")
        await writer.db.execute("UPDATE message SET text = text || 'z'")
    rows = await writer.outbox()
    assert [row["type"] for row in rows] == ["message.delta"] * 20_000
    await listening.execute("SELECT 1")
    await listening.execute("SELECT 1")
    assert bells == ["rowcast_doorbell"]
    await listening.close()


async def test_an_update_of_nothing_rings_no_bell(writer: Writer, database: str) -> None:
    await writer.db.execute("UPDATE message SET text = 'x'")
    await writer.db.execute("DELETE FROM message")
    assert await types(writer) == []


async def test_the_audience_is_looked_up_by_key_after_the_table_has_grown(writer: Writer, session: str, database: str) -> None:
    """A plan made for good when `session` had one row must not scan it once it is large."""
    message = await writer.message(session)
    await writer.db.execute("VACUUM ANALYZE session")
    for n in range(8):  # generic plans come after the fifth
        await writer.update("message", message, status=("pending", "streaming")[n % 2])
    await on_database(database, "INSERT INTO session (id) SELECT gen_random_uuid() FROM generate_series(1, 50000)")
    async with writer.db.transaction():
        scanned = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables WHERE relid = 'session'::regclass"
        before = await writer.db.fetchval(scanned)
        await writer.update("message", message, status="completed")
        assert await writer.db.fetchval(scanned) - before < 50


SIZES = [*range(7_990, 8_011), 1_000_000]


@pytest.mark.parametrize("character", ["a", "语", "🎯", '"'])
async def test_no_size_makes_a_write_fail(writer: Writer, session: str, character: str) -> None:
    message = await writer.message(session)
    for size in SIZES:
        whole, rest = divmod(size - len(str(size)), len(character.encode()))
        await writer.update("message", message, text=str(size) + "a" * rest + character * whole)
    assert len(await types(writer)) == len(SIZES) + 1


async def test_a_text_that_json_cannot_hold_does_not_fail_the_write(writer: Writer, session: str) -> None:
    message = await writer.message(session)
    await writer.outbox()
    await writer.db.execute("UPDATE message SET text = repeat('0123456789abcdef', 17000000) WHERE id = $1", message)
    ((type, payload),) = await captured(writer)
    assert type == "message.delta"
    assert payload["delta"] is None  # the reader reads the row


async def test_odd_text_survives(writer: Writer, session: str) -> None:
    odd = "\x01\x1f\r\n\t\u2028\u2029\\\"'\x7f\u200b\ufeff\ud7ff\U0010ffff$1 {} %s"
    message = await writer.message(session, odd)
    (row,) = await writer.outbox()
    assert json.loads(row["payload"])["message"]["text"] == odd
    assert not set("\r\n") & set(row["text"])
    assert message


async def test_a_writer_needs_rights_on_its_own_table_and_nothing_else(writer: Writer, session: str, database: str) -> None:
    """And what it plants in its own schema is not called by the capture, which runs as another role."""
    role = "rowcast_test_writer"
    await writer.db.execute(
        f"""DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD 'secret'; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        CREATE SCHEMA planted; GRANT ALL ON SCHEMA planted TO {role};
        CREATE TABLE planted.called (what text); GRANT ALL ON planted.called TO PUBLIC;
        GRANT INSERT, UPDATE, DELETE, SELECT ON message TO {role}"""
    )
    try:
        async with writer.db.transaction():
            await writer.db.execute(f"SET LOCAL ROLE {role}")
            await writer.db.execute(
                """SET LOCAL search_path = planted, public, pg_catalog;
                CREATE FUNCTION planted.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$INSERT INTO planted.called VALUES ('pg_notify')$$;
                CREATE FUNCTION planted.length(text) RETURNS int LANGUAGE sql AS $$INSERT INTO planted.called VALUES ('length'); SELECT 1$$;
                CREATE FUNCTION planted.now() RETURNS timestamptz LANGUAGE sql AS $$INSERT INTO planted.called VALUES ('now'); SELECT '-infinity'::timestamptz$$;
                CREATE FUNCTION planted.eq(uuid, uuid) RETURNS bool LANGUAGE sql AS $$INSERT INTO planted.called VALUES ('='); SELECT false$$;
                CREATE OPERATOR planted.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = planted.eq);
                CREATE TEMP TABLE outbox (a int); CREATE TEMP TABLE session (a int)"""
            )
            id = await writer.db.fetchval("INSERT INTO public.message (session_id, text) VALUES ($1::uuid, 'a') RETURNING id", session)
            await writer.db.execute("UPDATE public.message SET text = text || 'b' WHERE id OPERATOR(pg_catalog.=) $1", id)
            await writer.db.execute("DELETE FROM public.message WHERE id OPERATOR(pg_catalog.=) $1", id)
        assert await types(writer) == ["agent.message.appended", "message.delta", "message.deleted"]
        assert await writer.db.fetch("SELECT * FROM planted.called") == []
        for forbidden in (
            "SELECT * FROM rowcast.outbox",
            "SELECT rowcast.sequence(1)",
            "DELETE FROM rowcast.event",
            "SELECT rowcast.adopt()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with writer.db.transaction():
                    await writer.db.execute(f"SET LOCAL ROLE {role}")
                    await writer.db.execute(forbidden)
    finally:
        await on_database(database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_columns_that_capture_reads_cannot_go_unnoticed(writer: Writer, session: str) -> None:
    """A drop is refused by PostgreSQL, a rename is followed, a new column is nobody's business."""
    with pytest.raises(asyncpg.DependentObjectsStillExistError, match="message_event"):
        await writer.db.execute("ALTER TABLE message DROP COLUMN metadata")
    await writer.db.execute("ALTER TABLE message RENAME COLUMN metadata TO extra; ALTER TABLE message ADD COLUMN private text")
    message = await writer.message(session)
    await writer.update("message", message, private="x")
    await writer.update("message", message, extra='{"a": 1}')
    events = await captured(writer)
    assert [type for type, _ in events] == ["agent.message.appended", "message.updated"]
    assert events[1][1]["message"]["metadata"] == {"a": 1}
    assert "private" not in events[1][1]["message"]


async def test_two_phase_commit_needs_a_silent_bell(writer: Writer, session: str, db: asyncpg.Connection) -> None:
    if await db.fetchval("SHOW max_prepared_transactions") == "0":
        pytest.skip("the server takes no prepared transactions")
    await db.execute("BEGIN; SET LOCAL rowcast.doorbell = off")
    await writer.message(session, "prepared")
    await db.execute("PREPARE TRANSACTION 'rowcast test'")
    assert await types(writer) == []
    await db.execute("COMMIT PREPARED 'rowcast test'")
    assert await types(writer) == ["agent.message.appended"]
    await db.execute("BEGIN")
    await writer.message(session)
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
        await db.execute("PREPARE TRANSACTION 'rowcast test'")


async def test_functions_may_be_denied_to_the_public_by_default(empty_database: str) -> None:
    role = "rowcast_test_denied"
    await on_database(
        empty_database,
        "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    )
    await schema.migrate(empty_database, "head")
    db = await asyncpg.connect(empty_database)
    session = await Writer(db).session()
    await db.execute(f"GRANT ALL ON message TO {role}; SET ROLE {role}")
    id = await Writer(db).message(session)
    await Writer(db).update("message", id, text="x")
    await db.execute("RESET ROLE")
    await db.execute("SELECT rowcast.adopt()")
    assert await db.fetchval("SELECT n FROM rowcast.sequence(10)") == 2
    await db.close()
    await on_database(empty_database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_row_security_hides_no_audience_and_fails_no_write(writer: Writer, database: str) -> None:
    project = await writer.project()
    session = await writer.session(project)
    job = await writer.insert("job", session_id=session, kind="agent")
    await writer.outbox()
    await writer.db.execute(
        "ALTER TABLE session ENABLE ROW LEVEL SECURITY; ALTER TABLE job ENABLE ROW LEVEL SECURITY; SET row_security = off"
    )
    await writer.insert("job_step", job_id=job)  # by its owner, who is above policies; the capture's role is not
    await writer.db.execute("RESET row_security")
    (row,) = await writer.outbox()
    assert (row["type"], row["session_id"], row["project_id"]) == ("agent.step.updated", session, str(project))


async def test_one_row_and_many_are_told_alike(writer: Writer, session: str) -> None:
    """Growing text of one row has a way of its own through the capture."""
    other, job = await writer.session(await writer.project()), await writer.insert("job", session_id=session)
    texts = ["", "a", "ab", "ab\n", "b", "a\U0001f600", "a\U0001f600é", "x" * 3000]
    changes = ["", ", status = 'completed'", ", status = 'failed'", ", role = 'user'", ", metadata = '{\"a\": 1}'"]
    changes += [", session_id = $3::uuid", ", job_id = $4::uuid", ", job_id = $4::uuid, status = 'completed'"]
    for before in texts:
        ids = [await writer.message(session, before) for _ in range(3)]
        for after in texts:
            for change in changes:
                told = []
                for some in (ids[:1], ids[1:]):
                    await writer.outbox()
                    update = f"UPDATE message SET text = $2{change} WHERE id = ANY($1::uuid[]) AND ($3::text, $4::text) IS NOT NULL"
                    await writer.db.execute(update, some, after, other, str(job))
                    rows = [
                        (row["session_id"], row["project_id"], row["job_id"], row["type"], row["text"]) for row in await writer.outbox()
                    ]
                    told.append([re.sub(rf"{'|'.join(map(str, ids))}|2\d\d\d-[^\"]*", "…", repr(row)) for row in rows])
                assert sorted(told[0] * 2) == sorted(told[1]), f"{before!r} to {after!r}{change}"
                back = "UPDATE message SET text = $2, status = 'streaming', role = 'assistant', metadata = '{}', session_id = $3, job_id = NULL WHERE id = ANY($1)"
                await writer.db.execute(back, ids, before, session)


async def test_a_column_of_any_name_may_be_added(writer: Writer, session: str) -> None:
    """Also those that the functions use for rows."""
    job = await writer.insert("job", session_id=session)
    ids = {"request": await writer.insert("request", session_id=session), "message": await writer.message(session), "job": job}
    ids["job_step"] = await writer.insert("job_step", job_id=job)
    await writer.outbox()
    for table, id in ids.items():
        await writer.db.execute(f"ALTER TABLE {table} ADD COLUMN n int, ADD COLUMN o int, ADD COLUMN e int, ADD COLUMN at int")
        await writer.db.execute(f"UPDATE {table} SET {'text' if table == 'message' else 'error'} = 'grew' WHERE id = $1", id)
        await writer.db.execute(f"DELETE FROM {table} WHERE id = $1", id) if table != "job" else None
    seen = await types(writer)
    assert seen[:4] == ["request_update", "request.deleted", "message.delta", "message.deleted"]
    assert len(seen) == 7


async def test_the_audience_is_also_the_request_and_the_owner_of_the_session(writer: Writer) -> None:
    session, other = await writer.session(await writer.project()), await writer.session()
    await writer.db.execute("UPDATE session SET owner_id = CASE WHEN id = $1::uuid THEN 'ann' ELSE 'bob' END", session)
    await writer.outbox()
    request, message = await writer.insert("request", session_id=session), await writer.message(session, "a")
    job = await writer.insert("job", session_id=session)
    step = await writer.insert("job_step", job_id=job)
    await writer.update("message", message, text="ab")
    await writer.update("request", request, session_id=UUID(other))
    await writer.update("job", job, session_id=UUID(other))
    await writer.update("message", message, job_id=job)
    await writer.db.execute("DELETE FROM job_step WHERE id = $1", step)
    await writer.db.execute("DELETE FROM request WHERE id = $1", request)
    rows = await writer.outbox()
    assert [(row["type"], row["user_id"], row["request_id"], row["channel"]) for row in rows] == [
        ("request_update", "ann", str(request), "request_update"),
        ("agent.message.appended", "ann", None, None),
        ("task.created", "ann", None, None),
        ("job_step.updated", "ann", None, None),
        ("message.delta", "ann", None, None),
        ("request.deleted", "ann", None, None),  # moved: to who follows the request itself, it is there as before
        ("request_update", "bob", str(request), "request_update"),
        ("job.deleted", "ann", None, None),
        ("task.progress", None, None, None),
        ("task.created", "bob", None, None),
        ("message.updated", "ann", None, None),
        ("agent.message.appended", None, None, None),
        ("job_step.deleted", "bob", None, None),
        ("request.deleted", "bob", str(request), None),
    ]
    assert {row["table_name"] for row in rows} == {None}


async def test_the_session_is_looked_up_once(writer: Writer, session: str) -> None:
    """For its project and its owner together."""
    ids = {"message": await writer.message(session, "a"), "request": await writer.insert("request", session_id=session)}
    ids["job"] = await writer.insert("job", session_id=session)
    ids["job_step"] = await writer.insert("job_step", job_id=ids["job"])
    scans = "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_all_tables WHERE relid = 'session'::regclass"
    for table, change in (("message", "role = 'user'"), ("message", "text = text || 'b'"), ("request", "error = 'x'"), ("job", "error = 'x'"), ("job_step", "error = 'x'")):  # fmt: skip
        async with writer.db.transaction():
            before = await writer.db.fetchval(scans)
            await writer.db.execute(f"UPDATE {table} SET {change} WHERE id = $1", ids[table])
            assert await writer.db.fetchval(scans) - before == 1, (table, change)
