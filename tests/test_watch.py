"""Any table: watch, unwatch, emit, and the command line around them."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from rowcast import schema

from .rig import Hub
from .test_cli import rowcast
from .test_docs import embedded_programs

Told = tuple[str, dict[str, str], Any]


async def told(db: asyncpg.Connection) -> list[Told]:
    """What the outbox holds, and empty it: type, audience, payload without its timestamp."""
    rows = await db.fetch("SELECT * FROM rowcast.outbox ORDER BY id")
    await db.execute("DELETE FROM rowcast.outbox")
    names = ("session_id", "project_id", "job_id", "user_id", "table_name", "channel")
    events = []
    for row in rows:
        payload = json.loads(row["payload"])
        assert payload.pop("timestamp").endswith("+00:00")
        events.append(
            (row["type"], {name.removesuffix("_id").removesuffix("_name"): row[name] for name in names if row[name] is not None}, payload)
        )
    return events


def nested(depth: int) -> str:
    """An SQL literal of arrays in each other."""
    return f"'{'[' * depth}{']' * depth}'"


@pytest.fixture
def orders(runner: asyncio.Runner, db: asyncpg.Connection) -> asyncpg.Connection:
    runner.run(
        db.execute(
            """CREATE TABLE orders (id int PRIMARY KEY, session_id text, project_id int, owner uuid, status text, total numeric, secret text);
               SELECT rowcast.watch('orders', '{status,total}', session_column => 'session_id')"""
        )
    )
    return db


async def test_the_life_of_a_row(orders: asyncpg.Connection) -> None:
    await orders.execute("INSERT INTO orders (id, session_id, status, total, secret) VALUES (1, 's', 'new', 12.50, 'x')")
    await orders.execute("UPDATE orders SET status = 'paid'")
    await orders.execute("DELETE FROM orders")
    assert await told(orders) == [
        ("orders.inserted", {"session": "s"}, {"key": {"id": 1}, "row": {"status": "new", "total": 12.5}}),
        ("orders.updated", {"session": "s"}, {"key": {"id": 1}, "row": {"status": "paid", "total": 12.5}}),
        ("orders.deleted", {"session": "s"}, {"key": {"id": 1}}),
    ]


async def test_only_real_changes_of_watched_columns_are_told(orders: asyncpg.Connection) -> None:
    await orders.execute("INSERT INTO orders (id, session_id, status) SELECT i, 's', 'new' FROM generate_series(1, 3) i")
    assert len(await told(orders)) == 3
    for where in ("id = 1", "true", "false"):
        await orders.execute(f"UPDATE orders SET secret = 'other', status = status WHERE {where}")
    assert await told(orders) == []
    await orders.execute("UPDATE orders SET status = CASE id WHEN 2 THEN 'paid' ELSE status END, secret = 'again'")
    assert [(type, payload["key"]) for type, _, payload in await told(orders)] == [("orders.updated", {"id": 2})]
    await orders.execute("BEGIN; INSERT INTO orders (id) VALUES (4); ROLLBACK")
    assert await told(orders) == []


async def test_without_an_audience_the_table_is_told(db: asyncpg.Connection) -> None:
    await db.execute(
        "CREATE TABLE price (id int, amount int, PRIMARY KEY (id) INCLUDE (amount)); SELECT rowcast.watch('price', ARRAY['*'], channel => 'prices')"
    )
    await db.execute("INSERT INTO price VALUES (1, 5); TRUNCATE price")
    assert await told(db) == [
        ("price.inserted", {"table": "price", "channel": "prices"}, {"key": {"id": 1}, "row": {"id": 1, "amount": 5}}),
        ("price.truncated", {"table": "price", "channel": "prices"}, {}),
    ]


@pytest.mark.parametrize("odd", [None, "", "x" * 129, "a\nb", "a\x7fb", "a\u2028b"])
async def test_a_row_that_nobody_can_follow_is_told_to_the_table(orders: asyncpg.Connection, odd: str | None) -> None:
    """Never nowhere: one event, also when it moves away from somebody."""
    insert = "INSERT INTO orders (id, session_id, status) VALUES ($1, $2, 'new')"
    await orders.execute(insert, 1, odd)
    await orders.execute(insert.replace("VALUES", "SELECT v.* FROM (VALUES").replace("'new')", "'new'), ($1 + 1, $2, 'new')) v"), 2, odd)
    assert [(type, who) for type, who, _ in await told(orders)] == [("orders.inserted", {"table": "orders"})] * 3
    await orders.execute("UPDATE orders SET session_id = 's' WHERE id = 1")
    await orders.execute("UPDATE orders SET session_id = $1 WHERE id = 1", odd)
    assert [(type, who) for type, who, _ in await told(orders)] == [
        ("orders.deleted", {"table": "orders"}), ("orders.inserted", {"session": "s"}),
        ("orders.deleted", {"session": "s"}), ("orders.inserted", {"table": "orders"}),
    ]  # fmt: skip


async def test_a_row_that_moves_is_told_to_both(orders: asyncpg.Connection) -> None:
    await orders.execute(
        "SELECT rowcast.watch('orders', '{status}', session_column => 'session_id', project_column => 'project_id', user_column => 'owner')"
    )
    owner = "00000000-0000-4000-8000-000000000001"
    await orders.execute("INSERT INTO orders VALUES (1, 'a', 7, $1, 'new')", owner)
    await told(orders)
    await orders.execute("UPDATE orders SET session_id = 'b'")
    row = {"key": {"id": 1}, "row": {"status": "new"}}
    assert await told(orders) == [
        ("orders.deleted", {"session": "a"}, {"key": {"id": 1}}),
        ("orders.updated", {"project": "7", "user": owner}, row),
        ("orders.inserted", {"session": "b"}, row),
    ]
    await orders.execute("UPDATE orders SET id = 2")
    everybody = {"session": "b", "project": "7", "user": owner}
    assert await told(orders) == [
        ("orders.deleted", everybody, {"key": {"id": 1}}),
        ("orders.inserted", everybody, {"key": {"id": 2}, "row": {"status": "new"}}),
    ]


async def test_rows_that_exchange_their_keys_are_gone_before_they_are_back(orders: asyncpg.Connection) -> None:
    await orders.execute("CREATE TABLE seat (n int, who text, PRIMARY KEY (n) DEFERRABLE); SELECT rowcast.watch('seat', '{who}')")
    await orders.execute("INSERT INTO seat VALUES (1, 'a'), (2, 'b')")
    await told(orders)
    await orders.execute("UPDATE seat SET n = 3 - n")
    assert [(type, payload) for type, _, payload in await told(orders)] == [
        ("seat.deleted", {"key": {"n": 1}}),
        ("seat.deleted", {"key": {"n": 2}}),
        ("seat.inserted", {"key": {"n": 2}, "row": {"who": "a"}}),
        ("seat.inserted", {"key": {"n": 1}, "row": {"who": "b"}}),
    ]


async def test_one_row_and_many_are_told_alike(orders: asyncpg.Connection) -> None:
    """The two ways through capture: the same random changes, statement by statement and all in one."""
    chance = random.Random(7)
    for watch in (
        "'{status,total}', session_column => 'session_id', project_column => 'project_id'",
        "'{*}', session_column => 'session_id'",
        "'{status}', user_column => 'secret'",
    ):
        for key in ("PRIMARY KEY", "NOT NULL"):
            await orders.execute(
                f"DROP TABLE orders; CREATE TABLE orders (id int {key}, session_id text, project_id int, status text, total int, secret text)"
            )
            await orders.execute(f"SELECT rowcast.watch('orders', {watch})")
            await orders.reload_schema_state()

            def row(id: int) -> tuple[Any, ...]:
                return (id, *(chance.choice([None, "", "a", "b"]) if text else chance.choice([None, 1, 2]) for text in (1, 0, 1, 0, 1)))

            before = [row(id) for id in range(1, 61)]
            after = [row(id + chance.choice([0, 0, 0, 100])) if chance.random() < 0.8 else before[id - 1] for id in range(1, 61)]
            seen = []
            for size in (1, 60):
                await orders.execute("DELETE FROM orders")
                await told(orders)
                for at in range(0, 60, size):
                    await orders.execute("INSERT INTO orders SELECT * FROM unnest($1::orders[])", before[at : at + size])
                inserted = await told(orders)
                for at in range(0, 60, size):
                    await orders.execute(
                        """UPDATE orders SET (id, session_id, project_id, status, total, secret) = (n.id, n.session_id, n.project_id, n.status, n.total, n.secret)
                             FROM unnest($1::int[], $2::orders[]) AS n (was, id, session_id, project_id, status, total, secret) WHERE orders.id = n.was""",
                        [old[0] for old in before[at : at + size]], after[at : at + size],
                    )  # fmt: skip
                updated = await told(orders)
                ids = [new[0] for new in after]
                for at in range(0, 60, size):
                    await orders.execute("DELETE FROM orders WHERE id = ANY($1)", ids[at : at + size])
                seen.append([sorted(map(repr, events)) for events in (inserted, updated, await told(orders))])
            assert seen[0] == seen[1]
            assert all(seen[0])


async def test_many_rows_are_paired_as_they_were(orders: asyncpg.Connection) -> None:
    await orders.execute("INSERT INTO orders (id, session_id, status) SELECT i, 's' || i % 7, 'new' FROM generate_series(1, 5000) i")
    await told(orders)
    await orders.execute("UPDATE orders SET status = id::text WHERE id IN (SELECT id FROM orders ORDER BY random())")
    events = await told(orders)
    assert len(events) == 5000
    for type, who, payload in events:
        id = payload["key"]["id"]
        assert (type, who, payload["row"]["status"]) == ("orders.updated", {"session": f"s{id % 7}"}, str(id))


async def test_on_conflict_merge_and_copy(orders: asyncpg.Connection) -> None:
    upsert = "INSERT INTO orders (id, session_id, status) VALUES (1, 's', 'a'), (2, 's', 'a') ON CONFLICT (id) DO UPDATE SET status = 'b'"
    await orders.execute(upsert.replace(", (2, 's', 'a')", ""))
    await orders.execute(upsert)
    assert sorted((type, payload["key"]["id"]) for type, _, payload in await told(orders)) == [
        ("orders.inserted", 1), ("orders.inserted", 2), ("orders.updated", 1),
    ]  # fmt: skip
    await orders.copy_records_to_table("orders", records=[(3, "s", "c"), (4, "s", "c")], columns=["id", "session_id", "status"])
    assert [payload["key"]["id"] for _, _, payload in await told(orders)] == [3, 4]
    if orders.get_server_version() < (15,):
        return
    await orders.execute(
        """MERGE INTO orders o USING generate_series(1, 6) AS i ON i = o.id
           WHEN MATCHED AND o.id < 3 THEN UPDATE SET status = 'merged' || i WHEN MATCHED THEN DELETE
           WHEN NOT MATCHED THEN INSERT (id, session_id, status) VALUES (i, 's', 'new' || i)"""
    )
    seen = {(type, payload["key"]["id"], payload.get("row", {}).get("status")) for type, _, payload in await told(orders)}
    assert seen == {
        ("orders.updated", 1, "merged1"), ("orders.updated", 2, "merged2"), ("orders.deleted", 3, None), ("orders.deleted", 4, None),
        ("orders.inserted", 5, "new5"), ("orders.inserted", 6, "new6"),
    }  # fmt: skip


async def test_a_table_without_a_key(db: asyncpg.Connection) -> None:
    """Its watched columns, as they were, say which row it is."""
    await db.execute("CREATE TABLE note (text text, hidden int); SELECT rowcast.watch('note', '{text}')")
    await db.execute("INSERT INTO note VALUES ('a', 1)")
    await db.execute("UPDATE note SET text = 'b'")
    await db.execute("UPDATE note SET hidden = 2")
    await db.execute("DELETE FROM note")
    assert [(type, payload) for type, _, payload in await told(db)] == [
        ("note.inserted", {"key": {"text": "a"}, "row": {"text": "a"}}),
        ("note.updated", {"key": {"text": "a"}, "row": {"text": "b"}}),
        ("note.deleted", {"key": {"text": "b"}}),
    ]


async def test_composite_keys_and_quoted_names(db: asyncpg.Connection) -> None:
    await db.execute(
        """CREATE SCHEMA "My-App"; CREATE TABLE "My-App"."Message Log" ("Part, 2" int, "Id""s" int, "It's" text, n text, o text, r text, change text, at text,
                                                                        PRIMARY KEY ("Id""s", "Part, 2"));
           ALTER TABLE "My-App"."Message Log" ADD COLUMN gone text; ALTER TABLE "My-App"."Message Log" DROP COLUMN gone"""
    )
    with pytest.raises(asyncpg.PostgresError, match="the name 'Message Log' is no good"):
        await db.execute("""SELECT rowcast.watch('"My-App"."Message Log"', ARRAY['*'])""")
    await db.execute("""SELECT rowcast.watch('"My-App"."Message Log"', ARRAY['It''s', 'n'], name => 'log', session_column => 'It''s')""")
    insert = """INSERT INTO "My-App"."Message Log" VALUES ($1, $2, 'ünï', 'n')"""
    await db.execute(insert, 1, 2)
    await db.execute("""UPDATE "My-App"."Message Log" SET n = 'm'""")
    await db.execute(
        """INSERT INTO "My-App"."Message Log" VALUES (3, 4, 's'), (5, 6, 's'); DELETE FROM "My-App"."Message Log" WHERE "It's" = 's'"""
    )
    key = {'Id"s': 2, "Part, 2": 1}
    events = await told(db)
    assert events[:2] == [
        ("log.inserted", {"session": "ünï"}, {"key": key, "row": {"It's": "ünï", "n": "n"}}),
        ("log.updated", {"session": "ünï"}, {"key": key, "row": {"It's": "ünï", "n": "m"}}),
    ]
    assert [type for type, _, _ in events[2:]] == ["log.inserted"] * 2 + ["log.deleted"] * 2
    row = await db.fetchrow("SELECT *, target::text AS target FROM rowcast.watches")
    assert (row["target"], row["columns"], row["session_column"], row["problems"]) == ('"My-App"."Message Log"', ["It's", "n"], "It's", [])


async def test_a_column_that_goes_breaks_no_write_and_is_reported(orders: asyncpg.Connection, database: str, tmp_path: Path) -> None:
    await orders.execute("INSERT INTO orders (id, session_id, status) VALUES (1, 's', 'new')")
    await orders.execute(
        "ALTER TABLE orders DROP COLUMN total; ALTER TABLE orders RENAME COLUMN session_id TO sid; ALTER TABLE orders ADD COLUMN later int"
    )
    await told(orders)
    await orders.execute("UPDATE orders SET status = 'b', later = 1")
    await orders.execute("UPDATE orders SET later = 2")
    await orders.execute("INSERT INTO orders (id, status) VALUES (2, 'new'), (3, 'new')")
    assert await told(orders) == [
        ("orders.updated", {"table": "orders"}, {"key": {"id": 1}, "row": {"status": "b"}}),
        ("orders.inserted", {"table": "orders"}, {"key": {"id": 2}, "row": {"status": "new"}}),
        ("orders.inserted", {"table": "orders"}, {"key": {"id": 3}, "row": {"status": "new"}}),
    ]
    status, output = await rowcast("doctor", cwd=tmp_path, DATABASE_URL=database)
    assert status == 1
    assert "wrong watch orders: column session_id is gone; column total is gone" in output
    await orders.execute(
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders DISABLE TRIGGER rowcast_insert; DROP TRIGGER rowcast_delete ON orders"
    )
    problems = await orders.fetchval("SELECT problems FROM rowcast.watches")
    assert problems[2:] == [
        "its primary key is another since: watch it again",
        "public.orders.rowcast_delete is missing: watch it again",
        "public.orders.rowcast_insert is disabled",
    ]


async def test_all_columns_are_also_later_ones(db: asyncpg.Connection) -> None:
    await db.execute("CREATE TABLE thing (id int PRIMARY KEY, a int); SELECT rowcast.watch('thing', ARRAY['*'])")
    await db.execute("INSERT INTO thing VALUES (1, 2); ALTER TABLE thing ADD COLUMN b text; UPDATE thing SET b = 'x'")
    assert (await told(db))[1][2]["row"] == {"id": 1, "a": 2, "b": "x"}


async def test_generated_columns(db: asyncpg.Connection) -> None:
    await db.execute("CREATE TABLE box (id int PRIMARY KEY, side int, area int GENERATED ALWAYS AS (side * side) STORED)")
    virtual = db.get_server_version() >= (18,)
    if virtual:
        await db.execute("ALTER TABLE box ADD COLUMN twice int GENERATED ALWAYS AS (side * 2) VIRTUAL")
        with pytest.raises(asyncpg.PostgresError, match=r"column twice of public\.box is generated when it is read"):
            await db.execute("SELECT rowcast.watch('box', '{twice}')")
    await db.execute("SELECT rowcast.watch('box', ARRAY['*'])")
    await db.execute("INSERT INTO box (id, side) VALUES (1, 2)")
    await db.execute("UPDATE box SET side = 3")
    await db.execute("INSERT INTO box (id, side) VALUES (2, 2), (3, 3)")
    assert [payload["row"] for _, _, payload in await told(db)] == [
        {"id": id, "side": side, "area": side * side} for id, side in ((1, 2), (1, 3), (2, 2), (3, 3))
    ]


ODD = """
CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TYPE pair AS (x int, y text); CREATE DOMAIN percent AS int CHECK (VALUE <= 100);
CREATE TABLE odd (id int PRIMARY KEY, j json, jb jsonb, f float8, n numeric, d date, ts timestamptz, a text[], m mood, p pair, pp pair[],
                  k percent, b bytea, t text, r int4range, i interval);
SELECT rowcast.watch('odd', ARRAY['*'], session_column => 't')
"""
ROW = r"""({id}, '{json}', '{{"a": 1}}', 'NaN', 'Infinity', '-infinity', 'infinity', '{{a,NULL,"b c"}}', 'bad', '(1,"x y")', '{{"(1,a)"}}',
 50, '\x00ff', E's\\u0000', '[1,5)', '1 day')"""


@pytest.mark.parametrize("many", [False, True])
async def test_odd_values_fail_no_write(db: asyncpg.Connection, many: bool) -> None:
    await db.execute(ODD.replace("'Infinity'", "'NaN'"))
    docs = [r'{"a": 1}', r'{"a": "x\u0000y \\u0000 \\\u0000 \ud83d\ude00 \ud83d \ude00z"}', r'{"a": 1e999999}']
    rows = [ROW.format(id=id, json=doc) for id, doc in enumerate(docs)]
    for values in [", ".join(rows)] if many else rows:
        await db.execute(f"INSERT INTO odd VALUES {values}")
    events = await told(db)
    told_rows = [payload["row"] for _, _, payload in events]
    assert [who for _, who, _ in events] == [{"session": "s\\u0000"}] * 3
    assert told_rows[0] == {
        "id": 0, "j": {"a": 1}, "jb": {"a": 1}, "f": "NaN", "n": "Infinity", "d": "-infinity", "ts": "infinity", "a": ["a", None, "b c"],
        "m": "bad", "p": {"x": 1, "y": "x y"}, "pp": [{"x": 1, "y": "a"}], "k": 50, "b": "\\x00ff", "t": "s\\u0000", "r": "[1,5)",
        "i": "1 day",
    }  # fmt: skip
    assert told_rows[1] == {**told_rows[0], "id": 1, "j": {"a": "x\ufffdy \\u0000 \\\ufffd \U0001f600 \ufffd \ufffdz"}}
    assert set(told_rows[2].pop("j")) == {"omitted"}
    assert told_rows[2] == {key: value for key, value in told_rows[0].items() if key != "j"} | {"id": 2}
    await db.execute("UPDATE odd SET j = '{\"a\": 2e999999}' WHERE id = 2")  # seen, though no jsonb can hold it
    await db.execute("UPDATE odd SET i = i")
    assert [type for type, _, _ in await told(db)] == ["odd.updated"]
    await db.execute("DELETE FROM odd")
    assert len(await told(db)) == 3


@pytest.mark.parametrize("many", [False, True])
async def test_what_is_nested_too_deep_is_null(db: asyncpg.Connection, many: bool) -> None:
    await db.execute("CREATE TABLE deep (id int PRIMARY KEY, j json, jb jsonb); SELECT rowcast.watch('deep', ARRAY['*'])")
    rows = [f"({id}, {nested(j)}, {nested(jb)})" for id, (j, jb) in enumerate([(200, 201), (201, 200), (12_000, 12_000)])]
    for values in [", ".join(rows)] if many else rows:
        await db.execute(f"INSERT INTO deep VALUES {values}")
    told_rows = [payload["row"] for _, _, payload in await told(db)]
    kept = json.loads("[" * 200 + "]" * 200)
    assert told_rows == [{"id": 0, "j": kept, "jb": None}, {"id": 1, "j": None, "jb": kept}, {"id": 2, "j": None, "jb": None}]
    await db.execute(f"UPDATE deep SET jb = {nested(300)} WHERE id = 2")
    ((type, _, payload),) = await told(db)
    assert (type, payload) == ("deep.updated", {"key": {"id": 2}, "row": {"id": 2, "j": None, "jb": None}})
    await db.execute("DELETE FROM deep")
    assert len(await told(db)) == 3


async def test_a_key_that_is_nested_too_deep_is_null(db: asyncpg.Connection) -> None:
    await db.execute("CREATE TABLE deep (jb jsonb); SELECT rowcast.watch('deep', ARRAY['*'])")
    await db.execute(f"INSERT INTO deep VALUES ({nested(201)}); DELETE FROM deep")
    assert [payload["key"] for _, _, payload in await told(db)] == [{"jb": None}] * 2


async def test_no_depth_makes_a_write_fail(db: asyncpg.Connection) -> None:
    """Whatever PostgreSQL itself takes: capture has less of the stack."""
    await db.execute("CREATE TABLE deep (id int PRIMARY KEY, jb jsonb); SELECT rowcast.watch('deep', ARRAY['*'])")
    depth = 13_000
    with pytest.raises(asyncpg.StatementTooComplexError):
        while literal := nested(depth):
            await db.execute(f"ALTER TABLE deep DISABLE TRIGGER ALL; INSERT INTO deep VALUES (1, {literal}), (2, '{{}}')")
            await db.execute("ALTER TABLE deep ENABLE TRIGGER ALL")
            await db.execute("UPDATE deep SET id = -id; UPDATE deep SET id = -id WHERE id = -1; DELETE FROM deep")
            assert await told(db)
            depth += 250
    assert depth > 13_000


async def test_what_a_writer_sets_changes_no_event(db: asyncpg.Connection) -> None:
    await db.execute(
        """CREATE TABLE look (id int PRIMARY KEY, s text, at timestamptz, f float8, i interval, b bytea, r tstzrange);
           SELECT rowcast.watch('look', ARRAY['*'], session_column => 's');
           SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'; SET extra_float_digits = 0;
           SET escape_string_warning = off; SET standard_conforming_strings = off; SET plpgsql.extra_errors = 'all'; SET array_nulls = off;
           SET transform_null_equals = on; SET quote_all_identifiers = on; SET row_security = off; SET work_mem = '64kB';
           INSERT INTO look VALUES (1, 's', '2026-01-02 03:04:05+00', 0.1::float8 + 0.2::float8, '1 day', '\\x00ff', '[02.01.2026,03.01.2026)')"""
    )
    await db.execute("UPDATE look SET f = 0.3")  # what these settings would show it as
    await db.execute("SELECT rowcast.emit('a.b', '{\"timestamp\": \"+00:00\"}', 's')")
    with pytest.raises(asyncpg.PostgresError, match="the name 'a b' is no good"):
        await db.execute("SELECT rowcast.watch('look', ARRAY['*'], name => 'a b')")
    inserted, updated, emitted = await told(db)
    row = {
        "id": 1, "s": "s", "at": "2026-01-02T03:04:05+00:00", "f": 0.1 + 0.2, "i": "1 day", "b": "\\x00ff",
        "r": '["2026-01-01 15:00:00+00","2026-01-02 15:00:00+00")',
    }  # fmt: skip
    assert inserted == ("look.inserted", {"session": "s"}, {"key": {"id": 1}, "row": row})
    assert (updated[0], updated[2]["row"]) == ("look.updated", {**row, "f": 0.3})
    assert emitted[0] == "a.b"


@asynccontextmanager
async def role(db: asyncpg.Connection, *rights: str) -> AsyncIterator[str]:
    """A role for a while, as whom `db` acts; `{}` in its rights is its name."""
    name = f"rowcast_test_{os.getpid()}_{random.randrange(10**9)}"
    await db.execute(f"CREATE ROLE {name}")
    try:
        for right in rights:
            await db.execute(right.format(name))
        await db.execute(f"SET ROLE {name}")
        yield name
    finally:
        await db.execute(f"RESET ROLE; DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def test_a_writer_with_insert_and_nothing_else(orders: asyncpg.Connection) -> None:
    await orders.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON orders FOR INSERT WITH CHECK (true)")
    async with role(orders, "GRANT INSERT ON orders TO {}"):
        await orders.execute("INSERT INTO orders (id, session_id, status) VALUES (1, 's', 'new')")
        await orders.execute("INSERT INTO orders (id, session_id, status) VALUES (2, 's', 'new'), (3, 's', 'new')")
        for forbidden in (
            "SELECT rowcast.emit('a.b', '{}', 's')",
            "SELECT rowcast.watch('orders', ARRAY['*'])",
            "INSERT INTO rowcast.outbox (type, payload) VALUES ('a.b', '{}')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await orders.execute(forbidden)
    assert len(await told(orders)) == 3


async def test_only_the_owner_can_watch(orders: asyncpg.Connection) -> None:
    """Whoever is granted it, on tables of their own; the table of another role works like any."""
    grant = "GRANT USAGE ON SCHEMA rowcast TO {0}; GRANT EXECUTE ON FUNCTION rowcast.watch, rowcast.unwatch, rowcast.capture TO {0}"
    async with role(orders, grant, "GRANT CREATE ON SCHEMA public TO {}") as name:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"only the owner of public.orders can watch it: do so as \w+"):
            await orders.execute("SELECT rowcast.watch('orders', ARRAY['*'])")
        await orders.execute("CREATE TABLE own (id int PRIMARY KEY); SELECT rowcast.watch('own', ARRAY['*']); INSERT INTO own VALUES (1)")
        assert await orders.fetchval("SELECT count(*) FROM rowcast.watches") == 2
        await orders.execute("SELECT rowcast.unwatch('own'); INSERT INTO own VALUES (2)")
        await orders.execute("SELECT rowcast.watch('own', ARRAY['*'])")
        await orders.execute("RESET ROLE; INSERT INTO own VALUES (3)")
        assert [who for _, who, _ in await told(orders)] == [{"table": "own"}] * 2
        assert name


async def test_no_cast_of_another_runs_with_our_rights(db: asyncpg.Connection) -> None:
    """to_jsonb() runs the casts to json that the owner of a type makes: none of theirs is, not even one made meanwhile."""
    await db.execute("CREATE TABLE spied (as_whom text); GRANT INSERT ON spied TO PUBLIC")
    async with role(db, "GRANT CREATE ON SCHEMA public TO {}"):
        await db.execute(
            """CREATE TYPE trap AS ENUM ('a', 'b');
               CREATE FUNCTION spring(trap) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.spied VALUES (current_user); RETURN '1'; END $$;
               CREATE FUNCTION leap(trap) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.spied VALUES (current_user); RETURN '1'; END $$"""
        )
        await db.execute(
            """RESET ROLE; CREATE SCHEMA closed; ALTER TYPE trap SET SCHEMA closed; SET search_path = public, closed;
               CREATE DOMAIN lid AS trap; CREATE DOMAIN percent AS int CHECK (VALUE <= 100); CREATE TYPE chest AS (t trap, n int);
               CREATE TABLE bait (gone int, id int PRIMARY KEY, s text, t trap, l lid, ts trap[], b chest, k percent, n numeric(10, 2), c char(3));
               ALTER TABLE bait DROP gone; CREATE TABLE plain (id int PRIMARY KEY);
               SELECT rowcast.watch('bait', ARRAY['*'], session_column => 's'), rowcast.watch('plain', ARRAY['*'])"""
        )
        rest = "'s', 'a', 'a', '{a,b}', '(a,1)', 50, 2.5, 'x'"
        await db.execute(
            f"""INSERT INTO bait VALUES (0, {rest});
                CREATE CAST (trap AS json) WITH FUNCTION spring(trap); CREATE CAST (trap AS text) WITH FUNCTION leap(trap) AS IMPLICIT;
                INSERT INTO bait VALUES (1, {rest}); INSERT INTO bait VALUES (2, {rest}), (3, 's', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
                UPDATE bait SET t = 'b' WHERE id IN (1, 2); UPDATE bait SET n = n; UPDATE bait SET s = 'z' WHERE id = 3; DELETE FROM bait WHERE id = 1; INSERT INTO plain VALUES (7)"""
        )
        assert await db.fetchval("SELECT count(*) FROM spied") == 0
        events = await told(db)
        row = {"id": 1, "s": "s", "t": "a", "l": "a", "ts": ["a", "b"], "b": "(a,1)", "k": 50, "n": 2.5, "c": "x  "}
        nulls = dict.fromkeys(row, None) | {"id": 3, "s": "s"}
        inserted = [payload["row"] for type, _, payload in events if type == "bait.inserted"]
        assert inserted == [{**row, "id": 0}, row, {**row, "id": 2}, nulls, {**nulls, "s": "z"}]
        assert [payload["row"] for type, _, payload in events if type == "bait.updated"] == [{**row, "id": id, "t": "b"} for id in (1, 2)]
        assert [(who, payload["key"]) for type, who, payload in events if type == "bait.deleted"] == [
            ({"session": "s"}, {"id": id}) for id in (3, 1)
        ]
        assert events[-1][2]["row"] == {"id": 7}


@pytest.mark.parametrize("many", [False, True])
async def test_a_cast_that_fails_costs_its_own_value_only(db: asyncpg.Connection, many: bool) -> None:
    await db.execute(
        """CREATE TYPE grade AS ENUM ('good', 'bad');
           CREATE FUNCTION fails(grade) RETURNS json LANGUAGE plpgsql AS $$ BEGIN IF $1 = 'bad' THEN RAISE 'no'; END IF; RETURN '{"ok": 1}'; END $$;
           CREATE CAST (grade AS json) WITH FUNCTION fails(grade);
           CREATE TABLE graded (id int PRIMARY KEY, s text, g grade, j json); SELECT rowcast.watch('graded', ARRAY['*'], session_column => 's')"""
    )
    rows = ["(1, 's', 'good', '{}')", """(2, 's', 'bad', '{"a": "\\u0000"}')"""]
    for values in [", ".join(rows)] if many else rows:
        await db.execute(f"INSERT INTO graded VALUES {values}")
    assert await told(db) == [
        ("graded.inserted", {"session": "s"}, {"key": {"id": 1}, "row": {"id": 1, "s": "s", "g": {"ok": 1}, "j": {}}}),
        ("graded.inserted", {"session": "s"}, {"key": {"id": 2}, "row": {"id": 2, "s": "s", "g": "bad", "j": {"a": "\ufffd"}}}),
    ]


async def test_a_trigger_of_another_make_tells_nothing_odd_and_hides_no_other(orders: asyncpg.Connection) -> None:
    """Whoever may watch can make triggers by hand: no name that would be a line of its own in a stream, no list that nobody can read."""
    create = (
        "CREATE TRIGGER mine AFTER INSERT ON own REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION rowcast.capture({})"
    )
    for arguments in ("", "'a','b','c','d','e','f','g','h','i'", r"E'evil\nid: 9','','','','','','{}','{*}','{}'"):
        await orders.execute("CREATE TABLE own (id int)")
        await orders.execute(create.format(arguments))
        found = await orders.fetch("SELECT target::text, problems FROM rowcast.watches ORDER BY target::text")
        assert [row["target"] for row in found] == ["orders", "own"]
        assert "public.own.mine is a trigger too many: watch it again" in found[1]["problems"]
        if "g" not in arguments:
            await orders.execute("INSERT INTO own VALUES (1)")
            assert await told(orders) == []
        await orders.execute("DROP TABLE own")


async def test_a_trigger_that_was_renamed_tells_nothing_twice(orders: asyncpg.Connection) -> None:
    await orders.execute('ALTER TRIGGER rowcast_insert ON orders RENAME TO "My trigger"')
    assert await orders.fetchval("SELECT problems FROM rowcast.watches") == [
        'public.orders."My trigger" is a trigger too many: watch it again',
        "public.orders.rowcast_insert is missing: watch it again",
    ]
    await orders.execute("SELECT rowcast.watch('orders', ARRAY['*']); INSERT INTO orders (id) VALUES (1)")
    assert len(await told(orders)) == 1
    assert await orders.fetchval("SELECT problems FROM rowcast.watches") == []


PARTITIONED = """
CREATE TABLE sale (region text, id int, status text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu');
CREATE TABLE sale_us PARTITION OF sale FOR VALUES IN ('us') PARTITION BY RANGE (id);
CREATE TABLE sale_us_1 PARTITION OF sale_us FOR VALUES FROM (0) TO (1000);
SELECT rowcast.watch('sale', '{status}', session_column => 'region')
"""


async def test_partitioned_tables_have_one_name(db: asyncpg.Connection) -> None:
    await db.execute(PARTITIONED)
    for table, region, id in (("sale", "eu", 1), ("sale_eu", "eu", 2), ("sale_us", "us", 3), ("sale_us_1", "us", 4), ("sale", "us", 5)):
        await db.execute(f"INSERT INTO {table} VALUES ($1, $2, 'new')", region, id)
        ((type, who, payload),) = await told(db)
        assert (type, who, payload["key"]) == ("sale.inserted", {"session": region}, {"region": region, "id": id})
    await db.execute("UPDATE sale SET status = id::text")
    assert {(payload["key"]["id"], payload["row"]["status"]) for _, _, payload in await told(db)} == {(i, str(i)) for i in range(1, 6)}
    await db.execute(
        "UPDATE sale SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END, id = id + 10 WHERE id < 4"
    )  # between partitions
    events = await told(db)
    pairs = {(1, "eu"), (2, "eu"), (3, "us")}
    assert {(type, payload["key"]["id"], who["session"]) for type, who, payload in events} == {
        *(("sale.deleted", id, region) for id, region in pairs),
        *(("sale.inserted", id + 10, {"eu": "us", "us": "eu"}[region]) for id, region in pairs),
    }
    for table in ("sale", "sale_eu", "sale_us"):
        await db.execute(f"TRUNCATE {table}")
        assert [(type, who) for type, who, _ in await told(db)] == [("sale.truncated", {"table": "sale"})]
    assert await db.fetchval("SELECT problems FROM rowcast.watches") == []
    await db.execute("SELECT rowcast.unwatch('sale'); INSERT INTO sale VALUES ('eu', 1); INSERT INTO sale_us_1 VALUES ('us', 1)")
    assert await told(db) == []
    assert await db.fetchval("SELECT count(*) FROM rowcast.watches") == 0


async def test_a_partition_that_swallows_rows_hides_no_change(db: asyncpg.Connection) -> None:
    """Then old and new rows cannot be paired: what was is deleted, what is now is inserted."""
    await db.execute(PARTITIONED)
    await db.execute(
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END $$;
           CREATE TRIGGER swallow BEFORE INSERT ON sale_us_1 FOR EACH ROW EXECUTE FUNCTION swallow();
           INSERT INTO sale VALUES ('eu', 1, 'new'), ('eu', 2, 'new'), ('eu', 3, 'new')"""
    )
    await told(db)
    await db.execute("UPDATE sale SET region = 'us'")
    seen = sorted((type, payload["key"]["region"], payload["key"]["id"]) for type, _, payload in await told(db))
    assert seen == [*(("sale.deleted", "eu", id) for id in (1, 2, 3)), ("sale.inserted", "us", 1), ("sale.inserted", "us", 3)]
    await db.execute("ALTER TABLE sale DROP CONSTRAINT sale_pkey; UPDATE sale SET region = 'eu', id = 2 WHERE id = 1")
    await db.execute("SELECT rowcast.watch('sale', '{id}'); INSERT INTO sale VALUES ('eu', 4)")
    await told(db)
    await db.execute("UPDATE sale SET region = 'us' WHERE region = 'eu'")  # 2 is swallowed, 4 moves
    assert sorted((type, payload["key"]["id"]) for type, _, payload in await told(db)) == [
        ("sale.deleted", 2), ("sale.deleted", 4), ("sale.inserted", 4),
    ]  # fmt: skip


async def test_partitions_that_come_and_go(db: asyncpg.Connection, database: str, tmp_path: Path) -> None:
    await db.execute(PARTITIONED)
    await db.execute(
        "CREATE TABLE sale_asia PARTITION OF sale FOR VALUES IN ('asia'); CREATE TABLE sale_us_2 PARTITION OF sale_us FOR VALUES FROM (1000) TO (2000)"
    )
    status, output = await rowcast("watch", "--list", cwd=tmp_path, DATABASE_URL=database)
    assert status == 1
    assert "wrong: public.sale_asia has no triggers" in output
    status, output = await rowcast("doctor", cwd=tmp_path, DATABASE_URL=database)
    assert status == 1
    assert "sale_us_2 has no triggers" in output
    await db.execute("SELECT rowcast.watch('sale', '{status}', session_column => 'region')")
    await db.execute(
        "INSERT INTO sale_asia VALUES ('asia', 1); ALTER TABLE sale DETACH PARTITION sale_asia; INSERT INTO sale_asia VALUES ('asia', 2)"
    )
    assert [type for type, _, _ in await told(db)] == ["sale.inserted"] * 2
    assert {row["target"] for row in await db.fetch("SELECT target::text FROM rowcast.watches")} == {"sale", "sale_asia"}
    await db.execute("ALTER TABLE sale ATTACH PARTITION sale_asia FOR VALUES IN ('asia')")
    assert await db.fetch("SELECT target::text, problems FROM rowcast.watches") == [("sale", [])]


async def test_inheritance(db: asyncpg.Connection) -> None:
    await db.execute(
        "CREATE TABLE animal (id int, name text); CREATE TABLE dog () INHERITS (animal); SELECT rowcast.watch('animal', '{name}')"
    )
    await db.execute("INSERT INTO dog VALUES (1, 'Rex')")
    await db.execute("UPDATE animal SET name = 'Bello'")
    assert [type for type, _, _ in await told(db)] == ["animal.inserted", "animal.updated"]


async def test_two_phase_commit_and_replication(orders: asyncpg.Connection) -> None:
    if int(await orders.fetchval("SHOW max_prepared_transactions")):
        await orders.execute("BEGIN; SET LOCAL rowcast.doorbell = off; INSERT INTO orders (id) VALUES (1); PREPARE TRANSACTION 'w'")
        await orders.execute("COMMIT PREPARED 'w'")
        assert len(await told(orders)) == 1
    await orders.execute("SET session_replication_role = replica; INSERT INTO orders (id) VALUES (2); RESET session_replication_role")
    assert await told(orders) == []  # as documented


@pytest.mark.parametrize("kind", ["BEFORE INSERT ON t FOR EACH ROW", "AFTER INSERT ON t FOR EACH STATEMENT"])
async def test_a_trigger_that_changes_its_own_table_again(db: asyncpg.Connection, kind: str) -> None:
    """The last event says what is in the table, for these kinds of trigger."""
    await db.execute(
        f"""CREATE TABLE t (id int PRIMARY KEY, v text); SELECT rowcast.watch('t', '{{v}}');
            CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF TG_LEVEL = 'ROW' THEN NEW.v := 'mended'; ELSE UPDATE t SET v = 'mended'; END IF; RETURN NEW; END $$;
            CREATE TRIGGER touch {kind} EXECUTE FUNCTION back(); INSERT INTO t VALUES (1, 'new')"""
    )
    events = [(type, payload["row"]["v"]) for type, _, payload in await told(db)]
    assert events == ([("t.inserted", "mended")] if "ROW" in kind else [("t.inserted", "new"), ("t.updated", "mended")])


async def test_cascades_and_statements_of_several_parts_tell_each_row_once(db: asyncpg.Connection) -> None:
    await db.execute(
        """CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE);
           CREATE TABLE leaf (id int PRIMARY KEY, tree int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
           SELECT rowcast.watch('tree', '{parent}'), rowcast.watch('leaf', '{tree}');
           WITH a AS (INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2) RETURNING id), b AS (INSERT INTO leaf SELECT id, id FROM a)
           INSERT INTO tree VALUES (4, 3)"""
    )

    async def seen() -> list[tuple[str, int]]:
        return sorted((type, payload["key"]["id"]) for type, _, payload in await told(db))

    assert await seen() == [*(("leaf.inserted", id) for id in (1, 2, 3)), *(("tree.inserted", id) for id in (1, 2, 3, 4))]
    await db.execute("UPDATE tree SET id = 10 WHERE id = 1")
    assert await seen() == [("leaf.updated", 1), ("tree.deleted", 1), ("tree.inserted", 10), ("tree.updated", 2)]
    await db.execute("DELETE FROM tree WHERE id = 10")
    assert await seen() == [*(("leaf.deleted", id) for id in (1, 2, 3)), *(("tree.deleted", id) for id in (2, 3, 4, 10))]
    await db.execute("TRUNCATE tree CASCADE")
    assert [type for type, _, _ in await told(db)] == ["tree.truncated", "leaf.truncated"]


async def test_watches_go_with_a_dump(orders: asyncpg.Connection, database: str, empty_database: str, tmp_path: Path) -> None:
    if orders.get_server_version() < (18,):
        pytest.skip("a dump is for servers of its own version")
    await orders.execute(PARTITIONED + "; CREATE TYPE mood AS ENUM ('good', 'bad'); ALTER TABLE orders ADD COLUMN aaa mood")
    await orders.execute("INSERT INTO orders (id, session_id) VALUES (1, 's'); CREATE VIEW aaa AS SELECT * FROM rowcast.watches")
    dump = tmp_path / "dump"
    for program, *arguments in (("pg_dump", "-Fc", "-f", dump, database), ("pg_restore", "--exit-on-error", "-d", empty_database, dump)):
        process = await asyncio.create_subprocess_exec(Path(embedded_programs(), program), *arguments)
        assert await process.wait() == 0
    copy = await asyncpg.connect(empty_database)
    assert await copy.fetch("SELECT target::text, problems FROM rowcast.watches ORDER BY 1") == [("orders", []), ("sale", [])]
    assert len(await told(copy)) == 1  # restoring made no events
    await copy.execute("INSERT INTO orders (id, session_id) VALUES (2, 's'); INSERT INTO sale_us_1 VALUES ('us', 1)")
    assert [type for type, _, _ in await told(copy)] == ["orders.inserted", "sale.inserted"]
    await copy.close()


async def test_watching_again_replaces(orders: asyncpg.Connection) -> None:
    await orders.execute("SELECT rowcast.watch('orders', '{total}', name => 'shop.order')")
    await orders.execute("INSERT INTO orders (id, session_id, total) VALUES (1, 's', 2)")
    assert await told(orders) == [("shop.order.inserted", {"table": "shop.order"}, {"key": {"id": 1}, "row": {"total": 2}})]
    assert await orders.fetchval("SELECT array_agg(name) FROM rowcast.watches") == ["shop.order"]


async def test_a_name_is_shared_only_on_purpose(orders: asyncpg.Connection) -> None:
    await orders.execute("CREATE SCHEMA old; CREATE TABLE old.orders (id int PRIMARY KEY)")
    with pytest.raises(asyncpg.PostgresError, match=r"the name orders is taken by public\.orders: give another"):
        await orders.execute("SELECT rowcast.watch('old.orders', ARRAY['*'])")
    await orders.execute("SELECT rowcast.watch('old.orders', ARRAY['*'], name => 'orders'); INSERT INTO old.orders VALUES (1)")
    assert [type for type, _, _ in await told(orders)] == ["orders.inserted"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("'orders', '{}'", r"columns is empty .* or say ARRAY\['\*'\] for all"),
        ("'orders', NULL", "columns is empty"),
        ("'orders', '{a,*}'", "stands alone"),
        ("'orders', '{status,colour}'", "orders has no column colour: it has id, session_id, project_id"),
        ("'orders', '{ctid}'", "orders has no column ctid"),
        ("'orders', '{status}', session_column => 'sid'", "orders has no column sid"),
        ("'orders', '{status}', name => 'a b'", "the name 'a b' is no good"),
        ("'orders', '{status}', name => 'a..b'", "the name 'a..b' is no good"),
        ("'orders', '{status}', name => E'a\\n'", "is no good"),
        ("'orders', '{status}', name => repeat('x', 101)", "at most 100"),
        ("'orders', '{status}', name => 'agent.x'", "others already"),
        ("'orders', '{status}', name => 'open'", "others already"),
        ("'orders', '{status}', channel => 'rowcast_x'", "channel 'rowcast_x' is no good"),
        ("'orders', '{status}', channel => repeat('x', 64)", "at most 63"),
        ("'orders', '{status}', channel => ''", "channel '' is no good"),
        ("'a_view', ARRAY['*']", "a_view is a view: only tables"),
        ("'scratch', ARRAY['*']", "scratch is temporary"),
        ("'pg_class', ARRAY['*']", "pg_class belongs to PostgreSQL"),
        ("'rowcast.event', ARRAY['*']", "rowcast.event belongs to Rowcast"),
        ("'message', ARRAY['*']", "message is captured already"),
        ("'part', ARRAY['*']", "part is a partition: watch public.whole as a whole"),
        ("NULL, ARRAY['*']", "there is no such table"),
    ],
)
async def test_what_is_wrong_is_one_line(orders: asyncpg.Connection, call: str, says: str) -> None:
    await orders.execute("CREATE VIEW a_view AS SELECT 1 AS one; CREATE TEMP TABLE scratch (id int)")
    await orders.execute("CREATE TABLE whole (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF whole DEFAULT")
    with pytest.raises(asyncpg.PostgresError, match=says) as caught:
        await orders.execute(f"SELECT rowcast.watch({call})")
    assert "\n" not in str(caught.value).replace("'a\n'", "")


async def test_unwatching_what_is_not_watched(orders: asyncpg.Connection) -> None:
    await orders.execute("SELECT rowcast.unwatch('orders')")
    with pytest.raises(asyncpg.PostgresError, match="orders is not watched"):
        await orders.execute("SELECT rowcast.unwatch('orders')")


async def test_emit(db: asyncpg.Connection) -> None:
    await db.execute("""SELECT rowcast.emit('build.done', '{"ok": true}', session_id => 's', user_id => 'u', channel => 'builds')""")
    row = await db.fetchrow("SELECT type, payload, session_id, user_id, project_id, channel FROM rowcast.outbox")
    assert tuple(row) == ("build.done", '{"ok": true}', "s", "u", None, "builds")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("'a b', '{}', 's'", "type 'a b' is no good"),
        ("NULL, '{}', 's'", "type null is no good"),
        ("'error', '{}', 's'", "type error is what streams call"),
        ("'completed', '{}', 's'", "type completed is what streams call"),
        ("'a.b', '[]', 's'", "payload is no JSON object"),
        ("'a.b', NULL, 's'", "payload is no JSON object"),
        ("'a.b', ('{\"a\":' || repeat('[', 200) || repeat(']', 200) || '}')::jsonb, 's'", "payload is nested deeper than 200"),
        ("'a.b', '{}'", "nobody would be told"),
        ("'a.b', '{}', ''", "id '' is no good"),
        ("'a.b', '{}', user_id => repeat('x', 129)", "is no good: 1 to 128"),
        ("'a.b', '{}', E'a\\tb'", "is no good"),
        ("'a.b', '{}', 's', channel => 'Rowcast'", "channel 'Rowcast' is no good"),
    ],
)
async def test_emit_refuses(db: asyncpg.Connection, call: str, says: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=says):
        await db.execute(f"SELECT rowcast.emit({call})")


async def test_a_watched_change_reaches_a_stream(orders: asyncpg.Connection, hub: Hub) -> None:
    async with await hub.follow("s") as stream:
        await stream.until("caught_up")
        await orders.execute("INSERT INTO orders (id, session_id, status, total) VALUES (1, 's', 'new', 3)")
        (inserted,) = await stream.expect("orders.inserted")
        assert inserted.data["key"] == {"id": 1}
        assert inserted.data["row"] == {"status": "new", "total": 3}
        await orders.execute("UPDATE orders SET session_id = 'elsewhere'")
        await orders.execute("""SELECT rowcast.emit('hello.world', '{"n": 1}', 's')""")
        deleted, hello = await stream.expect("orders.deleted", "hello.world")
        assert deleted.data["key"] == {"id": 1}
        assert hello.data == {"n": 1}


async def test_a_dropped_table_hurts_nobody(orders: asyncpg.Connection, hub: Hub) -> None:
    await orders.execute("CREATE TABLE other (id int PRIMARY KEY, s text); SELECT rowcast.watch('other', '{id}', session_column => 's')")
    async with await hub.follow("s") as stream:
        await stream.until("caught_up")
        await orders.execute("INSERT INTO orders (id, session_id) VALUES (1, 's'); DROP TABLE orders; INSERT INTO other VALUES (1, 's')")
        await stream.expect("orders.inserted", "other.inserted")
    assert await orders.fetchval("SELECT array_agg(name) FROM rowcast.watches") == ["other"]


# The command line


async def test_watch_from_the_command_line(database: str, db: asyncpg.Connection, tmp_path: Path) -> None:
    await db.execute('CREATE TABLE orders (id int PRIMARY KEY, sid text, status text, "Total, net" int)')

    async def run(*arguments: str) -> tuple[int, str]:
        return await rowcast(*arguments, cwd=tmp_path, DATABASE_URL=database)

    assert await run("watch", "--list") == (0, "")
    watch = ("watch", "public.orders", "--session", "sid", "--columns", 'status,"Total, net"', "--channel", "shop")
    assert await run(*watch) == (0, "watching public.orders\n")
    assert await run("watch", "--list") == (0, "orders as orders: status, Total, net; to session sid; channel shop\n")
    await db.execute("INSERT INTO orders VALUES (1, 's', 'new', 5)")
    assert (await told(db))[0][2]["row"] == {"status": "new", "Total, net": 5}
    status, output = await run("doctor")
    assert status == 0
    assert "watch orders: orders in place" in output
    assert await run("unwatch", "public.orders") == (0, "not watching public.orders\n")
    for wrong, says in (
        (("unwatch", "orders"), "is not watched"),
        (("watch", "orders"), "--columns"),
        (("watch", "nowhere", "--columns", "*"), 'relation "nowhere" does not exist'),
        (("watch", "orders", "--columns", "colour"), "orders has no column colour"),
        (("watch", "orders", "--columns", ""), "columns is empty"),
    ):
        status, output = await run(*wrong)
        assert (status, len(output.splitlines())) == (2, 1), output
        assert says in output


async def test_a_busy_table_is_one_line(database: str, orders: asyncpg.Connection, tmp_path: Path) -> None:
    await orders.execute("BEGIN; INSERT INTO orders (id) VALUES (1)")
    status, output = await rowcast("watch", "orders", "--columns", "*", cwd=tmp_path, DATABASE_URL=database)
    await orders.execute("COMMIT")
    assert (status, len(output.splitlines())) == (2, 1), output
    assert "a transaction holds the table" in output


ENVIRONMENT = """
import os
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine
import asyncio

async def main():
    engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

asyncio.run(main())
"""


async def test_a_migration_for_the_users_own_alembic(database: str, db: asyncpg.Connection, tmp_path: Path) -> None:
    await db.execute("""CREATE TABLE "It's" (id int PRIMARY KEY, "a:b" text, "50%" int)""")
    watch = ("watch", '''public."It's"''', "--columns", "a:b,50%", "--name", "its", "--user", "a:b", "--migration")
    status, text = await rowcast(*watch, cwd=tmp_path)  # it needs no database
    assert status == 0, text
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "watch_its.py").write_text(text)
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}\npath_separator = os\n")

    async def alembic(*arguments: str) -> None:
        environment = {**os.environ, "DATABASE_URL": database}
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "alembic", *arguments, env=environment, cwd=tmp_path)
        assert await process.wait() == 0

    await alembic("upgrade", "head")
    await db.execute("""INSERT INTO "It's" VALUES (1, 'me', 5)""")
    assert await told(db) == [("its.inserted", {"user": "me"}, {"key": {"id": 1}, "row": {"a:b": "me", "50%": 5}})]
    await alembic("downgrade", "base")
    assert await db.fetchval("SELECT count(*) FROM rowcast.watches") == 0


async def test_taking_the_migration_back_ends_all_watches(orders: asyncpg.Connection, database: str) -> None:
    await schema.migrate(database, "0004")
    await orders.execute("INSERT INTO orders (id) VALUES (1)")
    assert await told(orders) == []
    await schema.migrate(database, "head")


# What takes long


async def test_large_values_fail_no_write(db: asyncpg.Connection) -> None:
    await db.execute(
        "CREATE TABLE large (id int PRIMARY KEY, s text, big text, more text); SELECT rowcast.watch('large', ARRAY['*'], session_column => 's')"
    )
    await db.execute("INSERT INTO large VALUES (1, 's', repeat('x', 17000000), 'small')")
    await db.execute("UPDATE large SET big = repeat('y', 17000000)")
    await db.execute("INSERT INTO large VALUES (2, 's', repeat('x', 270000000), 'small')")
    events = await told(db)
    assert [(type, who) for type, who, _ in events] == [
        ("large.inserted", {"session": "s"}),
        ("large.updated", {"session": "s"}),
        ("large.inserted", {"session": "s"}),
    ]
    assert [payload["row"]["big"] for _, _, payload in events[:2]] == [None, None]
    assert events[2][2]["row"]["more"] == "small"
    assert len(json.dumps(events[2][2])) < 1000


async def test_a_large_row_without_a_key_fails_no_write(db: asyncpg.Connection) -> None:
    """Its key is the row: both together may be beyond what one jsonb can hold (256 MB)."""
    await db.execute("CREATE TABLE large (a text, b text); SELECT rowcast.watch('large', ARRAY['*'])")
    await db.execute("INSERT INTO large VALUES (repeat('x', 17000000), 'b'); UPDATE large SET a = 'small'; DELETE FROM large")
    assert [(type, payload["key"], payload.get("row")) for type, _, payload in await told(db)] == [
        ("large.inserted", {"a": None, "b": "b"}, {"a": None, "b": "b"}),
        ("large.updated", {"a": None, "b": "b"}, {"a": "small", "b": "b"}),
        ("large.deleted", {"a": "small", "b": "b"}, None),
    ]
