"""What reading the log costs."""

import json
from typing import Any

import asyncpg
import pytest
from rowcast import log
from rowcast.database import READING, create_pool

EVENTS, SESSIONS = 20_000, 200
FILL = f"""
    INSERT INTO rowcast.event (position, outbox_id, session_id, project_id, job_id, type, payload, created_at)
    SELECT n, n, 's' || n % {SESSIONS}, 'p' || n % 50, 'j' || n % 5000, 'x.y', jsonb_build_object('n', n), now() - n % 7 * interval '1 min'
      FROM generate_series(1, {EVENTS}) n
"""

READS = {
    "all": (log._READ_ALL, "bigint, bigint", "5000, 20000", "event_pkey"),
    **{
        kind: (log._READ_TOPIC[kind], "bigint, bigint, text", f"5000, 20000, '{id}'", f"event_{kind}_id_position_idx")
        for kind, id in {"session": "s7", "project": "p1", "job": "j77"}.items()
    },
    "recent": (
        log._RECENT.format(kind="session"),
        "text, bigint, int, interval",
        "'s7', 20000, 1000, '5 min'",
        "event_session_id_position_idx",
    ),
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
    for name, (query, types, given, index) in READS.items():
        await db.execute(f"PREPARE read_{name} ({types}) AS {query}")
        plan = json.loads(await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE read_{name} ({given})"))[0]["Plan"]
        (scan,) = scans(plan)
        assert scan["Node Type"].startswith("Index Scan"), name
        assert scan["Index Name"] == index, name
        assert scan.get("Rows Removed by Filter", 0) == 0, name
        assert scan["Actual Rows"] <= log.READ_EVENTS if name != "recent" else 1000, name


async def test_the_pool_reads_that_way(database: str) -> None:
    async with create_pool(database, 1, pooled=False) as pool:
        for name, value in READING.items():
            assert await pool.fetchval(f"SHOW {name}") == value
