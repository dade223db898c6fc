"""What watching a table adds: to an INSERT of one row, and to an UPDATE of 10,000."""

import time
from collections.abc import Awaitable

from rowcast.database import Connection
from side_by_side import Database, Row, medians, parser, run, say, settle

ROWS = 10_000
SINGLE = 2_000
TABLES = {"bare": "bench.bare", "watched": "bench.watched"}
SETUP = """
CREATE SCHEMA bench;
CREATE TABLE bench.bare (LIKE public.message INCLUDING ALL);
CREATE TABLE bench.watched (LIKE public.message INCLUDING ALL);
SELECT rowcast.watch('bench.watched', ARRAY['status', 'text'], session_column => 'session_id');
"""
FILL = f"INSERT INTO {{table}} (session_id, text) SELECT gen_random_uuid(), repeat('token ', 20) FROM generate_series(1, {ROWS})"
INSERT = "INSERT INTO {table} (session_id, text) VALUES (gen_random_uuid(), $1)"
UPDATE = "UPDATE {table} SET status = CASE status WHEN 'streaming' THEN 'pending' ELSE 'streaming' END"


async def measure(database: Database) -> list[Row]:
    rounds = database.rounds or (2 if database.quick else 9)
    db = await database.connect()
    await db.execute(SETUP)
    single = {"one transaction": _in_one, "a transaction each": _each, "sent at once": _at_once}
    took: dict[str, dict[str, list[float]]] = {name: {table: [] for table in TABLES} for name in (*single, "bulk")}
    for _ in range(rounds):
        for name, insert in single.items():
            for which, table in TABLES.items():
                await settle(db)
                took[name][which].append(await _microseconds(insert(db, INSERT.format(table=table))) / SINGLE)
        for which, table in TABLES.items():
            await db.execute(f"TRUNCATE {table}")
            await db.execute(FILL.format(table=table))
            await settle(db)
            took["bulk"][which].append(await _microseconds(db.execute(UPDATE.format(table=table))) / 1000)
        await db.execute("TRUNCATE rowcast.outbox")
        await db.execute(f"TRUNCATE {', '.join(TABLES.values())}")
    await db.close()
    rows = [_added(name, took[name]) for name in single]
    bare, watched = medians(took["bulk"]).values()
    say(f"{ROWS:,} rows: bare {bare:.0f} ms, watched {watched:.0f} ms")
    return [
        *rows,
        Row(f"UPDATE of {ROWS:,} rows, watched", watched, "ms", watched / bare, "no trigger", at_most=6, rounds=took["bulk"]["watched"]),
    ]


def _added(name: str, took: dict[str, list[float]]) -> Row:
    bare, watched = min(took["bare"]), min(took["watched"])
    say(f"INSERT of one row, {name}: bare {bare:.0f} µs, watched {watched:.0f} µs")
    return Row(f"INSERT of one row, {name}: watching adds", watched - bare, "µs", at_most=60, rounds=took["watched"])


async def _in_one(db: Connection, statement: str) -> None:
    async with db.transaction():
        await _each(db, statement)


async def _each(db: Connection, statement: str) -> None:
    prepared = await db.prepare(statement)
    for _ in range(SINGLE):
        await prepared.fetch("token")


async def _at_once(db: Connection, statement: str) -> None:
    await db.executemany(statement, [("token",)] * SINGLE)


async def _microseconds(work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return (time.perf_counter() - start) * 1e6


if __name__ == "__main__":
    run(parser(__doc__).parse_args(), measure)
