"""From a row to many browsers, beside other hubs: processor time, latency, throughput and memory."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hubs import Hub, build, connected, present, publish, running
from side_by_side import Database, Row, medians, parser, run, say, settle, until

PEERS = ["Rowcast", "Rowcast over ASGI", "C floor", "C floor, joined", "nchan", "broadcaster", "tutorial"]
SLOW = {"broadcaster", "tutorial"}
"""What they cost is known after one round."""

FRAME = 300
"""Bytes on the wire, on average, of each hub."""

TOPICS = """
INSERT INTO session (id) SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid FROM generate_series(0, 1999) n
"""

Figures = dict[str, float]
What = Callable[[Database, Hub], Awaitable[Figures]]


async def measure(database: Database, peers: list[str], scenarios: list[str]) -> list[Row]:
    build()
    db = await database.connect()
    await db.execute(TOPICS)
    await db.execute("INSERT INTO message (id, session_id) SELECT id, id FROM session")
    await db.close()
    rows = []
    for name in scenarios:
        rows += await SCENARIOS[name](database, [peer for peer in peers if present(peer)])
    return rows


async def _compare(database: Database, peers: list[str], what: What, rounds: int) -> dict[str, Figures]:
    """The median of each figure of each peer, measured in turns."""
    found: dict[str, list[Figures]] = {}
    for turn in range(1 if database.quick else rounds):
        for peer in peers:
            if turn and peer in SLOW:
                continue
            db = await database.connect()
            await settle(db)
            await db.close()
            async with running(peer, database) as hub:
                figures = await what(database, hub)
            say(f"{peer}: " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
            found.setdefault(peer, []).append(figures)
    return {peer: medians({name: [each[name] for each in turns] for name in turns[0]}) for peer, turns in found.items()}


async def _loaded(
    database: Database, hub: Hub, clients: int, topics: int, rate: float, *, batch: int = 1, stalled: int = 0, frame: int = FRAME
) -> Figures:
    """Some seconds of events at a rate, 0 is flat out."""
    seconds = 2 if database.quick else 8
    async with connected(hub, clients, topics, stalled=stalled) as (load, _):
        await asyncio.sleep(12 if hub.name == "tutorial" else 2)
        size = await _size(database, hub, load, clients - stalled, topics, frame)
        load.reset()
        before, cpu = hub.memory(), hub.cpu()
        publishing = asyncio.create_task(publish(database, hub, topics, rate, seconds, size, batch))
        peak = before
        while not publishing.done():
            peak = max(peak, hub.memory())
            await asyncio.wait([publishing], timeout=0.2)
        sent = await publishing
        per_topic = [len(range(topic, clients, topics)) - (topic < stalled) for topic in range(topics)]
        wanted = sum(n * of for n, of in zip(sent["per_session"], per_topic, strict=True))
        seen = await load.arrived(wanted)
        used, got = hub.cpu() - cpu, seen["delivered"] - seen["dups"]
    return {
        "CPU s per M frames": used / max(1, got) * 1e6,
        "p50 ms": seen["lat_ms"]["p50"],
        "p99 ms": seen["lat_ms"]["p99"],
        "frames/s": seen["fps"],
        "lost": wanted - got,
        "bytes a frame": seen["bytes"] / max(1, got),
        "peak MB": peak / 1024,
        "grown MB": (peak - before) / 1024,
        "out of order": seen["gaps"] + seen["dups"] + seen["misrouted"] if got == wanted else 0,
    }


async def _size(database: Database, hub: Hub, load: Any, clients: int, topics: int, frame: int) -> int:
    """What a publisher must say for frames of that many bytes: Rowcast's carry a cursor and a type as well."""
    size = frame // 2
    for _ in range(2):
        load.reset()
        sent = await publish(database, hub, topics, 100, max(0.5, topics / 200), size)
        seen = await load.arrived(sum(sent["per_session"]) * clients // topics, patience=2)
        size = max(60, size + int(frame - seen["bytes"] / max(1, seen["delivered"])))
    return size


def _rows(scenario: str, found: dict[str, Figures], figures: dict[str, str], targets: dict[str, Any]) -> list[Row]:
    rows = []
    for peer, measured in found.items():
        for name, unit in figures.items():
            target = targets.get(name, {}) if peer == "Rowcast" else {}
            rows.append(Row(f"{scenario}, {peer}: {name}", measured[name], unit, **target))
    return rows


def _ratio(scenario: str, found: dict[str, Figures], figure: str, unit: str, **targets: dict[str, float]) -> list[Row]:
    """Rowcast beside others, one row each: `targets` are by the name of the peer."""
    mine = found.get("Rowcast", {}).get(figure)
    if mine is None:
        return []
    beside = {peer: measured[figure] for peer, measured in found.items() if peer != "Rowcast" and measured[figure]}
    return [
        Row(f"{scenario}, Rowcast: {figure}", mine, unit, mine / value, peer, **targets.get(peer, {})) for peer, value in beside.items()
    ]  # type: ignore[arg-type]


async def hot(database: Database, peers: list[str]) -> list[Row]:
    """1,000 clients of one topic, 100 events/s."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 1000, 1, 100), 3)
    rows = _rows(
        "hot topic",
        found,
        dict.fromkeys(("CPU s per M frames", "p50 ms", "p99 ms", "lost", "bytes a frame"), ""),
        {"p99 ms": {"at_most": 20}, "lost": {"at_most": 0}},
    )
    return rows + _ratio("hot topic", found, "CPU s per M frames", "s", **{"C floor": {"at_most": 1.3}, "nchan": {"at_most": 1.0}})


async def topics(database: Database, peers: list[str]) -> list[Row]:
    """1,000 topics with a client each, 500 events/s in all."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 1000, 1000, 500), 3)
    return _rows(
        "1,000 topics",
        found,
        dict.fromkeys(("CPU s per M frames", "p50 ms", "p99 ms", "lost"), ""),
        {"p50 ms": {"at_most": 2}, "p99 ms": {"at_most": 5}, "lost": {"at_most": 0}},
    )


async def flood(database: Database, peers: list[str]) -> list[Row]:
    """100 clients of one topic, rows written as fast as one connection can, 100 a transaction."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 100, 1, 0, batch=100), 3)
    return _rows(
        "flood",
        found,
        dict.fromkeys(("frames/s", "p99 ms", "lost", "CPU s per M frames", "grown MB"), ""),
        {"frames/s": {"at_least": 1_000_000}, "lost": {"at_most": 0}},
    )


RATES = [500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6500, 8000, 10_000, 13_000]


async def sustained(database: Database, peers: list[str]) -> list[Row]:
    """100 clients of one topic: the highest rate at which nothing is lost and p99 stays below 100 ms."""
    rows = []
    for peer in peers:
        best = 0.0
        for rate in RATES[:3] if database.quick else RATES:
            async with running(peer, database) as hub:
                seen = await _loaded(database, hub, 100, 1, rate)
            say(f"{peer} at {rate:,}/s: " + ", ".join(f"{name} {value:,.2f}" for name, value in seen.items()))
            if seen["lost"] or seen["p99 ms"] > 100:
                break
            best = rate * 100
        rows.append(Row(f"sustained, {peer}", best, "frames/s", at_least=400_000 if peer == "Rowcast" else None))
    return rows


async def idle(database: Database, peers: list[str]) -> list[Row]:
    """5,000 and 10,000 clients of 1,000 topics, and nothing happens."""
    rows = []
    for clients in (1000,) if database.quick else (5000, 10_000):

        async def at_rest(database: Database, hub: Hub, clients: int = clients) -> Figures:
            before = hub.memory()
            async with connected(hub, clients, 1000):
                await asyncio.sleep(3)
                held, cpu = hub.memory() - before, hub.cpu()
                await asyncio.sleep(5 if database.quick else 20)
                return {"KB a client": held / clients, "CPU %": (hub.cpu() - cpu) * (20 if database.quick else 5)}

        found = await _compare(database, [peer for peer in peers if peer != "tutorial"], at_rest, 1)
        rows += _rows(
            f"{clients:,} idle",
            found,
            {"KB a client": "KB", "CPU %": "%"},
            {"KB a client": {"at_most": 4}, "CPU %": {"at_most": 1 if clients == 5000 else None}},
        )
    return rows


MISSED = 10_000


async def replay(database: Database, peers: list[str]) -> list[Row]:
    """100 clients at once that missed 10,000 events each. Only hubs with a log can."""
    db = await database.connect()
    head = await _missed(database, db, MISSED)

    async def catching_up(database: Database, hub: Hub) -> Figures:
        cpu = hub.cpu()
        async with connected(hub, 100, path=hub.path.replace("from=now", f"after={head}")) as (load, _):
            seen = await load.arrived(100 * MISSED)
        return {"frames/s": seen["fps"], "lost": 100 * MISSED - seen["delivered"], "CPU s": hub.cpu() - cpu}

    found = await _compare(database, [peer for peer in peers if peer.startswith("Rowcast")], catching_up, 3)
    await db.close()
    return _rows("replay", found, {"frames/s": "", "lost": "", "CPU s": "s"}, {"frames/s": {"at_least": 500_000}, "lost": {"at_most": 0}})


async def _missed(database: Database, db: Any, events: int) -> str:
    """Writes so many events of topic 0; the cursor before them."""
    cursor = "SELECT (SELECT epoch FROM rowcast.epoch ORDER BY id DESC LIMIT 1) || '-' || max(position) FROM rowcast.head"
    async with running("Rowcast", database) as hub:
        before: str = await db.fetchval(cursor)
        await _exactly(database, hub, events)
        await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM rowcast.outbox)"))
    return before


async def _exactly(database: Database, hub: Hub, events: int) -> None:
    db = await database.connect()
    update = await db.prepare(hub.sql)
    async with db.transaction():
        for n in range(events):
            await update.fetch("0", f"@T1.0.{n + 1}@" + "x" * 100)
    await db.close()


async def storm(database: Database, peers: list[str]) -> list[Row]:
    """2,000 clients connect at once, as after a restart; Rowcast's missed ten events each."""
    db = await database.connect()
    head = await _missed(database, db, 10)

    async def rush(database: Database, hub: Hub) -> Figures:
        cpu = hub.cpu()
        path = hub.path.replace("from=now", f"after={head}")
        async with connected(hub, 2000, path=path, concurrency=2000) as (load, ready):
            missed = 20_000 if hub.name.startswith("Rowcast") else 0
            seen = await load.arrived(missed, patience=3)
            return {
                "s to connect all": ready["connect_s"],
                "slowest ms": ready["connect_max_ms"],
                "lost": missed - seen["delivered"],
                "CPU s": hub.cpu() - cpu,
            }

    found = await _compare(database, [peer for peer in peers if peer != "tutorial"], rush, 3)
    await db.close()
    return _rows("storm", found, {"s to connect all": "s", "slowest ms": "ms", "lost": "", "CPU s": "s"}, {"lost": {"at_most": 0}})


async def stuck(database: Database, peers: list[str]) -> list[Row]:
    """40 clients of one topic, 200 events/s of 4,000 bytes, without and with one that never reads."""
    mine = [peer for peer in peers if peer.startswith("Rowcast")]
    without = await _compare(database, mine, lambda d, h: _loaded(d, h, 40, 1, 200, frame=4000), 3)
    beside = await _compare(database, mine, lambda d, h: _loaded(d, h, 40, 1, 200, stalled=1, frame=4000), 3)
    figures = {"p50 ms": "ms", "p99 ms": "ms", "lost": "", "grown MB": "MB"}
    return _rows("all read", without, figures, {}) + _rows("one never reads", beside, figures, {"lost": {"at_most": 0}})


SCENARIOS = {
    "hot": hot,
    "topics": topics,
    "flood": flood,
    "sustained": sustained,
    "idle": idle,
    "replay": replay,
    "storm": storm,
    "stuck": stuck,
}


def options() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", default=PEERS, choices=[*PEERS, "Rowcast, 2 workers"], help="beside whom")
    arguments.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    return arguments


if __name__ == "__main__":
    given = options().parse_args()

    async def measured(database: Database) -> list[Row]:
        return await measure(database, given.peers, given.scenarios)

    run(given, measured)
