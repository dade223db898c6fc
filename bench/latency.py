"""From COMMIT to the SSE frame at a client, at 10 and 1,000 events/s with 100 clients."""

import asyncio
import functools
import itertools
import random
import statistics
import time
from collections.abc import Iterator

from rowcast.database import Connection
from side_by_side import APPEND, Database, Row, clients, hub, parser, run, say, settle

WRITERS = 8
"""Connections. One commits less than 1,000 times a second where a flush takes a millisecond."""

MAXIMA = {"p50": 3.0, "p99": 10.0}
UPDATE = f"UPDATE public.message SET text = {APPEND.format('$2')} WHERE id = $1"

Stamps = dict[int, int]
"""When each event happened, in nanoseconds of the monotonic clock, which all processes share."""


async def measure(database: Database, following: int = 100, sessions: int = 100, rates: list[float] | None = None) -> list[Row]:
    seconds = 3 if database.quick else 30
    db = await database.connect()
    await db.execute("INSERT INTO session (id) SELECT gen_random_uuid() FROM generate_series(1, $1)", sessions)
    await db.execute("INSERT INTO message (session_id) SELECT id FROM session, generate_series(1, $1)", WRITERS)
    ids = [str(row["id"]) for row in await db.fetch("SELECT id FROM session ORDER BY id")]
    rows = []
    async with hub(database) as served:
        for rate in rates or [10.0, 1000.0]:
            await settle(db)
            async with clients(served.url, [session for session, _ in zip(itertools.cycle(ids), range(following))]) as streams:
                sent, committed = await _write(database, rate, seconds)
                # Client n follows session n % sessions, and event n is of that session as well.
                wanted = sum(len(range(n % sessions, following, sessions)) for n in committed)
                found = await streams.arrived(wanted)
                marks = await streams.marks()
            if found != wanted:
                raise SystemExit(f"{wanted} frames were due, {found} came")
            who = f"{rate:,.0f} events/s, {following} clients"
            rows.append(Row(f"{who}, written", len(committed) / seconds, "events/s"))
            rows += _rows(f"{who}, COMMIT to frame", [(at - committed[n]) / 1e6 for n, at in marks], MAXIMA)
            rows += _rows(f"{who}, statement to frame", [(at - sent[n]) / 1e6 for n, at in marks], {})
    await db.close()
    return rows


async def _write(database: Database, rate: float, seconds: float) -> tuple[Stamps, Stamps]:
    """Events at random moments, as many as `rate` a second on average, spread over the sessions."""
    connections = [await database.connect() for _ in range(WRITERS)]
    numbers, sent, committed = itertools.count(), Stamps(), Stamps()
    end = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*(_writer(db, n, rate / WRITERS, end, numbers, sent, committed) for n, db in enumerate(connections)))
    for db in connections:
        await db.close()
    return sent, committed


async def _writer(db: Connection, which: int, rate: float, end: float, numbers: Iterator[int], sent: Stamps, committed: Stamps) -> None:
    """Updates messages of its own, one of each session."""
    rows = await db.fetch("SELECT id, row_number() OVER (PARTITION BY session_id ORDER BY id) AS n FROM message ORDER BY session_id")
    mine = [row["id"] for row in rows if row["n"] == which + 1]
    update = await db.prepare(UPDATE)
    await update.fetch(None, "")  # parsed, planned and cached
    loop, rng = asyncio.get_running_loop(), random.Random(which)
    due = loop.time()
    while (due := due + rng.expovariate(rate)) < end:
        await asyncio.sleep(due - loop.time())
        n = next(numbers)
        sent[n] = time.monotonic_ns()
        await update.fetch(mine[n % len(mine)], f"@{n}@")
        committed[n] = time.monotonic_ns()


def _rows(what: str, milliseconds: list[float], maxima: dict[str, float]) -> list[Row]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(milliseconds)}
    say(f"{what}: " + ", ".join(f"{name} {value:.2f} ms" for name, value in figures.items()))
    return [Row(f"{what}, {name}", value, "ms", at_most=maxima.get(name)) for name, value in figures.items()]


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--clients", type=int, default=100, help="SSE clients")
    arguments.add_argument("--sessions", type=int, default=100, help="that they are spread over; 1: all follow the same")
    arguments.add_argument("--rates", type=float, nargs="+", help="events a second, on average; 10 and 1000 unless told")
    options = arguments.parse_args()
    run(options, functools.partial(measure, following=options.clients, sessions=options.sessions, rates=options.rates))
