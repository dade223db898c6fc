"""200 answers at once, 50 tokens a second each: by the writer at several intervals, and by an UPDATE a token."""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rowcast_writer import Writer
from side_by_side import Database, Row, clients, hub, medians, parser, run, say, settle

STREAMS, RATE = 200, 50.0
INTERVALS = (0.05, 0.1, 0.2, 0.5)
FIRST_CHUNKS = 300
PIPELINE = Path(__file__).parent / "pipeline.py"


async def measure(database: Database) -> list[Row]:
    # In this order: no hub runs beside the second, and what it leaves in the outbox would be the first's to catch up with.
    return await _first_chunk(database) + await _costs(database)


async def _costs(database: Database) -> list[Row]:
    seconds = 2.0 if database.quick else 20.0
    ways = {"nothing": ("nowhere", 1.0), "an UPDATE a token": ("each token", 1.0)}
    ways |= {f"every {interval * 1000:.0f} ms": ("writer", interval) for interval in INTERVALS}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(database.rounds or 1):
        for name, (way, interval) in ways.items():
            found[name].append(await _one(database, way, interval, seconds))
            say(f"{name}: {found[name][-1]}")
    idle = statistics.median(figures["cpu"] / figures["seconds"] for figures in found.pop("nothing"))
    rows = []
    for name, rounds in found.items():
        per: dict[str, Any] = {
            "tokens/s": [one["characters"] / 6 / one["seconds"] for one in rounds],
            "statements/s": [one["statements"] / one["seconds"] for one in rounds],
            "% of a core in the pipeline's process": [(one["cpu"] / one["seconds"] - idle) * 100 for one in rounds],
            "% of a core in PostgreSQL": [one["server_cpu"] / one["seconds"] * 100 for one in rounds],
            "bytes of WAL a character": [one["wal"] / one["characters"] for one in rounds],
        }
        rows += [Row(f"{STREAMS} × {RATE:g} tokens/s, {name}", value, unit, rounds=per[unit]) for unit, value in medians(per).items()]
    return rows


async def _one(database: Database, way: str, interval: float, seconds: float) -> dict[str, float]:
    db = await database.connect()
    session = await db.fetchval("INSERT INTO session DEFAULT VALUES RETURNING id")
    await settle(db)
    server = _server_cpu(await db.fetchval("SELECT pg_backend_pid()"))
    before, wal = server(), await db.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PIPELINE), way, database.url, str(session), str(STREAMS), str(RATE), str(seconds), str(interval)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{PIPELINE.name} {way} failed")
    figures: dict[str, float] = json.loads(out)
    figures["wal"] = float(await db.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)", wal))
    figures["server_cpu"] = server() - before
    lost = await db.fetchval(
        "SELECT $2 - coalesce(sum(length(text)), 0) FROM message WHERE session_id = $1 AND status = 'completed'",
        session,
        int(figures["characters"]),
    )
    if lost and way != "nowhere":
        raise SystemExit(f"{way}: {lost} characters were lost")
    await db.execute("DELETE FROM session WHERE id = $1", session)
    await db.close()
    return figures


def _server_cpu(backend: int) -> Any:
    """Processor seconds of the server's processes, those that have ended too."""
    postmaster = int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])

    def seconds() -> float:
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat.parent.name) == postmaster:
                ticks += sum(map(int, fields[11:15]))  # with children that have ended
            elif int(fields[1]) == postmaster:
                ticks += sum(map(int, fields[11:13]))
        return ticks / 100

    return seconds


async def _first_chunk(database: Database) -> list[Row]:
    """From write() to the SSE frame at a client, one message after the other, while 50 others go on."""
    db = await database.connect()
    first, other = [str(await db.fetchval("INSERT INTO session DEFAULT VALUES RETURNING id")) for _ in range(2)]
    written = {}
    await settle(db)
    async with hub(database) as served, clients(served.url, [first]) as streams, Writer(database.url) as writer:
        over = asyncio.Event()

        async def talk() -> None:
            async with writer.message(other) as message:
                while not over.is_set():
                    await message.write("token ")
                    await asyncio.sleep(0.02)

        talks = [asyncio.create_task(talk()) for _ in range(50)]
        await asyncio.sleep(1)
        for n in range(20 if database.quick else FIRST_CHUNKS):
            async with writer.message(first) as message:
                written[n] = time.monotonic_ns()
                await message.write(f"@{n}@")
                await asyncio.sleep(0.03)
        over.set()
        await asyncio.gather(*talks)
        await streams.arrived(len(written))
        marks = await streams.marks()
    await db.close()
    took = [(at - written[n]) / 1e6 for n, at in marks]
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return [
        Row(f"first chunk to browser, {name}", value, "ms", at_most=20.0)
        for name, value in (("p50", cuts[49]), ("p95", cuts[94]), ("p99", cuts[98]))
    ]


if __name__ == "__main__":
    run(parser(__doc__).parse_args(), measure)
