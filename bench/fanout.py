"""From a row to many browsers, beside other hubs: processor time, latency, throughput and memory."""

import asyncio
import functools
import json
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from hubs import GROWN, Clients, Hub, build, connected, present, publish, running
from rowcast.database import Connection
from side_by_side import Database, Row, grid, medians, parser, run, say, settle, until

BY_SSE = ["hot", "topics", "flood", "sustained", "idle", "replay", "storm", "stuck", "workers"]
ALL = [*BY_SSE, "websocket", "websocket-idle", "many", "subscribe"]
PEERS = ["Rowcast", "Rowcast with tokens", "Rowcast over ASGI", "C floor", "nchan", "broadcaster", "NATS"]
SLOW = {"broadcaster"}
"""What they cost is known after one round."""

FRAME = 300
"""Bytes on the wire, on average, of each hub."""

STREAMED = 500
"""The same where Rowcast's come by /api/stream: those of a WebSocket name their session and time, so 300 would not do."""

MISSED = 10_000
RATES = [1000, 2000, 4000, 5000, 6500, 8000, 10_000, 13_000]

SETUP = """
INSERT INTO session (id) SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid FROM generate_series(0, 9999) n;
INSERT INTO message (id, session_id) SELECT id, id FROM session
"""
NEW = """
INSERT INTO session (id) SELECT ('{prefix}' || lpad(n::text, 12, '0'))::uuid FROM generate_series(0, {last}) n;
INSERT INTO message (session_id, text) SELECT ('{prefix}' || lpad(n::text, 12, '0'))::uuid, '@T1.' || n || '.1@'
FROM generate_series(0, {last}) n
"""
CURSOR = "SELECT (SELECT epoch FROM rowcast.epoch ORDER BY id DESC LIMIT 1) || '-' || max(position) FROM rowcast.head"

Figures = dict[str, float]
What = Callable[[Database, Hub], Awaitable[Figures]]


async def measure(database: Database, peers: Sequence[str] = PEERS, scenarios: Sequence[str] = ALL) -> list[Row]:
    build()
    db = await database.connect()
    await db.execute(SETUP)
    await db.close()
    rows = []
    for name in scenarios:
        rows += await SCENARIOS[name](database, [peer for peer in peers if _fits(peer, name) and present(peer)])
    return rows


def _fits(peer: str, scenario: str) -> bool:
    """NATS goes to browsers by WebSocket only; of the others, that of Rowcast alone is measured."""
    if "with tokens" in peer:  # which are in the path that these take
        return scenario in ("hot", "idle", "storm")
    return peer.startswith("Rowcast") or (peer == "NATS") != (scenario in BY_SSE)


async def _compare(database: Database, peers: list[str], what: What, rounds: int = 3) -> dict[str, Figures]:
    """The median of each figure of each peer, measured in turns."""
    found: dict[str, list[Figures]] = {}
    for turn in range(1 if database.quick else min(rounds, database.rounds or rounds)):
        for peer in peers:
            if turn and peer in SLOW:
                continue
            db = await database.connect()
            await settle(db)
            await db.close()
            async with running(peer, database) as hub:
                found.setdefault(peer, []).append(await what(database, hub))
    return {peer: medians({name: [each[name] for each in turns] for name in turns[0]}) for peer, turns in found.items()}


def _table(scenario: str, found: dict[str, Figures], *targets: Row) -> list[Row]:
    """Shows all figures, and gives those that have a target."""
    names = list(next(iter(found.values())))
    lines = [[peer, *(f"{figures[name]:,.{0 if figures[name] >= 1000 else 2}f}" for name in names)] for peer, figures in found.items()]
    say(grid([[scenario, *names], *lines]))
    return list(targets)


def _target(scenario: str, found: dict[str, Figures], figure: str, **bounds: float) -> Row:
    return Row(f"{scenario}: {figure}", found["Rowcast"][figure], "", **bounds)  # type: ignore[arg-type]


def _none(scenario: str, found: dict[str, Figures], figure: str) -> Row:
    return _target(scenario, found, figure, at_most=0)


def _ratios(scenario: str, found: dict[str, Figures], figure: str, most: dict[str, float]) -> list[Row]:
    mine = found["Rowcast"][figure]
    beside = {peer: figures[figure] for peer, figures in found.items() if peer != "Rowcast" and figures[figure]}
    return [Row(f"{scenario}: {figure}", mine, "", mine / theirs, peer, at_most=most.get(peer)) for peer, theirs in beside.items()]


async def _loaded(
    database: Database,
    hub: Hub,
    clients: int,
    topics: int,
    rate: float,
    *,
    each: int = 1,
    batch: int = 1,
    stalled: int = 0,
    frame: int = FRAME,
) -> Figures:
    """Some seconds of events at a rate; 0 is flat out. A client follows `each` of the topics."""
    seconds = 2 if database.quick else 8
    async with connected(hub, clients, topics, each, stalled=stalled) as (load, _):
        await asyncio.sleep(2)
        size = await _size(database, hub, load, (clients - stalled) * each, topics, frame)
        load.reset()
        before, cpu = hub.memory(), hub.cpu()
        publishing = asyncio.create_task(publish(database, hub, topics, rate, seconds, size, batch))
        peak = before
        while not publishing.done():
            peak = max(peak, hub.memory())
            await asyncio.wait([publishing], timeout=0.2)
        sent = await publishing
        per_topic = Counter((client + n * clients) % topics for client in range(stalled, clients) for n in range(each))
        wanted = sum(n * per_topic[topic] for topic, n in enumerate(sent["per_session"]))
        seen = await load.arrived(wanted)
        used, got = hub.cpu() - cpu, seen["delivered"] - seen["dups"]
        if seen["closed"]:
            say(f"{hub.name}: {seen['closed']} connections ended: {seen['first_error']}")
    return {
        "CPU s/M frames": used / max(1, got) * 1e6,
        "p50 ms": seen["lat_ms"]["p50"],
        "p99 ms": seen["lat_ms"]["p99"],
        "frames/s": seen["fps"],
        "lost": wanted - got,
        "doubled or misplaced": seen["dups"] + seen["misrouted"],
        "bytes/frame": seen["event_bytes"] / max(1, got),
        "MB at most": peak / 1024,
        "MB grown": (peak - before) / 1024,
    }


async def _size(database: Database, hub: Hub, load: Clients, followers: int, topics: int, frame: int) -> int:
    """What a publisher must say for frames of that many bytes: Rowcast's carry a cursor and a type as well."""
    size = frame // 2
    for _ in range(2):
        load.reset()
        sent = await publish(database, hub, topics, max(100, min(topics / 2, 500)), 2, size)
        seen = await load.arrived(sum(sent["per_session"]) * followers // topics, patience=2)
        size = max(60, size + int(frame - seen["event_bytes"] / max(1, seen["delivered"])))
    return size


async def hot(database: Database, peers: list[str]) -> list[Row]:
    """1,000 clients of one topic, 100 events/s."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 1000, 1, 100))
    name = "hot topic"
    return _table(
        name,
        found,
        *_ratios(name, found, "CPU s/M frames", {"C floor": 1.3, "nchan": 1.0}),
        _target(name, found, "p99 ms", at_most=20),
        _target(name, found, "lost", at_most=0),
    )


async def topics(database: Database, peers: list[str]) -> list[Row]:
    """1,000 topics with a client each, 500 events/s in all."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 1000, 1000, 500))
    name = "1,000 topics"
    bounds = {"p50 ms": 2, "p99 ms": 5, "lost": 0}
    return _table(name, found, *(_target(name, found, figure, at_most=most) for figure, most in bounds.items()))


async def flood(database: Database, peers: list[str]) -> list[Row]:
    """100 clients of one topic, written as fast as one connection can, 100 rows or notifications a transaction."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h, 100, 1, 0, batch=100))
    name = "flood"
    return _table(name, found, _target(name, found, "frames/s", at_least=1_000_000), _target(name, found, "lost", at_most=0))


async def sustained(database: Database, peers: list[str]) -> list[Row]:
    """100 clients of one topic: the highest rate at which nothing is lost and p99 stays below 100 ms."""
    found = {}
    for peer in peers:
        best = 0.0
        for rate in RATES[:2] if database.quick else RATES:
            async with running(peer, database) as hub:
                seen = await _loaded(database, hub, 100, 1, rate)
            if seen["lost"] or seen["p99 ms"] > 100:
                break
            best = rate * 100
        found[peer] = {"frames/s": best}
    return _table("sustained", found, _target("sustained", found, "frames/s", at_least=400_000))


async def idle(database: Database, peers: list[str]) -> list[Row]:
    """5,000 and 10,000 clients of 1,000 topics, and nothing happens."""
    rows = []
    for clients in (1000,) if database.quick else (5000, 10_000):
        found = await _compare(database, peers, functools.partial(_at_rest, clients=clients), 1)
        name = f"{clients:,} idle"
        bounds = {"KB/client": 4.0, "refused": 0.0, **({"CPU %": 1.0} if clients == 5000 else {})}
        rows += _table(name, found, *(_target(name, found, figure, at_most=most) for figure, most in bounds.items()))
    return rows


async def _at_rest(database: Database, hub: Hub, clients: int) -> Figures:
    async with connected(hub, 64, 64):  # what the first clients cost, the others do not
        await asyncio.sleep(1)
    before = hub.memory()
    async with connected(hub, clients, 1000) as (load, ready):
        await asyncio.sleep(3)
        held, cpu, seconds = hub.memory() - before, hub.cpu(), 5 if database.quick else 20
        await asyncio.sleep(seconds)
        used, ended = hub.cpu() - cpu, (await load.ask("STAT"))["closed"]
        return {"KB/client": held / clients, "CPU %": used / seconds * 100, "refused": clients - ready["ready"] + ended}


async def replay(database: Database, peers: list[str]) -> list[Row]:
    """100 clients at once that missed 10,000 events each. Only hubs with a log can."""
    head = await _missed(database, MISSED)

    async def catching_up(database: Database, hub: Hub) -> Figures:
        cpu = hub.cpu()
        async with connected(hub, 100, path=hub.path.replace("from=now", f"after={head}")) as (load, _):
            seen = await load.arrived(100 * MISSED)
        return {"frames/s": seen["fps"], "lost": 100 * MISSED - seen["delivered"], "CPU s": hub.cpu() - cpu, "MB": hub.memory() / 1024}

    found = await _compare(database, [peer for peer in peers if peer.startswith("Rowcast")], catching_up)
    return _table("replay", found, _target("replay", found, "frames/s", at_least=500_000), _target("replay", found, "lost", at_most=0))


async def storm(database: Database, peers: list[str]) -> list[Row]:
    """2,000 clients connect at once, as after a restart; Rowcast's missed ten events each."""
    head = await _missed(database, 10)

    async def rush(database: Database, hub: Hub) -> Figures:
        cpu = hub.cpu()
        path = hub.path.replace("from=now", f"after={head}")
        async with connected(hub, 2000, path=path, concurrency=2000) as (load, ready):
            missed = 20_000 if hub.name.startswith("Rowcast") else 0
            seen = await load.arrived(missed, patience=3)
        figures = {"seconds": ready["connect_s"], "slowest ms": ready["connect_max_ms"], "refused": ready["failed"]}
        return {**figures, "lost": missed - seen["delivered"], "CPU s": hub.cpu() - cpu}

    found = await _compare(database, peers, rush)
    return _table("storm of 2,000", found, *(_target("storm", found, figure, at_most=0) for figure in ("refused", "lost")))


async def stuck(database: Database, peers: list[str]) -> list[Row]:
    """40 clients of one topic, 200 events/s of 4,000 bytes, without and with one that never reads."""
    rows = []
    mine = [peer for peer in peers if peer.startswith("Rowcast")]
    for name, stalled in {"all read": 0, "one never reads": 1}.items():
        found = await _compare(database, mine, functools.partial(_stuck, stalled=stalled))
        rows += _table(name, found, _target(name, found, "p99 ms"), _target(name, found, "lost", at_most=0))
    return rows


async def _stuck(database: Database, hub: Hub, stalled: int) -> Figures:
    return await _loaded(database, hub, 40 + stalled, 1, 200, stalled=stalled, frame=4000)


async def workers(database: Database, peers: list[str]) -> list[Row]:
    """The hot topic with one process and with two: what the second core gives where the load needs it as well."""
    found = await _compare(database, ["Rowcast", "Rowcast, 2 workers"], lambda d, h: _loaded(d, h, 1000, 1, 100))
    return _table("workers", found, *_ratios("workers", found, "CPU s/M frames", {}))


async def websocket(database: Database, peers: list[str]) -> list[Row]:
    """1,000 WebSocket clients of one topic, 100 events/s."""
    found = await _compare(database, peers, lambda d, h: _loaded(d, h.by("ws"), 1000, 1, 100, frame=STREAMED))
    name = "WebSocket"
    ratios = _ratios(name, found, "CPU s/M frames", {"NATS": 1.0})
    return _table(name, found, *ratios, *(_target(name, found, figure) for figure in ("p50 ms", "p99 ms")), _none(name, found, "lost"))


async def websocket_idle(database: Database, peers: list[str]) -> list[Row]:
    """5,000 WebSocket clients of 1,000 topics, and nothing happens."""
    clients = 1000 if database.quick else 5000
    found = await _compare(database, peers, lambda d, h: _at_rest(d, h.by("ws"), clients), 1)
    name = f"{clients:,} idle by WebSocket"
    return _table(name, found, _target(name, found, "KB/client", at_most=20), _none(name, found, "refused"))


async def many(database: Database, peers: list[str]) -> list[Row]:
    """10,000 topics on 1,000 connections, ten each, 500 events/s in all: by SSE and by WebSocket."""
    rows = []
    for mode, name in {"sse": "10,000 topics by SSE", "ws": "10,000 topics by WebSocket"}.items():
        chosen = [peer for peer in peers if mode == "ws" or peer.startswith("Rowcast")]
        found = await _compare(database, chosen, functools.partial(_many, mode=mode))
        rows += _table(name, found, *(_target(name, found, figure) for figure in ("p50 ms", "p99 ms")), _none(name, found, "lost"))
    return rows


async def _many(database: Database, hub: Hub, mode: str) -> Figures:
    if hub.mode != "nats":
        hub = replace(hub.by(mode), sql=GROWN)
    return await _loaded(database, hub, 1000, 10_000, 500, each=10, frame=STREAMED)


async def subscribe(database: Database, peers: list[str]) -> list[Row]:
    """From asking for a topic to its first event, which is in the log already: 1,000 clients, 200 a second."""
    rows = []
    for how in ("SSE connect", "WebSocket connect", "WebSocket subscribe"):
        found = await _compare(database, [peer for peer in peers if peer != "NATS"], functools.partial(_subscribed, how=how))
        figures = {"p50 ms": None, "p99 ms": 10.0, "lost": 0.0}
        rows += _table(how, found, *(_target(how, found, figure, at_most=most) for figure, most in figures.items()))
    return rows


async def _subscribed(database: Database, hub: Hub, how: str) -> Figures:
    async with connected(hub, 64, 64):  # what the first clients cost, the others do not
        await asyncio.sleep(1)
    clients, rate = (200 if database.quick else 1000), 200
    sessions = await _written(database, clients)
    if how == "SSE connect":
        async with connected(hub.by("sse", f"/api/sse/{sessions}"), clients, clients, rate=rate) as (load, _):
            return await _first(load, clients)
    if how == "WebSocket connect":
        async with connected(hub.by("ws", f"/api/stream?topic=session:{sessions}"), clients, clients, rate=rate) as (load, _):
            return await _first(load, clients)
    async with connected(hub.by("ws", "/api/stream"), clients, clients) as (load, _):
        load.say(json.dumps({"action": "subscribe", "topic": f"session:{sessions}"}), rate)
        return await _first(load, clients)


async def _first(load: Clients, clients: int) -> Figures:
    seen = await load.arrived(clients)
    first, wrong = seen["first_ms"], seen["dups"] + seen["misrouted"]
    if not first["n"]:
        sys.exit(f"no event came: {seen['first_error']}")
    return {
        "p50 ms": first["p50"],
        "p99 ms": first["p99"],
        "max ms": first["max"],
        "lost": clients - first["n"],
        "doubled or misplaced": wrong,
    }


async def _written(database: Database, events: int) -> str:
    """Writes an event for each of so many new sessions, and waits until the log has them; their id, with `{S}` for the number."""
    prefix = str(uuid.uuid4())[:24]
    db = await database.connect()
    await db.execute(NEW.format(prefix=prefix, last=events - 1))
    await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM rowcast.outbox)"))
    await db.close()
    return prefix + "{S}"


async def _missed(database: Database, events: int) -> str:
    """Writes so many events of topic 0; the cursor before them."""
    db = await database.connect()
    async with running("Rowcast", database) as hub:
        before: str = await db.fetchval(CURSOR)
        await _write(db, hub, events)
        await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM rowcast.outbox)"))
    await db.close()
    return before


async def _write(db: Connection, hub: Hub, events: int) -> None:
    update = await db.prepare(hub.sql)
    async with db.transaction():
        for n in range(events):
            await update.fetch("0", f"@T1.0.{n + 1}@" + "x" * 100)


SCENARIOS: dict[str, Callable[[Database, list[str]], Awaitable[list[Row]]]] = dict(
    zip(ALL, (hot, topics, flood, sustained, idle, replay, storm, stuck, workers, websocket, websocket_idle, many, subscribe), strict=True)
)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument(
        "--peers", nargs="+", default=PEERS, choices=[*PEERS, "C floor, joined"], help="beside whom; Rowcast is always there"
    )
    arguments.add_argument("--scenarios", nargs="+", default=ALL, choices=ALL)
    given = arguments.parse_args()
    chosen = ["Rowcast", *(peer for peer in given.peers if peer != "Rowcast")]
    run(given, functools.partial(measure, peers=chosen, scenarios=given.scenarios))
