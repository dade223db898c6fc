"""The stream, over real sockets."""

import asyncio
import json

import pytest
from rowcast.burst import Burst
from rowcast.follower import Follower
from rowcast.sinks import AsgiSink, SocketSink

from .rig import Hub, Stream, Writer, get, until

pytestmark = pytest.mark.parametrize("sinks", ["socket", "asgi"], indirect=True)


async def test_the_first_bytes_and_a_row(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with await hub.follow(session) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        connected, caught_up = await stream.expect("connected", "caught_up")
        assert connected.data["session_id"] == session
        assert connected.data["resumed"] is False
        assert connected.data["reason"] == "new"
        assert connected.id == connected.data["cursor"] == caught_up.id
        assert stream.retry is not None
        assert 1000 <= stream.retry <= 3000
        message = await writer.message(session, "héllo")
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"] == {**event.data["message"], "id": str(message), "text": "héllo"}


async def test_every_follower_of_a_session_gets_it_and_nobody_else(hub: Hub, writer: Writer) -> None:
    session, other = await writer.session(), await writer.session()
    streams = [await hub.follow(session) for _ in range(5)]
    stranger = await hub.follow(other)
    for stream in (*streams, stranger):
        await stream.until("caught_up")
    await writer.message(session, "ours")
    await writer.message(other, "theirs")
    for stream in streams:
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"]["text"] == "ours"
    (event,) = await stranger.expect("agent.message.appended")
    assert event.data["message"]["text"] == "theirs"


async def test_an_event_is_encoded_once(hub: Hub, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await writer.session()
    streams = [await hub.follow(session) for _ in range(3)]
    for stream in streams:
        await stream.until("caught_up")
    blocks = []
    for kind in (SocketSink, AsgiSink):
        write = kind.write
        monkeypatch.setattr(kind, "write", lambda sink, block, write=write: (blocks.append(block), write(sink, block)))
    await writer.message(session)
    for stream in streams:
        await stream.until("agent.message.appended")
    told = [block for block in blocks if b"agent.message.appended" in bytes(block.data)]
    assert len(told) == 3
    assert len({id(block) for block in told}) == 1


async def test_a_reconnect_gets_exactly_what_it_missed(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    await writer.message(session, "seen")
    (seen,) = await stream.expect("agent.message.appended")
    stream.close()
    for n in range(700):  # more than one read
        await writer.message(session, str(n))
    for after, query in ((seen.id, {}), (None, {"after": seen.id})):
        async with await hub.follow(session, after, **query) as again:  # type: ignore[arg-type]
            events = await again.until("caught_up")
            assert events[0].data["resumed"] is True
            assert events[0].id == seen.id, "never the head, or a cut before the catch-up would lose events"
            assert [event.data["message"]["text"] for event in events[1:-1]] == [str(n) for n in range(700)]
            positions = [event.position for event in events]
            assert positions == sorted(positions)


async def test_the_header_wins_over_the_query(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    stream = await hub.follow(session)
    await stream.until("caught_up")
    await writer.message(session, "1")
    (first,) = await stream.expect("agent.message.appended")
    await writer.message(session, "2")
    (second,) = await stream.expect("agent.message.appended")
    async with await hub.follow(session, second.id, after=first.id) as again:  # type: ignore[arg-type]
        assert [event.type for event in await again.until("caught_up")] == ["connected", "caught_up"]


async def test_where_a_client_without_a_cursor_begins(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    watch = await hub.follow(session)
    await watch.expect("connected", "caught_up")
    await writer.message(session, "old")
    await writer.message(session, "new")
    (old, _) = await watch.expect("agent.message.appended", "agent.message.appended")
    await writer.db.execute("UPDATE rowcast.event SET created_at = now() - interval '10 minutes' WHERE position = $1", old.position)
    for since, texts in {"start": ["old", "new"], "recent": ["new"], "now": []}.items():
        async with await hub.follow(session, from_=since) as stream:
            events = await stream.until("caught_up")
            assert [event.data["message"]["text"] for event in events[1:-1]] == texts


async def test_recent_is_bounded(database: str, writer: Writer) -> None:
    async with Hub(database, recent_events=3) as hub:
        session = await writer.session()
        for n in range(10):
            await writer.message(session, str(n))
        await until(lambda: hub.rowcast.hub.position == 10)
        async with await hub.follow(session) as stream:
            events = await stream.until("caught_up")
            assert [event.data["message"]["text"] for event in events[1:-1]] == ["7", "8", "9"]


async def test_a_cursor_that_cannot_be_honoured_gets_a_reset(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    for n in range(5):
        await writer.message(session, str(n))
    await until(lambda: hub.rowcast.hub.position == 5)
    await writer.db.execute("UPDATE rowcast.event SET created_at = now() - interval '2 days' WHERE position <= 3")
    await writer.db.execute("SELECT rowcast.prune('1 day', 100)")
    epoch = hub.rowcast.hub.lineage.epoch
    for cursor, connected_reason, reset_reason in (
        (f"{epoch}-2", "truncated", "truncated"),
        (f"{epoch}-99", "reset", "ahead"),
        ("00000000-2", "reset", "epoch"),
    ):
        async with await hub.follow(session, cursor) as stream:
            connected, reset, _ = await stream.expect("connected", "reset", "caught_up")
            head = f"{epoch}-{hub.rowcast.hub.position}"
            assert connected.data["reason"] == connected_reason
            assert connected.data["resumed"] is False
            assert reset.data == {"reason": reset_reason, "cursor": head}
            assert reset.id == connected.id == head
            message = await writer.message(session, "after")
            (event,) = await stream.expect("agent.message.appended")
            assert event.data["message"]["id"] == str(message)
    async with await hub.follow(session, f"{epoch}-3") as stream:  # the floor itself can be honoured
        events = await stream.until("caught_up")
        assert [event.type for event in events] == ["connected", *["agent.message.appended"] * 5, "caught_up"]


async def test_types_filter_what_is_delivered_but_not_the_rest(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with await hub.follow(session, types="message.*,ingest.job.created") as stream:
        await stream.until("caught_up")
        await writer.insert("job", session_id=session, kind="task")
        await writer.insert("job", session_id=session, kind="ingest")
        message = await writer.message(session)
        await writer.update("message", message, text="x")
        await stream.expect("ingest.job.created", "message.delta")


async def test_format_message_is_for_onmessage(hub: Hub, writer: Writer) -> None:
    session = await writer.session(await writer.project())
    async with await hub.follow(session, format="message") as stream:
        seen = await stream.next()
        assert seen
        assert (seen.type, seen.data["type"], seen.data["data"]["reason"]) == ("message", "connected", "new")
        await stream.next()
        await writer.message(session, "x")
        seen = await stream.next()
        assert seen
        assert seen.type == "message"
        assert seen.data["type"] == "agent.message.appended"
        assert seen.data["cursor"] == seen.id
        assert seen.data["session_id"] == session
        assert seen.data["data"]["message"]["text"] == "x"


@pytest.mark.parametrize(("kind", "end"), [("ingest", "completed"), ("agent", "failed"), ("task", "cancelled")])
async def test_until_end_ends_with_the_job_and_stays_ended(hub: Hub, writer: Writer, kind: str, end: str) -> None:
    session = await writer.session()
    job = await writer.insert("job", session_id=session, kind=kind)
    stream = await hub.follow(session, until="end")
    await stream.until("caught_up")
    await writer.update("job", job, progress=50)
    await writer.update("job", job, status=end)
    events = await stream.rest()
    assert events[-1].type == "end"
    assert events[-2].type.endswith(end)
    again = await hub.follow(session, events[-1].id, until="end")
    assert again.status == 204
    older = await hub.follow(session, events[0].id, until="end")
    assert [event.type for event in await older.rest()][-1] == "end"


async def test_nobodys_cursor_hides_an_event_from_others(hub: Hub, writer: Writer) -> None:
    """A position that is not written yet may be asked for: what is not there now may be soon."""
    session = await writer.session()
    await writer.message(session, "1")
    await until(lambda: hub.rowcast.hub.position == 1)
    epoch = hub.rowcast.hub.lineage.epoch
    async with await hub.follow(session, f"{epoch}-2", until="end") as forged:
        await forged.until("caught_up")
        await writer.message(session, "2")
        await until(lambda: hub.rowcast.hub.position == 2)
        async with await hub.follow(session, f"{epoch}-1") as stream:
            assert [event.type for event in await stream.until("caught_up")] == ["connected", "agent.message.appended", "caught_up"]
        assert len((await hub.poll(session, after=f"{epoch}-1"))["events"]) == 1


async def test_only_the_last_event_itself_is_the_end(hub: Hub, writer: Writer) -> None:
    """A cursor of `caught_up` is often another session's event, and what is read from there begins later."""
    session, other = await writer.session(), await writer.session()
    await writer.message(session)
    await writer.message(other)
    await writer.insert("job", session_id=session, status="completed")
    await until(lambda: hub.rowcast.hub.position == 3)
    epoch = hub.rowcast.hub.lineage.epoch
    for after, types in ((1, ["connected", "task.created", "end"]), (2, ["connected", "task.created", "end"])):
        stream = await hub.follow(session, f"{epoch}-{after}", until="end")
        assert stream.status == 200
        assert [event.type for event in await stream.rest()] == types
    assert (await hub.follow(session, f"{epoch}-3", until="end")).status == 204


async def test_one_that_is_full_is_given_nothing_more_from_the_log(database: str, writer: Writer) -> None:
    """Readers that stand still cost their buffer, and a block that all of them share."""
    async with Hub(database, buffer=100_000) as hub:
        session = await writer.session()
        for _ in range(40):
            await writer.message(session, "x" * 500_000)
        await until(lambda: hub.rowcast.hub.position == 40)
        stuck = [await Stream.open(hub.sse(session, from_="start"), limit=1024) for _ in range(5)]
        await until(lambda: sum(c.sink.buffered > 100_000 for c in hub.rowcast.feed._clients) == 5)  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        assert max(c.sink.buffered for c in hub.rowcast.feed._clients) < 1_600_000  # type: ignore[attr-defined]
        for stream in stuck:
            stream.abort()


async def test_until_end_ends_with_a_request(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    request = await writer.insert("request", session_id=session)
    stream = await hub.follow(session, until="end", types="message.*")
    await stream.until("caught_up")
    await writer.update("request", request, status="in_progress")
    await writer.update("request", request, status="done")
    assert [event.type for event in await stream.rest()] == ["end"]


async def test_keep_alives_move_the_cursor_of_a_quiet_client(hub: Hub, writer: Writer) -> None:
    session, busy = await writer.session(), await writer.session()
    async with await hub.follow(session) as stream:
        (_, caught_up) = await stream.expect("connected", "caught_up")
        await writer.message(busy)
        await until(lambda: hub.rowcast.hub.position > caught_up.position)
        reading = asyncio.create_task(stream.next())
        await until(lambda: stream.last_id == f"{hub.rowcast.hub.lineage.epoch}-{hub.rowcast.hub.position}")
        assert stream.comments
        await writer.message(session)
        event = await reading
        assert event is not None
        assert event.type == "agent.message.appended", "a keep-alive dispatches nothing"


async def test_a_session_that_does_not_exist_yet_streams_and_waits(hub: Hub, writer: Writer) -> None:
    async with await hub.follow("not-yet-there") as stream:
        await stream.until("caught_up")
        await writer.db.execute("INSERT INTO rowcast.outbox (session_id, type, payload) VALUES ('not-yet-there', 'x.y', '{}')")
        await writer.db.execute("SELECT pg_notify('rowcast_doorbell', '')")
        await stream.expect("x.y")


async def test_an_id_may_hold_a_slash(hub: Hub, writer: Writer) -> None:
    async with await hub.follow("team%2Fchat%201") as stream:
        (connected, _) = await stream.expect("connected", "caught_up")
        assert connected.data["session_id"] == "team/chat 1"


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/api/sse/" + "x" * 129, "session_id"),
        ("/api/sse/a%00b", "session_id"),
        ("/api/sse/a%0Ab", "session_id"),
        ("/api/sse/%E2%80%A8", "session_id"),
        ("/api/poll/a%7Fb", "session_id"),
        ("/api/sse/s?after=17", "after"),
        ("/api/sse/s?after=zzzzzzzz-1", "after"),
        ("/api/sse/s?after=00000000-99999999999999999999", "after"),
        ("/api/sse/s?after=00000000--1", "after"),
        ("/api/poll/s?after=%F0%9F%8E%AF", "after"),
        ("/api/sse/s?types=", "types"),
        ("/api/sse/s?types=a.*.b", "types"),
        ("/api/sse/s?types=*.completed", "types"),
        ("/api/poll/s?types=a%0Ab", "types"),
        ("/api/sse/s?from=yesterday", "from"),
        ("/api/sse/s?format=xml", "format"),
        ("/api/sse/s?until=noon", "until"),
        ("/api/poll/s?wait=-1", "wait"),
        ("/api/poll/s?wait=31", "wait"),
        ("/api/poll/s?wait=nan", "wait"),
        ("/api/poll/s?wait=long", "wait"),
    ],
)
async def test_bad_input_gets_one_line_that_names_the_parameter(hub: Hub, path: str, parameter: str) -> None:
    status, headers, body = await get(hub.url + path)
    assert status == 400
    assert headers["content-type"] == "application/json"
    answer = json.loads(body)
    assert answer["parameter"] == parameter
    assert answer["error"].startswith(parameter)
    assert b"\n" not in body
    assert b"Traceback" not in body


async def test_a_bad_last_event_id_is_named(hub: Hub) -> None:
    status, _, body = await get(hub.url + "/api/sse/s", Last_Event_ID="garbage")
    assert status == 400
    assert json.loads(body)["parameter"] == "Last-Event-ID"


async def test_head_opens_no_stream(hub: Hub) -> None:
    stream = await Stream.open(hub.url + "/api/sse/s", method="HEAD")
    assert stream.status == 200
    assert not hub.rowcast.feed._clients


async def test_unknown_paths_and_methods_are_json_too(hub: Hub) -> None:
    for path, method, wanted in (("/api/nothing", "GET", 404), ("/api/sse/s", "DELETE", 405)):
        stream = await Stream.open(hub.url + path, method=method)
        assert stream.status == wanted
        assert "error" in json.loads(await stream.body())


async def test_a_slow_reader_falls_behind_and_still_gets_everything(database: str, writer: Writer) -> None:
    """Its memory in the hub is bounded, others do not wait for it, and in the end nothing is missing."""
    async with Hub(database, buffer=65536) as hub:
        session = await writer.session()
        slow, quick = await Stream.open(hub.sse(session), limit=1024), await hub.follow(session)
        await slow.until("caught_up")
        await quick.until("caught_up")
        followers = list(hub.rowcast.feed._clients)
        most = 0
        for n in range(300):
            await writer.message(session, f"{n} " + "x" * 100_000)
            (event,) = await quick.expect("agent.message.appended")
            assert event.data["message"]["text"].startswith(f"{n} ")
            most = max(most, *(follower.sink.buffered for follower in followers))  # type: ignore[attr-defined]
        assert most < 65536 + 2_500_000  # the limit, and one read of the log
        for n in range(300):
            (event,) = await slow.expect("agent.message.appended")
            assert event.data["message"]["text"].startswith(f"{n} ")
        await writer.message(session, "live again")
        (event,) = await slow.expect("agent.message.appended")
        assert event.data["message"]["text"] == "live again"


async def test_clients_that_go_leave_nothing_behind(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    tasks = len(asyncio.all_tasks())
    for n in range(100):
        stream = await hub.follow(session)
        if n % 2:
            await stream.until("caught_up")
        stream.abort() if n % 3 else stream.close()
    await until(lambda: not hub.rowcast.feed._clients)
    await until(lambda: not hub.rowcast.hub._live)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_an_idle_client_holds_no_connection(database: str, writer: Writer) -> None:
    """P19: a pool of 2, 500 streams: an ordinary request answers at once."""
    async with Hub(database, pool_size=2) as hub:
        session = await writer.session()
        streams = [await hub.follow(session) for _ in range(500)]
        for stream in streams:
            await stream.until("caught_up")
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rowcast%' AND datname = current_database()"
        assert await writer.db.fetchval(count) <= 2 + 2
        await asyncio.wait_for(hub.poll(session), 2)
        await writer.message(session, "to all")
        for stream in streams:
            await stream.expect("agent.message.appended")


async def test_text_that_grows_is_not_sent_again(hub: Hub, writer: Writer) -> None:
    """L1: 100 kB in 2,000 flushes; bytes on the wire < 1.5 × the text + frames."""
    session = await writer.session()
    async with await hub.follow(session) as stream:
        message = await writer.message(session)
        text = ""
        for n in range(2000):
            chunk = f"{n:050}"
            await writer.db.execute("UPDATE message SET text = text || $2 WHERE id = $1", message, chunk)
        await writer.update("message", message, status="completed")
        for event in await stream.until("message.completed"):
            if event.type == "message.delta":
                assert event.data["offset"] == len(text)
                text += event.data["delta"]
        assert len(text) == 100_000
        frames = 2000 * len('id: 00000000-00000\nevent: message.delta\ndata: {"delta": "", "offset": 100000, ') + 2000 * (45 + 55)
        assert stream.bytes < 1.5 * len(text) + frames


async def test_late_joiners_miss_nothing(hub: Hub, writer: Writer) -> None:
    """H8: connect at a random moment around the write."""

    async def one(n: int) -> None:
        session = str(n)
        async with asyncio.TaskGroup() as group:
            group.create_task(write(session, (n * 7919 % 50) / 1000))
            group.create_task(read(session, (n * 104729 % 50) / 1000))

    async def write(session: str, pause: float) -> None:
        await asyncio.sleep(pause)
        async with lock:
            await writer.db.execute("INSERT INTO rowcast.outbox (session_id, type, payload) VALUES ($1, 'x.y', '{}')", session)
            await writer.db.execute("SELECT rowcast.ring()")

    async def read(session: str, pause: float) -> None:
        await asyncio.sleep(pause)
        async with await hub.follow(session) as stream:
            assert sum(event.type == "x.y" for event in await stream.until("x.y")) == 1

    lock = asyncio.Lock()
    for start in range(0, 1000, 100):
        async with asyncio.TaskGroup() as group:
            for n in range(start, start + 100):
                group.create_task(one(n))


async def test_a_hub_ends_streams_in_order(hub: Hub, writer: Writer) -> None:
    streams = [await hub.follow(await writer.session()) for _ in range(50)]
    for stream in streams:
        await stream.until("caught_up")
    await hub.stop()
    retries = set()
    for stream in streams:
        (bye,) = await stream.rest()
        assert bye.type == "bye"
        assert stream.retry == bye.data["retry"]
        retries.add(stream.retry)
    assert len(retries) > 10, "spread, or all come back at once"


async def test_a_number_that_only_postgresql_can_hold_stops_nobody(hub: Hub, writer: Writer) -> None:
    session, other = await writer.session(), await writer.session()
    ending = [await hub.follow(session, until="end") for _ in range(3)]
    plain, stranger = await hub.follow(session), await hub.follow(other)
    for stream in (*ending, plain, stranger):
        await stream.until("caught_up")
    huge = "jsonb_build_object('x', 1e400::numeric + 0.5)"
    await writer.db.execute(f"INSERT INTO job (status, session_id, result) VALUES ('completed', $1::uuid, {huge})", session)
    await writer.message(other)
    await stranger.expect("agent.message.appended")
    await plain.expect("task.created")
    assert hub.rowcast.listener.reconnects == 0
    assert not hub.rowcast.supervisor.died


async def test_one_that_fails_is_told_and_the_others_go_on(hub: Hub, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await writer.session()
    streams = [await hub.follow(session) for _ in range(2)]
    for stream in streams:
        await stream.until("caught_up")
    victim = next(iter(next(iter(hub.rowcast.hub._live.values()))))

    def write(follower: Follower, burst: Burst) -> None:
        if follower is victim:
            raise KeyError("a bug")
        unbroken(follower, burst)

    unbroken = Follower.write
    monkeypatch.setattr(Follower, "write", write)
    await writer.message(session)
    seen = [await stream.next() for stream in streams]
    assert {event.type for event in seen if event} == {"error", "agent.message.appended"}


async def test_what_is_held_for_a_slow_client_is_bounded_as_text(hub: Hub, writer: Writer) -> None:
    """Rows that are stored compressed a hundredfold."""
    session = await writer.session()
    for _ in range(10):
        await writer.db.execute(
            "INSERT INTO message (session_id, text) VALUES ($1::uuid, repeat('All work and no play. ', 140000))", session
        )
    await until(lambda: hub.rowcast.hub.position == 10)
    stuck = await Stream.open(hub.sse(session, from_="start"), limit=1024)
    await until(lambda: any(c.sink.buffered > 1000 for c in hub.rowcast.feed._clients))  # type: ignore[attr-defined]
    (follower,) = hub.rowcast.feed._clients
    assert follower.sink.buffered < 2 * 3_100_000  # type: ignore[attr-defined]
    stuck.abort()
