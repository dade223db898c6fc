"""What capture, sequence() and prune cost PostgreSQL: time inside each function, for each event (track_functions)."""

import asyncio

from rowcast.database import Connection
from side_by_side import Database, Row, hub, parser, pgbench, run, say, settle, until
from writers import SCRIPT, SETUP

CONNECTIONS = 8
TIMES = "SELECT funcname, calls, total_time, self_time FROM pg_stat_user_functions WHERE schemaname = 'rowcast'"


async def measure(database: Database) -> list[Row]:
    db = await database.connect()
    await db.execute(SETUP)
    await db.execute(f"ALTER DATABASE {await db.fetchval('SELECT current_database()')} SET track_functions = 'all'")
    await settle(db)
    async with hub(database):
        before = await _milliseconds(db)
        load = await pgbench(database, SCRIPT.format(table="public.message"), CONNECTIONS, 3 if database.quick else 15)
        await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM rowcast.outbox)"))
    await asyncio.sleep(1.5)  # statistics are written when a backend has been idle for a second
    spent = {name: now - before.get(name, 0) for name, now in (await _milliseconds(db)).items()}
    await db.close()
    say(f"{load.transactions:,} transactions; in all, ms: " + ", ".join(f"{name} {ms:,.0f}" for name, ms in sorted(spent.items())))
    each = {name: 1000 * spent.get(name, 0) / load.transactions for name in ("capture_message", "ring", "sequence", "envelope", "prune")}
    whole = each["capture_message"] + each["sequence"] + each["prune"]
    return [
        *(Row(f"{name}(), for each event", microseconds, "µs") for name, microseconds in each.items()),
        Row("prune(), of capture, sequence() and prune", 100 * each["prune"] / whole, "%", at_most=5),
    ]


async def _milliseconds(db: Connection) -> dict[str, float]:
    await db.execute("SELECT pg_stat_clear_snapshot()")
    return {row["funcname"]: row["total_time"] for row in await db.fetch(TIMES)}


if __name__ == "__main__":
    run(parser(__doc__).parse_args(), measure)
