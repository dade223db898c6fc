"""Single-row UPDATEs at 1, 8 and 64 connections: without a trigger, with pg_notify in a row trigger, and captured by Rowcast."""

from collections.abc import Awaitable, Callable

from side_by_side import APPEND, BARE, Database, Load, Row, clients, hub, medians, parser, pgbench, run, say, settle

CONNECTIONS = (1, 8, 64)
SESSIONS = 4
"""With one SSE client each; the rows are spread over them."""

# Each connection has a row of its own; its id is made from the connection's number.
ROW = "lpad({0}::text, 32, '0')::uuid"
TOKEN = "' @1@'"  # clients.py looks for such a mark
SCRIPT = f"UPDATE {{table}} SET text = {APPEND.format(TOKEN)} WHERE id = {ROW.format(':client_id')};\n"

SETUP = f"""
INSERT INTO public.session (id) SELECT {ROW.format("s")} FROM generate_series(0, {SESSIONS - 1}) s;
INSERT INTO public.message (id, session_id)
SELECT {ROW.format("n")}, {ROW.format(f"(n % {SESSIONS})")} FROM generate_series(0, {max(CONNECTIONS) - 1}) n;
{BARE};
INSERT INTO bench.bare SELECT * FROM public.message;
CREATE TABLE bench.plain (LIKE public.message INCLUDING ALL);
INSERT INTO bench.plain SELECT * FROM public.message;
CREATE FUNCTION bench.notify() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN PERFORM pg_notify('t', row_to_json(NEW)::text); RETURN NULL; END$$;
CREATE TRIGGER notify AFTER INSERT OR UPDATE ON bench.plain FOR EACH ROW EXECUTE FUNCTION bench.notify();
"""


async def bare(database: Database, connections: int, seconds: int) -> Load:
    return await pgbench(database, SCRIPT.format(table="bench.bare"), connections, seconds)


async def plain(database: Database, connections: int, seconds: int) -> Load:
    """With one connection that LISTENs, and no hub: any other listener of this database would be woken too."""
    listener = await database.connect()
    await listener.add_listener("t", lambda *notification: None)
    load = await pgbench(database, SCRIPT.format(table="bench.plain"), connections, seconds)
    await listener.close()
    return load


async def captured(database: Database, connections: int, seconds: int) -> Load:
    """With a hub and clients. Afterwards every committed change must be in the log, and at its client."""
    db = await database.connect()
    sessions = [str(row["id"]) for row in await db.fetch("SELECT id FROM public.session")]
    async with hub(database) as served, clients(served.url, sessions) as streams:
        before = await db.fetchval("SELECT coalesce(max(position), 0) FROM rowcast.event")
        load = await pgbench(database, SCRIPT.format(table="public.message"), connections, seconds)
        frames = await streams.arrived(load.transactions)
        counted = await db.fetch("SELECT count(*), max(position) - $1 FROM rowcast.event WHERE position > $1", before)
    await db.close()
    events, positions = counted[0]
    if {events, positions, frames} != {load.transactions}:
        raise SystemExit(f"{load.transactions} changes were committed: {events} events, {positions} positions, {frames} frames")
    return load


VARIANTS: dict[str, Callable[[Database, int, int], Awaitable[Load]]] = {"bare": bare, "plain": plain, "captured": captured}


async def measure(database: Database) -> list[Row]:
    rounds, seconds = (1, 3) if database.quick else (database.rounds or 5, 8)
    db = await database.connect()
    await db.execute(SETUP)
    rows = []
    for connections in CONNECTIONS:
        tps: dict[str, list[float]] = {name: [] for name in VARIANTS}
        changes = 0
        for number in range(rounds):
            for name, variant in VARIANTS.items():
                await settle(db)
                load = await variant(database, connections, seconds)
                tps[name].append(load.tps)
                changes += load.transactions if name == "captured" else 0
            figures = ", ".join(f"{name} {values[-1]:,.0f} tps" for name, values in tps.items())
            say(f"writers: {connections}, round {number + 1} of {rounds}: {figures}")
        rows += _rows(connections, tps, changes)
    await db.close()
    return rows


def _rows(connections: int, tps: dict[str, list[float]], changes: int) -> list[Row]:
    median, who = medians(tps), f"{connections} writer{'s' if connections > 1 else ''}"
    most = connections == max(CONNECTIONS)
    a, b, c = (median[name] for name in VARIANTS)
    return [
        Row(f"{who}, no trigger", a, "tps", rounds=tps["bare"]),
        Row(f"{who}, pg_notify in a row trigger", b, "tps", b / a, "no trigger", rounds=tps["plain"]),
        Row(f"{who}, Rowcast", c, "tps", c / a, "no trigger", at_least=0.7 if most else None, kept=0.25, rounds=tps["captured"]),
        Row(
            f"{who}, Rowcast",
            c,
            "tps",
            c / b,
            "pg_notify",
            at_least=10 if most else None,
            kept=1.3 if most else None,
            rounds=tps["captured"],
        ),
        Row(f"{who}, Rowcast, of {changes:,} changes", 0, "lost", at_most=0),  # or we would not be here
    ]


if __name__ == "__main__":
    run(parser(__doc__).parse_args(), measure)
