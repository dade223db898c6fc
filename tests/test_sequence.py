"""sequence(), adopt() and prune(): every committed change exactly once, whatever order transactions commit in."""

import asyncio
import json
import os
import re
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rowcast import schema

from .rig import Writer, on_database

CAPTURE = "INSERT INTO rowcast.outbox (session_id, type, payload) VALUES ('s', 'test', $1)"


async def log(db: asyncpg.Connection) -> list[asyncpg.Record]:
    return list(await db.fetch("SELECT * FROM rowcast.event ORDER BY position"))


async def drain(db: asyncpg.Connection, limit: int = 1000) -> int:
    total = 0
    while True:
        row = await db.fetchrow("SELECT * FROM rowcast.sequence($1)", limit)
        total += row["n"]
        if not row["more"]:
            return total


class World:
    """Several writers and sequencers, one step at a time, and what must come of it."""

    WRITERS = 4

    def __init__(self, database: str) -> None:
        self.database = database
        self.number = 0
        self.committed: list[tuple[int, int]] = []
        """(writer's transaction, number) of each committed change, in the order of the commits."""
        self.seen_before: dict[int, set[int]] = {}
        """For each change: those committed before it was written."""

    async def open(self) -> None:
        self.db = await asyncpg.connect(self.database)
        self.sequencers = [await asyncpg.connect(self.database) for _ in range(2)]
        self.writers = [await asyncpg.connect(self.database) for _ in range(self.WRITERS)]
        self.pending: list[list[int]] = [[] for _ in self.writers]
        self.marks: list[list[int]] = [[] for _ in self.writers]

    async def close(self) -> None:
        for connection in (self.db, *self.sequencers, *self.writers):
            await connection.close()

    async def step(self, who: int, what: str, how: int) -> None:
        writer = self.writers[who]
        if what == "sequence":
            await self.sequencers[how % 2].fetchrow("SELECT * FROM rowcast.sequence($1)", 1 + how)
        elif what == "prune":
            await self.db.execute("SELECT rowcast.prune('1 day', 100)")
        elif what == "write":
            await self._begin(who, how)
            for _ in range(1 + how % 3):
                self.number += 1
                self.seen_before[self.number] = {number for _, number in self.committed}
                await writer.execute(CAPTURE, json.dumps(self.number))
                self.pending[who].append(self.number)
        elif what == "savepoint":
            await self._begin(who, how)
            await writer.execute(f"SAVEPOINT s{len(self.marks[who])}")
            self.marks[who].append(len(self.pending[who]))
        elif what == "back" and self.marks[who]:
            mark = self.marks[who].pop()
            await writer.execute(f"ROLLBACK TO SAVEPOINT s{len(self.marks[who])}")
            del self.pending[who][mark:]
        elif what in ("commit", "rollback") and writer.is_in_transaction():
            await writer.execute(what.upper())
            if what == "commit":
                self.committed += [(id(self.pending[who]), number) for number in self.pending[who]]
            self.pending[who], self.marks[who] = [], []

    async def _begin(self, who: int, how: int) -> None:
        if not self.writers[who].is_in_transaction():
            level = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")[how % 3]
            await self.writers[who].execute(f"BEGIN ISOLATION LEVEL {level}")
            if how % 2:
                await self.writers[who].execute("SELECT pg_current_xact_id()")  # an id long before the first row

    async def finish(self) -> None:
        for who in range(self.WRITERS):
            await self.step(who, "commit", 0)
        await drain(self.sequencers[0])

    async def check(self) -> None:
        rows = await log(self.db)
        assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
        order = [json.loads(row["payload"]) for row in rows]
        assert sorted(order) == sorted(number for _, number in self.committed)
        place = {number: n for n, number in enumerate(order)}
        for transaction in {t for t, _ in self.committed}:
            places = [place[number] for t, number in self.committed if t == transaction]
            assert places == sorted(places), "the events of one transaction are in statement order"
        for number in order:
            assert all(place[earlier] < place[number] for earlier in self.seen_before[number]), "cause comes before effect"


STEPS = st.tuples(
    st.integers(0, World.WRITERS - 1),
    st.sampled_from(["write"] * 5 + ["commit"] * 4 + ["sequence"] * 6 + ["savepoint", "back", "rollback", "prune"]),
    st.integers(0, 5),
)


# A mutant need not be shrunk.
PHASES = [phase for phase in Phase if phase is not Phase.shrink or "ROWCAST_MUTANT" not in os.environ]


@settings(max_examples=40, phases=PHASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=20, max_size=80))
def test_the_log_is_the_committed_changes(steps: list[tuple[int, str, int]], server_url: str, template: str) -> None:
    from .conftest import fresh

    async def run(database: str) -> None:
        await on_database(database, "SELECT rowcast.adopt()")
        world = World(database)
        await world.open()
        try:
            for who, what, how in steps:
                await world.step(who, what, how)
            await world.finish()
            await world.check()
        finally:
            await world.close()

    for database in fresh(server_url, template):
        asyncio.run(run(database))


async def test_a_long_transaction_delays_its_own_events_and_nobody_elses(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    slow = await asyncpg.connect(database)
    await slow.execute("BEGIN")
    await slow.execute(CAPTURE, '"slow"')
    for n in range(3):
        await db.execute(CAPTURE, str(n))
        assert await drain(db) == 1
    await slow.execute("COMMIT")
    assert await drain(db) == 1
    assert [row["payload"] for row in await log(db)] == ["0", "1", "2", '"slow"']
    await slow.close()


async def test_nothing_found_writes_nothing_and_takes_no_transaction_id(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.adopt()")
    await db.execute(CAPTURE, "1")
    await drain(db)
    heads = await db.fetchval("SELECT count(*) FROM rowcast.head")
    before = await db.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    for _ in range(10):
        assert tuple(await db.fetchrow("SELECT * FROM rowcast.sequence(10)")) == (0, False)
    assert await db.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint") == before
    assert await db.fetchval("SELECT count(*) FROM rowcast.head") == heads


async def test_the_range_stays_short_when_others_write(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.adopt()")
    await db.execute("DO $$ BEGIN FOR i IN 1..10050 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
    heads = await db.fetchval("SELECT count(*) FROM rowcast.head")
    await drain(db)
    assert await db.fetchval("SELECT count(*) FROM rowcast.head") == heads + 1


@pytest.mark.parametrize("begin", ["BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN; SELECT pg_current_xact_id()"])
async def test_it_refuses_a_transaction_that_is_not_its_own(db: asyncpg.Connection, begin: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    for function in ("sequence(1)", "adopt()"):
        await db.execute(begin)
        with pytest.raises(asyncpg.ActiveSQLTransactionError):
            await db.execute(f"SELECT rowcast.{function}")
        await db.execute("ROLLBACK")


async def test_a_missing_head_is_an_error(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.adopt()")
    await db.execute("DELETE FROM rowcast.head")
    with pytest.raises(asyncpg.NoDataFoundError):
        await db.execute("SELECT rowcast.sequence(1)")


async def notices(database: str) -> tuple[asyncpg.Connection, list[Any]]:
    heard: list[Any] = []
    connection = await asyncpg.connect(database)
    await connection.add_listener(await secret(connection), lambda *a: heard.append(a[3]))
    return connection, heard


async def secret(db: asyncpg.Connection) -> str:
    """The channel of the hubs."""
    return str(await db.fetchval("SELECT channel FROM rowcast.secret"))


async def test_each_event_is_notified_in_order_and_whole_below_the_limit(db: asyncpg.Connection, database: str) -> None:
    """P1: envelopes of 7,990 to 8,010 bytes, in ASCII, Chinese and emoji, and 1 MB."""
    epoch = await db.fetchval("SELECT rowcast.adopt()")
    listening, heard = await notices(database)
    await db.execute(CAPTURE, '""')
    await drain(db)
    await listening.execute("SELECT 1")
    empty = len(heard.pop().encode())
    for character in ("a", "语", "🎯"):
        for size in (*range(7_985, 8_011), 1_000_000):
            whole, rest = divmod(size - empty, len(character.encode()))
            await db.execute(CAPTURE, json.dumps("a" * rest + character * whole, ensure_ascii=False))
    await drain(db)
    await listening.execute("SELECT 1")
    rows = await db.fetch("SELECT position, payload FROM rowcast.event WHERE position > 1 ORDER BY position")
    assert [json.loads(notice)["position"] for notice in heard] == [row["position"] for row in rows]
    close_calls = []
    for notice, row in zip(heard, rows, strict=True):
        envelope, size = json.loads(notice), len(notice.encode())
        assert size < 8000
        assert envelope["epoch"] == epoch
        if "payload" in envelope:
            assert envelope["payload"] == json.loads(row["payload"])
        else:
            size += len(', "payload": ') + len(row["payload"].encode())
            assert size >= 8000, "left out only where it had to be"
        if size < 1_000_000:
            close_calls.append(size)
    assert min(close_calls) < 7_995
    assert {7_999, 8_000} <= set(close_calls)
    assert max(close_calls) > 8_005
    await listening.close()


async def test_a_backlog_is_one_notification(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await notices(database)
    await db.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '{}' FROM generate_series(1, 2500)")
    assert await drain(db, 5000) == 2500
    await listening.execute("SELECT 1")
    assert [json.loads(notice)["upto"] for notice in heard] == [2500]
    await listening.close()


async def test_it_commits_synchronously_whatever_the_session_does(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.adopt()")
    await db.execute("SET synchronous_commit = off")
    await db.execute(CAPTURE, "1")
    async with db.transaction():
        await db.fetchrow("SELECT * FROM rowcast.sequence(10)")
        assert await db.fetchval("SHOW synchronous_commit") == "on"


@pytest.mark.parametrize("running", [0, 1, 20])
async def test_the_scan_keeps_its_index_whatever_the_planner_believed(db: asyncpg.Connection, database: str, running: int) -> None:
    """Planned for good when the outbox was small, then 50,000 rows that are sequenced but not pruned yet; with other
    transactions under way."""
    await db.execute("SELECT rowcast.adopt()")
    others = [await asyncpg.connect(database) for _ in range(running)]
    for connection in others:
        await connection.execute("BEGIN; SELECT pg_current_xact_id()")
    for _ in range(8):  # generic plans come after the fifth
        await db.execute(CAPTURE, "1")
        await db.execute("ANALYZE rowcast.outbox")
        await drain(db)
    other = await asyncpg.connect(database)
    await other.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '{}' FROM generate_series(1, 50000)")
    await drain(other, 50_000)
    await other.close()
    await db.execute(CAPTURE, "1")
    async with db.transaction():
        scanned = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_all_tables WHERE relid = 'rowcast.outbox'::regclass"
        before = await db.fetchval(scanned)
        await db.fetchrow("SELECT * FROM rowcast.sequence(10)")
        assert await db.fetchval(scanned) - before < 50
    for connection in others:
        await connection.close()


async def test_prune_deletes_what_is_sequenced_and_old_and_nothing_else(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    slow = await asyncpg.connect(database)
    await slow.execute("BEGIN")
    await slow.execute(CAPTURE, '"slow"')
    await db.execute(
        "INSERT INTO rowcast.outbox (type, payload, created_at) SELECT 'test', '{}', now() - interval '2 days' FROM generate_series(1, 150)"
    )
    await drain(db, 40)
    await db.execute(CAPTURE, '"unsequenced"')
    assert [await db.fetchval("SELECT rowcast.prune('1 day', 100)") for _ in range(3)] == [100, 50, 0]
    assert await db.fetchval("SELECT floor FROM rowcast.pruned") == 150
    assert await db.fetchval("SELECT count(*) FROM rowcast.event") == 0
    assert await db.fetchval("SELECT count(*) FROM rowcast.head") == 1
    assert [row["payload"] for row in await db.fetch("SELECT payload FROM rowcast.outbox")] == ['"unsequenced"']
    await slow.execute("COMMIT")
    await drain(db)
    await db.execute("SELECT rowcast.prune('1 day', 100)")
    assert sorted(row["payload"] for row in await log(db)) == ['"slow"', '"unsequenced"']
    assert await db.fetchval("SELECT count(*) FROM rowcast.outbox") == 0
    await slow.close()


@pytest.mark.parametrize("pruned_between", [True, False])
async def test_prune_never_takes_a_row_that_committed_late(db: asyncpg.Connection, database: str, pruned_between: bool) -> None:
    """Its id lies below the head's, it is committed, but the head's snapshot did not show it."""
    await db.execute("SELECT rowcast.adopt()")
    slow = await asyncpg.connect(database)
    await slow.execute("BEGIN")
    await slow.execute(CAPTURE, '"slow"')
    await db.execute(CAPTURE, '"quick"')
    await drain(db)
    if pruned_between:
        await db.execute("SELECT rowcast.prune('1 day', 100)")
        await db.execute(CAPTURE, '"another"')
        await drain(db)
    await slow.execute("COMMIT")
    await db.execute("SELECT rowcast.prune('1 day', 100)")
    await drain(db)
    assert [row["payload"] for row in await log(db)][-1] == '"slow"'
    await slow.close()


async def test_prune_never_takes_a_row_that_a_half_done_call_left(db: asyncpg.Connection) -> None:
    await db.execute("SELECT rowcast.adopt()")
    for n in range(10):
        await db.execute(CAPTURE, str(n))
    for _ in range(10):
        await db.fetchrow("SELECT * FROM rowcast.sequence(3)")
        await db.execute("SELECT rowcast.prune('1 day', 100)")
    assert [row["payload"] for row in await log(db)] == [str(n) for n in range(10)]


async def test_a_copy_of_the_database_is_taken_over_with_what_the_outbox_holds(
    server_url: str, db: asyncpg.Connection, database: str
) -> None:
    """As dump and restore leave it: the same rows, written by other transactions of another cluster."""
    old = await db.fetchval("SELECT rowcast.adopt()")
    await db.execute(CAPTURE, '"sequenced"')
    await drain(db)
    await db.execute(CAPTURE, '"in the outbox"')
    await db.execute("UPDATE rowcast.outbox SET request_id = 'r', user_id = repeat('x', 9999), table_name = 't', channel = 'c'")
    # What a restore does to the rows: new xmin, and ids that mean nothing here.
    await db.execute("CREATE TEMP TABLE copy AS SELECT * FROM rowcast.epoch")
    await db.execute("DELETE FROM rowcast.epoch")
    await db.execute("INSERT INTO rowcast.epoch OVERRIDING SYSTEM VALUE SELECT * FROM copy")
    await db.execute("UPDATE rowcast.head SET low = '900000:900000:'")
    await db.execute("UPDATE rowcast.outbox SET xid = '800000'")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await db.execute("SELECT rowcast.sequence(1)")
    assert refused.value.sqlstate == "RC001"
    new = await db.fetchval("SELECT rowcast.adopt()")
    assert new != old
    assert await db.fetchval("SELECT rowcast.adopt()") == new
    await db.execute(CAPTURE, '"after"')
    await drain(db)
    assert [row["payload"] for row in await log(db)] == ['"sequenced"', '"in the outbox"', '"after"']
    audience = await db.fetchrow("SELECT session_id, request_id, user_id, table_name, channel FROM rowcast.event WHERE position = 2")
    assert tuple(audience) == ("s", "r", None, "t", "c")
    await db.execute("SELECT rowcast.prune('1 day', 100)")
    assert await db.fetchval("SELECT count(*) FROM rowcast.outbox") == 0


async def test_vacuum_freeze_and_rewrites_leave_the_identity_alone(db: asyncpg.Connection) -> None:
    epoch = await db.fetchval("SELECT rowcast.adopt()")
    for command in ("VACUUM (FREEZE) rowcast.epoch", "VACUUM FULL rowcast.epoch", "CLUSTER rowcast.epoch USING epoch_pkey"):
        await db.execute(command)
        assert await db.fetchval("SELECT rowcast.adopt()") == epoch


async def test_a_new_timeline_opens_an_epoch_that_goes_on(db: asyncpg.Connection) -> None:
    first = await db.fetchval("SELECT rowcast.adopt()")
    await db.execute(CAPTURE, "1")
    await drain(db)
    # A promotion changes the server's timeline under the row; here the row is made to name an older one.
    await db.execute("DELETE FROM rowcast.epoch")
    await db.execute(
        """INSERT INTO rowcast.epoch (epoch, start, timeline, database)
           SELECT $1, 0, '00000000', oid FROM pg_database WHERE datname = current_database()""",
        first,
    )
    second = await db.fetchval("SELECT rowcast.adopt()")
    assert [tuple(row) for row in await db.fetch("SELECT epoch, start FROM rowcast.epoch ORDER BY id")] == [(first, 0), (second, 1)]


async def test_two_sequencers_at_once_serialise(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    others = [await asyncpg.connect(database) for _ in range(4)]
    for n in range(200):
        await db.execute(CAPTURE, str(n))
    await asyncio.gather(*(drain(other, 7) for other in others))
    assert [row["payload"] for row in await log(db)] == [str(n) for n in range(200)]
    for other in others:
        await other.close()


async def test_events_written_through_the_tables_arrive(writer: Writer) -> None:
    await writer.db.execute("SELECT rowcast.adopt()")
    session = await writer.session()
    message = await writer.message(session, "a")
    await writer.update("message", message, text="ab")
    await drain(writer.db)
    assert [(row["type"], row["session_id"]) for row in await log(writer.db)] == [
        ("agent.message.appended", session),
        ("message.delta", session),
    ]


async def test_outbox_ids_are_not_cached(db: asyncpg.Connection) -> None:
    """Order within and between transactions rests on it."""
    assert (
        await db.fetchval("SELECT seqcache FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence('rowcast.outbox', 'id')::regclass") == 1
    )


@pytest.mark.parametrize(
    "payload",
    [
        "jsonb_build_object('text', repeat(chr(1), 200000000))",  # six bytes each as text
        "(SELECT jsonb_agg(1e130000::numeric) FROM generate_series(1, 9000))",
        "jsonb_build_object('text', repeat('x', 40000000))",
    ],
)
async def test_a_payload_that_nobody_can_read_stops_nobody(db: asyncpg.Connection, payload: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    await db.execute(f"INSERT INTO rowcast.outbox (session_id, type, payload) SELECT 's', 'test', {payload}")
    await db.execute(CAPTURE, "1")
    await drain(db)
    assert [row["payload"] for row in await log(db)] == ['{"omitted": true}', "1"]


async def test_large_columns_do_not_fail_the_write(writer: Writer) -> None:
    session = await writer.session()
    await writer.db.execute(
        "INSERT INTO job (session_id, result) VALUES ($1::uuid, jsonb_build_object('a', repeat('x', 268435300)))", session
    )
    (row,) = await writer.outbox()
    assert json.loads(row["payload"])["job"]["result"] is None


HUBS = "hubs"


async def hears(database: str, *channels: str) -> tuple[asyncpg.Connection, list[tuple[str, Any]]]:
    """Which channel said what; HUBS is the secret one."""
    heard: list[tuple[str, Any]] = []
    connection = await asyncpg.connect(database)
    hubs = await secret(connection)
    for channel in channels:
        await connection.add_listener(
            hubs if channel == HUBS else channel, lambda *a: heard.append((HUBS if a[2] == hubs else a[2], json.loads(a[3])))
        )
    return connection, heard


ON_CHANNEL = "INSERT INTO rowcast.outbox (type, payload, channel) VALUES ('test', $2, $1)"


async def test_an_event_with_a_channel_is_told_there_too_in_order_and_bare(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "orders", HUBS)
    await db.execute(ON_CHANNEL, "orders", '{"a": 1}')
    await db.execute(CAPTURE, "2")
    await db.execute(ON_CHANNEL, "orders", '{"a": 3}')
    await drain(db)
    await listening.execute("SELECT 1")
    assert [(channel, told.get("position", told)) for channel, told in heard] == [
        (HUBS, 1),
        ("orders", {"a": 1}),
        (HUBS, 2),
        (HUBS, 3),
        ("orders", {"a": 3}),
    ]
    await listening.close()


async def test_the_channel_that_everybody_knows_says_once_a_call_how_far_the_log_goes(db: asyncpg.Connection, database: str) -> None:
    """Without a word of what happened."""
    epoch = await db.fetchval("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "rowcast")
    for n in range(5):
        await db.execute(CAPTURE, f'"{n}"')
    await drain(db, 3)
    await db.execute("INSERT INTO rowcast.outbox (type, payload) SELECT 'test', '{}' FROM generate_series(1, 2500)")
    await drain(db, 5000)
    await drain(db)  # nothing is there, nothing is said
    await listening.execute("SELECT 1")
    assert [told for _, told in heard] == [{"epoch": epoch, "upto": upto} for upto in (3, 5, 2505)]
    await listening.close()


async def test_the_secret_has_no_name_that_anybody_could_guess(db: asyncpg.Connection, empty_database: str) -> None:
    name = await secret(db)
    assert re.fullmatch("rowcast_[0-9a-f]{32}", name)
    assert not await db.fetchval("SELECT rowcast.is_channel($1)", name)  # no event goes there by its own `channel`
    await schema.migrate(empty_database, "head")
    other = await asyncpg.connect(empty_database)
    assert await secret(other) != name
    await other.close()
    await db.execute("DELETE FROM rowcast.secret")
    await db.execute("SELECT rowcast.adopt()")
    await db.execute(CAPTURE, "1")
    with pytest.raises(asyncpg.NoDataFoundError):
        await db.execute("SELECT rowcast.sequence(1)")


async def test_a_request_is_told_on_its_channel_out_of_the_box(writer: Writer, database: str) -> None:
    await writer.db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "request_update")
    request = await writer.insert("request", session_id=await writer.session())
    await writer.db.execute("DELETE FROM request")
    await drain(writer.db)
    await listening.execute("SELECT 1")
    assert [(told["request_id"], told["status"]) for _, told in heard] == [(str(request), "pending")]
    await listening.close()


@pytest.mark.parametrize("character", ["a", "语"])
async def test_a_payload_over_the_limit_is_a_stub_on_its_channel(db: asyncpg.Connection, database: str, character: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "orders")
    for size in (*range(7_995, 8_003), 1_000_000):
        whole, rest = divmod(size - 2, len(character.encode()))
        await db.execute(ON_CHANNEL, "orders", json.dumps(character * whole + "a" * rest, ensure_ascii=False))
    await drain(db)
    await listening.execute("SELECT 1")
    whole = [position for position, (_, told) in enumerate(heard, 1) if isinstance(told, str)]
    assert whole == [1, 2, 3, 4, 5]  # up to 7,999 bytes
    assert [told for _, told in heard[5:]] == [{"position": position, "omitted": True} for position in range(6, 10)]
    await listening.close()


async def test_a_backlog_is_one_notification_on_each_channel(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "orders", "bills")
    await db.execute(
        """INSERT INTO rowcast.outbox (type, payload, channel)
           SELECT 'test', '{}', (ARRAY['orders', 'bills', NULL, '', 'rowcast'])[n % 5 + 1] FROM generate_series(1, 2500) n"""
    )
    assert await drain(db, 5000) == 2500
    await listening.execute("SELECT 1")
    assert sorted(heard, key=str) == [("bills", {"upto": 2500}), ("orders", {"upto": 2500})]
    await listening.close()


@pytest.mark.parametrize("bad", ["", "x" * 64, "语" * 22, "rowcast", "rowcast_doorbell", "rowcast_beat_0"])
async def test_a_bad_channel_stops_nothing_and_is_told_nothing(db: asyncpg.Connection, database: str, bad: str) -> None:
    epoch = await db.fetchval("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "orders", HUBS, "rowcast", "rowcast_doorbell", "rowcast_beat_0")
    await db.execute(ON_CHANNEL, bad, '{"a": 1}')
    await db.execute(ON_CHANNEL, "orders", '{"a": 2}')
    await drain(db)
    await listening.execute("SELECT 1")
    assert [(channel, told.get("position", told)) for channel, told in heard] == [
        (HUBS, 1),
        (HUBS, 2),
        ("orders", {"a": 2}),
        ("rowcast", {"epoch": epoch, "upto": 2}),
    ]
    assert {told["epoch"] for channel, told in heard if channel == HUBS} == {epoch}
    await db.execute(f"INSERT INTO rowcast.outbox (type, payload, channel) SELECT 'test', '{{}}', '{bad}' FROM generate_series(1, 2500)")
    assert await drain(db, 5000) == 2500
    await listening.close()


async def test_identical_payloads_of_one_call_are_told_once_on_their_channel(db: asyncpg.Connection, database: str) -> None:
    """PostgreSQL does that, to all who NOTIFY; the log has each."""
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, "orders", HUBS)
    for payload in ('{"a": 1}', '{"a": 1}', '{"a": 2}'):
        await db.execute(ON_CHANNEL, "orders", payload)
    await drain(db)
    await listening.execute("SELECT 1")
    assert [told for channel, told in heard if channel == "orders"] == [{"a": 1}, {"a": 2}]
    assert len([channel for channel, _ in heard if channel == HUBS]) == len(await log(db)) == 3
    await listening.close()


AUDIENCES = ("session_id", "project_id", "job_id", "request_id", "user_id", "table_name")


async def test_every_audience_travels_from_the_outbox_to_the_log_and_in_the_envelope(db: asyncpg.Connection, database: str) -> None:
    await db.execute("SELECT rowcast.adopt()")
    listening, heard = await hears(database, HUBS)
    await db.execute(
        f"INSERT INTO rowcast.outbox ({', '.join(AUDIENCES)}, type, payload) VALUES ('a', 'b', 'c', 'd', 'e', 'f', 'test', '{{}}')"
    )
    await drain(db)
    await listening.execute("SELECT 1")
    (row,) = await log(db)
    assert [row[name] for name in AUDIENCES] == [heard[0][1][name] for name in AUDIENCES] == list("abcdef")
    await listening.close()


@pytest.mark.parametrize("id", ["''", "repeat('x', 129)", "string_agg(md5(n::text), '')", "repeat(chr(1), 128)", "repeat('🎯', 128)"])
async def test_an_odd_id_or_type_stops_nothing(db: asyncpg.Connection, database: str, id: str) -> None:
    """An index takes no key of any length, and a notification has its limit. Who can be followed: 1 to 128 characters."""
    epoch = await db.fetchval("SELECT rowcast.adopt()")
    listening, heard = await hears(database, HUBS)
    odd = await db.fetchval(f"SELECT {id} FROM generate_series(1, 300) n {'' if 'agg' in id else 'LIMIT 1'}")
    for type in ("test", odd * 8):
        await db.execute(f"INSERT INTO rowcast.outbox ({', '.join(AUDIENCES)}, type, payload) VALUES ({'$1, ' * 6} $2, '{{}}')", odd, type)
    await drain(db)
    await listening.execute("SELECT 1")
    kept = odd if 1 <= len(odd) <= 128 else None
    assert [{row[name] for name in AUDIENCES} for row in await log(db)] == [{kept}, {kept}]
    assert [told.get("position") or told["upto"] for _, told in heard] == [1, 2]
    assert {told["epoch"] for _, told in heard} == {epoch}
    await listening.close()
