"""One UPDATE of 10,000 rows: without triggers and captured by Rowcast."""

import time

from rowcast.database import Connection
from side_by_side import BARE, Database, Row, hub, medians, parser, run, say, settle, until

ROWS = 10_000
TABLES = {"bare": "bench.bare", "captured": "public.message"}
CHANGES = {
    "text grows": "UPDATE {table} SET text = text || ' token'",
    "status changes": "UPDATE {table} SET status = CASE status WHEN 'streaming' THEN 'pending' ELSE 'streaming' END",
}

SETUP = f"""
INSERT INTO public.session (id) SELECT gen_random_uuid() FROM generate_series(1, 100);
INSERT INTO public.message (session_id, text) SELECT id, repeat('token ', 20) FROM public.session, generate_series(1, {ROWS // 100});
{BARE};
INSERT INTO bench.bare SELECT * FROM public.message;
"""


async def measure(database: Database) -> list[Row]:
    rounds = 2 if database.quick else 15
    db = await database.connect()
    await db.execute(SETUP)
    rows = []
    async with hub(database):
        await _quiet(db)
        for change, statement in CHANGES.items():
            took: dict[str, list[float]] = {name: [] for name in TABLES}
            for _ in range(rounds):
                for name, table in TABLES.items():
                    await settle(db)
                    took[name].append(await _milliseconds(db, statement.format(table=table)))
                    await _quiet(db)
            rows += _rows(f"{ROWS:,} rows, {change}", took)
        events = await db.fetchval("SELECT count(*) FROM rowcast.event")
        if events != (wanted := ROWS * (1 + rounds * len(CHANGES))):
            raise SystemExit(f"{wanted} changes were committed, but there are {events} events")
    await db.close()
    return rows


async def _milliseconds(db: Connection, statement: str) -> float:
    start = time.perf_counter()
    await db.execute(statement)  # with its COMMIT
    return (time.perf_counter() - start) * 1000


async def _quiet(db: Connection) -> None:
    """Until all is sequenced and pruned, so that nothing runs beside the next UPDATE."""
    await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM rowcast.outbox)"))


def _rows(what: str, took: dict[str, list[float]]) -> list[Row]:
    bare, captured = medians(took).values()
    say(f"{what}: no trigger {bare:.0f} ms, Rowcast {captured:.0f} ms")
    return [
        Row(f"{what}, no trigger", bare, "ms", rounds=took["bare"]),
        Row(f"{what}, Rowcast", captured, "ms", captured / bare, "no trigger", at_most=4, rounds=took["captured"]),
    ]


if __name__ == "__main__":
    run(parser(__doc__).parse_args(), measure)
