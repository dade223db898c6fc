"""What reading the log costs."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from rowcast import queries
from rowcast.database import READING, create_pool
from rowcast.events import AUDIENCES, Position, Topic
from rowcast.log import Log

EVENTS, SESSIONS = 20_000, 200
FILL = f"""
    INSERT INTO rowcast.event (position, outbox_id, session_id, project_id, job_id, type, payload, created_at)
    SELECT n, n, 's' || n % {SESSIONS}, 'p' || n % 50, 'j' || n % 5000, 'x.y', jsonb_build_object('n', n), now() - n % 7 * interval '1 min'
      FROM generate_series(1, {EVENTS}) n
"""

IDS = "text[], text[], text[], text[], text[], text[]"
FEW = "'{s7,s8,s9}', '{p1}', '{j77,j78}', '{}', '{u1}', '{}'"
PARTIAL = {f"event_{column}_position_idx" for column in AUDIENCES.values()}

# The statement, its types, what it is asked, which indexes it may use, and how many rows it may touch.
READS = {
    "all": (queries.READ_ALL, "bigint, bigint", "5000, 20000", {"event_pkey"}, queries.READ_EVENTS),
    **{
        kind: (
            queries.READ_TOPIC[kind],
            "bigint, bigint, text",
            f"5000, 20000, '{id}'",
            {f"event_{kind}_id_position_idx"},
            queries.READ_EVENTS,
        )
        for kind, id in {"session": "s7", "project": "p1", "job": "j77"}.items()
    },
    "several": (queries.READ_SEVERAL, f"bigint, bigint, {IDS}", f"5000, 20000, {FEW}", PARTIAL | {"event_pkey"}, 3 * queries.READ_EVENTS),
    "recent": (queries.RECENT, f"bigint, int, interval, {IDS}", f"20000, 1000, '5 min', {FEW}", PARTIAL, 1000),
}


def scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    below = [scan for child in plan.get("Plans", []) for scan in scans(child)]
    return [plan, *below] if plan.get("Relation Name") == "event" else below


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("analyzed", ["never", "empty", "full"])
async def test_a_read_touches_what_it_returns(db: asyncpg.Connection, mode: str, analyzed: str) -> None:
    """Whatever the planner believes of the table."""
    if analyzed == "empty":
        await db.execute("ANALYZE rowcast.event")
    await db.execute(FILL)
    if analyzed == "full":
        await db.execute("ANALYZE rowcast.event")
    await db.execute(f"SET plan_cache_mode = {mode}" + "".join(f"; SET {name} = {value}" for name, value in READING.items()))
    for name, (query, types, given, indexes, most) in READS.items():
        await db.execute(f"PREPARE read_{name} ({types}) AS {query}")
        plan = json.loads(await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE read_{name} ({given})"))[0]["Plan"]
        for scan in scans(plan):
            assert scan["Node Type"].startswith("Index"), name
            assert scan["Index Name"] in indexes, name
            assert scan.get("Rows Removed by Filter", 0) == 0, name
        assert 0 < sum(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans(plan)) <= most, name


async def test_the_pool_reads_that_way(database: str) -> None:
    async with create_pool(database, 1, pooled=False) as pool:
        for name, value in READING.items():
            assert await pool.fetchval(f"SHOW {name}") == value


async def test_who_asks_at_once_is_answered_for_its_own_topics(database: str, db: asyncpg.Connection) -> None:
    await db.execute(FILL)
    seven, eight = (Topic("session", "s7"),), (Topic("session", "s8"),)
    upto, newest = Position(EVENTS), {seven: EVENTS - SESSIONS + 7, eight: EVENTS - SESSIONS + 8, (*seven, *eight): EVENTS - SESSIONS + 8}
    async with create_pool(database, 4, pooled=False) as pool:
        log = Log(pool)
        asked = [topics for topics in newest for _ in range(5)]
        found = await asyncio.gather(*(log.recent(topics, upto, timedelta(days=1), 1) for topics in asked))
        assert found == [newest[topics] - 1 for topics in asked]
        read = await asyncio.gather(*(log.read("00000000", Position(EVENTS - SESSIONS), upto, topics) for topics in asked))
        assert [batch.events[-1].position for batch in read] == [newest[topics] for topics in asked]
