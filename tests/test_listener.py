"""The LISTEN connection: what it loses, what it finds again."""

import asyncio
import json
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import pytest
from rowcast import listener, schema
from rowcast.embedded import EmbeddedPostgres

from .rig import Hub, Stream, Writer, get, on_database, postgres, until
from .test_sequence import secret

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast listener' AND datname = current_database()"


async def notify(writer: Writer, channel: str, payload: str) -> None:
    """As any role can that has the channel's name."""
    await writer.db.execute("SELECT pg_notify($1, $2)", channel, payload)


class Wire:
    """A TCP proxy in front of the database that can go silent without a FIN."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.silent = asyncio.Event()
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        userinfo = self._target.netloc.rpartition("@")[0]
        return urlunsplit(self._target._replace(netloc=f"{userinfo}@127.0.0.1:{port}"))

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        cut = asyncio.Event()
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, cut))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    if self.silent.is_set():
                        cut.set()
                    if cut.is_set():
                        await asyncio.Event().wait()  # swallowed; nobody is told
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.close()


async def test_what_was_written_while_it_was_away_arrives_once_and_in_order(hub: Hub, writer: Writer) -> None:
    """P2"""
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    expected = []
    for round in range(4):
        await until(lambda: hub.rowcast.listener.trouble is None)
        before = hub.rowcast.listener.reconnects
        await writer.db.execute(KILL)
        for n in range(20):
            expected.append(f"{round}.{n}")
            await writer.message(session, expected[-1])
        await until(lambda before=before: hub.rowcast.listener.reconnects > before)  # type: ignore[misc]
    seen = [(await stream.expect("agent.message.appended"))[0].data["message"]["text"] for _ in expected]
    assert seen == expected


async def test_an_event_at_the_moment_of_a_reconnect_needs_no_second_one(hub: Hub, writer: Writer) -> None:
    """Committed while the listener reads where the log ends: its notification must not be the last word lost."""
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    for n in range(40):
        await writer.db.execute(KILL)
        await until(lambda: hub.rowcast.listener.trouble is not None)
        await asyncio.sleep(n % 8 / 80)  # around the moment when it is back
        await writer.message(session, str(n))
        event = await stream.next(patience=8)
        assert event is not None
        assert event.data["message"]["text"] == str(n)
        await until(lambda: hub.rowcast.listener.trouble is None)


async def test_a_half_open_connection_is_found_and_replaced(database: str, writer: Writer) -> None:
    """P5: within twice the heartbeat, and the stream goes on as if nothing had been."""
    wire = Wire(database)
    async with wire as url, Hub(database, listen_url=url, heartbeat=0.5) as hub:
        session = await writer.session()
        stream = await hub.follow(session)
        await stream.until("caught_up")
        wire.silent.set()
        before = asyncio.get_running_loop().time()
        await writer.message(session, "into the void")
        await until(lambda: hub.rowcast.listener.trouble is not None)
        assert asyncio.get_running_loop().time() - before < 4 * 0.5
        wire.silent.clear()
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"]["text"] == "into the void"


async def test_a_lost_notification_costs_latency_and_no_event(hub: Hub, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    understood, deaf = listener.decode_notice, 3

    def lossy(text: str) -> object:
        nonlocal deaf
        deaf -= 1
        if deaf >= 0:
            raise msgspec.ValidationError("lost")
        return understood(text)

    monkeypatch.setattr(listener, "decode_notice", lossy)
    for n in range(5):
        await writer.message(session, str(n))
    seen = [(await stream.expect("agent.message.appended"))[0].data["message"]["text"] for _ in range(5)]
    assert seen == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "not json",
        "[]",
        '{"epoch": 1}',
        '{"epoch": "00000000", "position": 1, "payload": {}}',
        '{"epoch": "EPOCH", "upto": 1000000}',
        '{"epoch": "EPOCH", "upto": 100000000000000000}',
        '{"epoch": "EPOCH", "upto": -5}',
        '{"epoch": "EPOCH", "position": 999999, "type": "x"}',
        '{"epoch": "EPOCH", "position": -5, "type": "x", "payload": {}}',
    ],
)
async def test_a_notification_that_is_not_ours_changes_nothing(hub: Hub, writer: Writer, forged: str) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    await writer.message(session, "before")
    for channel in (await secret(writer.db), "rowcast"):
        await notify(writer, channel, forged.replace("EPOCH", hub.rowcast.hub.lineage.epoch))
    await writer.message(session, "after")
    seen = [(await stream.expect("agent.message.appended"))[0].data["message"]["text"] for _ in range(2)]
    assert seen == ["before", "after"]


async def test_a_new_identity_resets_who_is_connected_and_who_comes_back(hub: Hub, writer: Writer) -> None:
    """P16: the log is that of another database now."""
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    await writer.message(session, "of the old log")
    (old,) = await stream.expect("agent.message.appended")
    await writer.db.execute("UPDATE rowcast.epoch SET epoch = '00000000'")  # an update changes xmin, as a restore does
    await writer.message(session, "of the new log")
    (reset,) = await stream.expect("reset")
    assert reset.data["reason"] == "epoch"
    await until(lambda: hub.rowcast.trouble is None)
    await writer.message(session, "live")
    assert (await stream.until("agent.message.appended"))[-1].data["message"]["text"] == "live"
    async with await hub.follow(session, old.id) as again:
        connected, reset, _ = await again.expect("connected", "reset", "caught_up")
        assert (connected.data["reason"], reset.data["reason"]) == ("reset", "epoch")


async def test_a_database_that_is_not_there_is_waited_for(database: str, writer: Writer) -> None:
    name = database.rpartition("/")[2]
    gone = database.rpartition("/")[0] + f"/{name}_later"
    hub = Hub(gone)
    await hub.start(ready=False)
    try:
        assert (await get(f"{hub.url}/livez"))[0] == 200
        status, _, body = await get(f"{hub.url}/readyz")
        assert status == 503
        assert b"does not exist" in body or b"not connected yet" in body
        stream = await hub.follow("early")
        assert stream.status == 200
        assert (await stream.line() or "").startswith("retry: ")  # at once
        status, _, body = await get(f"{hub.url}/api/poll/early")
        assert status == 503
        await on_database(database.rpartition("/")[0] + "/postgres", f"CREATE DATABASE {name}_later")
        await until(lambda: "rowcast migrate up" in (hub.rowcast.trouble or ""))
        await schema.migrate(gone, "head")
        await until(lambda: hub.rowcast.trouble is None)
        await stream.expect("connected", "caught_up")
    finally:
        await hub.stop()
        await on_database(database.rpartition("/")[0] + "/postgres", f"DROP DATABASE IF EXISTS {name}_later WITH (FORCE)")


async def test_notifications_that_never_arrive_name_the_pooler(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P6, as far as the message: LISTEN goes to one session, and what we NOTIFY ourselves is not heard."""
    original = asyncpg.Connection.add_listener

    async def deaf(self: asyncpg.Connection, channel: str, callback: object) -> None:
        await original(self, channel if not channel.startswith("rowcast_beat") else "elsewhere", callback)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncpg.Connection, "add_listener", deaf)
    hub = Hub(database, heartbeat=0.2)
    await hub.start(ready=False)
    await until(lambda: "ROWCAST_LISTEN_URL" in (hub.rowcast.trouble or ""))
    await hub.stop()


async def test_one_log_line_a_change_of_state(hub: Hub, writer: Writer, database: str, caplog: pytest.LogCaptureFixture) -> None:
    """P18"""
    await writer.db.execute(f'ALTER ROLE CURRENT_USER IN DATABASE "{database.rpartition("/")[2]}" SET search_path = public')
    await writer.db.execute("ALTER TABLE rowcast.alembic_version RENAME TO hidden")
    caplog.clear()
    before = hub.rowcast.listener.reconnects
    await writer.db.execute(KILL)
    await until(lambda: hub.rowcast.listener.reconnects > before + 3)
    await writer.db.execute("ALTER TABLE rowcast.hidden RENAME TO alembic_version")
    await until(lambda: hub.rowcast.listener.trouble is None)
    lines = [record.getMessage() for record in caplog.records if record.name == "rowcast.listener"]
    assert len(lines) <= 3, lines


async def test_a_standby_is_waited_for_and_its_promotion_goes_on(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> None:
    """P18 and P16: a real replica. Cursors of the old epoch up to its start stay valid, above it they do not."""
    folder = tmp_path_factory.mktemp("replication")
    with postgres(folder / "primary", max_wal_senders="3") as primary:
        await schema.migrate(primary.url, "head")
        async with Hub(primary.url) as hub:
            connection = await asyncpg.connect(primary.url)
            writer = Writer(connection)
            session = await writer.session()
            await writer.message(session, "before")
            await until(lambda: hub.rowcast.hub.position == 1)
            cursor = str(hub.rowcast.hub.cursor(hub.rowcast.hub.position))
            standby = EmbeddedPostgres(folder / "standby", hot_standby="on")
            standby.copy(primary)
            await writer.message(session, "never replicated")
            await until(lambda: hub.rowcast.hub.position == 2)
            lost = str(hub.rowcast.hub.cursor(hub.rowcast.hub.position))
            await connection.close()
    try:
        await promote(standby, session, cursor, lost)
    finally:
        standby.remove()


async def promote(standby: EmbeddedPostgres, session: str, cursor: str, lost: str) -> None:
    with standby:
        hub = Hub(standby.url)
        await hub.start(ready=False)
        await until(lambda: "replica" in (hub.rowcast.trouble or ""))
        await on_database(standby.url, "SELECT pg_promote()")
        await until(lambda: hub.rowcast.trouble is None)
        connection = await asyncpg.connect(standby.url)
        writer = Writer(connection)
        async with await hub.follow(session, cursor) as stream:
            connected, _ = await stream.expect("connected", "caught_up")
            assert connected.data["resumed"] is True
            assert connected.id is not None
            assert connected.id.partition("-")[0] != cursor.partition("-")[0]
            await writer.message(session, "after")
            (event,) = await stream.expect("agent.message.appended")
            assert event.data["message"]["text"] == "after"
        async with await hub.follow(session, lost) as stream:
            connected, reset, _ = await stream.expect("connected", "reset", "caught_up")
            assert reset.data["reason"] == "epoch"
        await connection.close()
        await hub.stop()


async def test_a_forged_far_position_hides_nothing(hub: Hub, writer: Writer) -> None:
    channel = await secret(writer.db)
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    for n in range(30):
        forged = f'{{"epoch": "{hub.rowcast.hub.lineage.epoch}", "upto": 1000000}}'
        await notify(writer, channel, forged)
        await writer.message(session, str(n))
        event = await stream.next(patience=5)
        assert event is not None
        assert event.data["message"]["text"] == str(n)


async def test_the_isolation_of_the_database_does_not_matter(database: str, writer: Writer) -> None:
    await on_database(database, f'ALTER DATABASE "{database.rpartition("/")[2]}" SET default_transaction_isolation = serializable')
    async with Hub(database) as hub:
        session = await writer.session()
        async with await hub.follow(session) as stream:
            await stream.until("caught_up")
            await writer.message(session)
            await stream.expect("agent.message.appended")


FORGED = {"position": "NEXT", "type": "agent.message.appended", "session_id": "SESSION", "payload": {"message": {"text": "forged"}}}
FORGERIES: list[dict[str, object]] = [
    FORGED,
    {**FORGED, "upto": 10**17},
    {**FORGED, "position": 10**17},
    {**FORGED, "position": -1},
    {"upto": 10**17},
    {"upto": 10**30},
    {"upto": -(10**17)},
    {"position": 10**17},
]


def forgery(forged: dict[str, object], hub: Hub, session: str) -> str:
    text = json.dumps({"epoch": hub.rowcast.hub.lineage.epoch, **forged})
    return text.replace('"NEXT"', str(hub.rowcast.hub.position + 1)).replace("SESSION", session)


async def following(hub: Hub, session: str) -> Stream:
    stream = await hub.follow(session)
    await stream.until("caught_up")
    return stream


@pytest.fixture
def of_version_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that also serves the last schema without a secret channel."""
    monkeypatch.setattr(schema, "latest", lambda: 6)


@pytest.mark.parametrize("older", [False, True])
async def test_what_is_forged_on_the_name_that_everybody_knows_reaches_nobody(
    database: str, writer: Writer, older: bool, of_version_6: None
) -> None:
    """Nothing of it is told, nothing is skipped, and the next event arrives whole; also with a schema one version older,
    which sends all there."""
    if older:
        await schema.migrate(database, "0005")
    async with Hub(database, heartbeat=30.0) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        for n, forged in enumerate(FORGERIES, 1):
            await until(lambda n=n: hub.rowcast.hub.position == n - 1)  # type: ignore[misc]
            await notify(writer, "rowcast", forgery(forged, hub, session))
            await writer.message(session, str(n), metadata='{"whole": true}')
            (event,) = await stream.expect("agent.message.appended")
            assert (event.position, event.data["message"]["text"], event.data["message"]["metadata"]) == (n, str(n), {"whole": True})
        assert hub.rowcast.listener.dropped == 0
        assert hub.rowcast.listener.reconnects == 0


async def test_a_flood_of_forged_hints_costs_few_questions(
    database: str, writer: Writer, monkeypatch: pytest.MonkeyPatch, of_version_6: None
) -> None:
    await schema.migrate(database, "0005")
    looks = 0
    look = listener.Listener._look

    async def counted(self: listener.Listener, connection: asyncpg.Connection) -> bool:
        nonlocal looks
        looks += 1
        return await look(self, connection)

    monkeypatch.setattr(listener.Listener, "_look", counted)
    async with Hub(database, heartbeat=30.0) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        clock = asyncio.get_running_loop().time
        began = clock()
        for _ in range(500):
            await notify(writer, "rowcast", forgery({"upto": 10**17}, hub, session))
        await writer.message(session, "real")
        await stream.expect("agent.message.appended")
        assert looks <= 3 + (clock() - began) / listener.DOUBT_PAUSE


async def test_a_schema_one_version_older_is_served_live(database: str, writer: Writer, of_version_6: None) -> None:
    """By hints, and not by the heartbeat."""
    await schema.migrate(database, "0005")
    async with Hub(database, heartbeat=60.0) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        for n in range(50):
            await writer.message(session, str(n))
        await writer.db.execute("INSERT INTO message (session_id, text) SELECT $1::uuid, n::text FROM generate_series(50, 2999) n", session)
        seen = [(await stream.expect("agent.message.appended"))[0].data["message"]["text"] for _ in range(3000)]
        assert seen == [str(n) for n in range(3000)]


async def test_an_upgrade_and_a_downgrade_lose_nothing(database: str, writer: Writer, of_version_6: None) -> None:
    """Under a hub that listens where events were sent before."""
    async with Hub(database, heartbeat=0.3) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        for target in ("0005", "head", "0005", "head"):
            before = hub.rowcast.listener.reconnects
            await schema.migrate(database, target)
            for text in (f"at once {target}", f"later {target}"):
                await writer.message(session, text)
                (event,) = await stream.expect("agent.message.appended")
                assert event.data["message"]["text"] == text
                await until(lambda before=before: hub.rowcast.listener.reconnects > before)  # type: ignore[misc]
                await until(lambda: hub.rowcast.trouble is None)


async def test_a_secret_that_is_changed_while_it_listens(database: str, writer: Writer) -> None:
    async with Hub(database, heartbeat=0.3) as hub:
        session = await writer.session()
        stream = await following(hub, session)
        known = await secret(writer.db)
        await writer.db.execute("UPDATE rowcast.secret SET channel = 'rowcast_' || replace(gen_random_uuid()::text, '-', '')")
        await writer.message(session, "on the new one")
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"]["text"] == "on the new one"
        await until(lambda: hub.rowcast.listener.reconnects == 1 and hub.rowcast.trouble is None)
        await notify(writer, known, forgery(FORGED, hub, session))
        await writer.message(session, "live")
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"]["text"] == "live"


async def test_a_secret_that_is_gone_is_missed(database: str, writer: Writer) -> None:
    known = await secret(writer.db)
    await writer.db.execute("DELETE FROM rowcast.secret")
    hub = Hub(database)
    try:
        await hub.start(ready=False)
        await until(lambda: "rowcast.secret is empty" in (hub.rowcast.trouble or ""))
        await writer.db.execute("INSERT INTO rowcast.secret VALUES ($1)", known)
        await until(lambda: hub.rowcast.trouble is None)
    finally:
        await hub.stop()


async def test_what_is_dropped_is_counted_and_told_once_a_minute(
    hub: Hub, writer: Writer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never what it said."""
    channel, ours = await secret(writer.db), hub.rowcast.listener
    session = await writer.session()
    stream = await following(hub, session)
    await writer.message(session)
    await stream.expect("agent.message.appended")
    epoch = hub.rowcast.hub.lineage.epoch
    deep = f'{{"epoch": "{epoch}", "position": 2, "payload": {"[" * 3000}{"]" * 3000}}}'
    senseless = [
        "forged\nline",
        "[]",
        '{"epoch": 1}',
        '{"epoch": "forged00", "upto": 5}',
        deep,
        f'{{"epoch": "{epoch}", "upto": "forged"}}',
    ]
    caplog.clear()
    for _ in range(50):
        for payload in senseless:
            await notify(writer, channel, payload)
    await notify(writer, channel, f'{{"epoch": "{epoch}", "position": 1, "type": "told already", "payload": {{}}}}')
    await until(lambda: ours.dropped == 300)
    assert "300 dropped" in repr(ours)
    monkeypatch.setattr(ours, "_silent_until", 0.0)  # a minute later
    await notify(writer, channel, "forged")
    await until(lambda: ours.dropped == 301)
    await writer.message(session, "real")
    (event,) = await stream.expect("agent.message.appended")
    assert event.data["message"]["text"] == "real"
    assert ours.dropped == 301
    assert [record.getMessage() for record in caplog.records if record.name == "rowcast.listener"] == [
        "listener: dropped a notification that is not ours, 1 so far",
        "listener: dropped a notification that is not ours, 301 so far",
    ]


@pytest.mark.parametrize("payload", ["", "x", "handover", "9" * 7999, '{"epoch": "00000000", "upto": 5}'])
async def test_a_forged_bell_only_has_us_look(hub: Hub, writer: Writer, payload: str) -> None:
    session = await writer.session()
    stream = await following(hub, session)
    for n in range(20):
        await notify(writer, "rowcast_doorbell", payload)
        await writer.message(session, str(n))
    seen = [(await stream.expect("agent.message.appended"))[0].data["message"]["text"] for _ in range(20)]
    assert seen == [str(n) for n in range(20)]
    assert hub.rowcast.trouble is None
