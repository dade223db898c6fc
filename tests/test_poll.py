"""Polling: the same events by the same cursor."""

import asyncio
import json

from .rig import Hub, Writer, get, until


async def test_polling_and_streaming_share_a_cursor(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with await hub.follow(session) as stream:
        await stream.until("caught_up")
        await writer.message(session, "1")
        (first,) = await stream.expect("agent.message.appended")
        await writer.message(session, "2")
        (second,) = await stream.expect("agent.message.appended")
    answer = await hub.poll(session, after=first.id)
    assert [event["data"]["message"]["text"] for event in answer["events"]] == ["2"]
    assert answer["events"][0]["cursor"] == answer["cursor"] == second.id
    assert answer["more"] is False
    assert answer["reset"] is None
    async with await hub.follow(session, answer["cursor"]) as stream:
        assert [event.type for event in await stream.until("caught_up")] == ["connected", "caught_up"]


async def test_an_event_has_its_envelope(hub: Hub, writer: Writer) -> None:
    project = await writer.project()
    session = await writer.session(project)
    await writer.message(session)
    await until(lambda: hub.rowcast.hub.position == 1)
    (event,) = (await hub.poll(session))["events"]
    assert list(event) == ["cursor", "type", "timestamp", "session_id", "project_id", "data"]
    assert (event["session_id"], event["project_id"]) == (session, str(project))
    assert event["timestamp"].endswith("+00:00")


async def test_a_long_answer_comes_in_pieces(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    await writer.db.execute("INSERT INTO message (session_id, text) SELECT $1::uuid, n::text FROM generate_series(1, 1200) n", session)
    await until(lambda: hub.rowcast.hub.position == 1200)
    texts, cursor, more = [], f"{hub.rowcast.hub.lineage.epoch}-0", True
    while more:
        answer = await hub.poll(session, after=cursor)
        texts += [event["data"]["message"]["text"] for event in answer["events"]]
        cursor, more = answer["cursor"], answer["more"]
    assert texts == [str(n) for n in range(1, 1201)]


async def test_wait_holds_the_request_until_something_comes(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    cursor = (await hub.poll(session))["cursor"]
    waiting = asyncio.create_task(hub.poll(session, after=cursor, wait="20", types="message.*"))
    await until(lambda: hub.rowcast.hub._live)
    message = await writer.message(session)  # not of the types asked for
    await writer.update("message", message, text="x")
    answer = await asyncio.wait_for(waiting, 5)
    assert [event["type"] for event in answer["events"]] == ["message.delta"]
    await until(lambda: not hub.rowcast.hub._live)
    assert not hub.rowcast.feed._clients


async def test_wait_ends_with_nothing(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    cursor = (await hub.poll(session))["cursor"]
    assert await hub.poll(session, after=cursor, wait="0.05") == {"events": [], "cursor": cursor, "more": False, "reset": None}


async def test_shutdown_ends_what_waits(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    waiting = asyncio.create_task(hub.poll(session, wait="20"))
    await until(lambda: hub.rowcast.hub._live)
    await hub.stop()
    assert (await asyncio.wait_for(waiting, 5))["events"] == []


async def test_nothing_new_is_a_304(hub: Hub, writer: Writer) -> None:
    session, other = await writer.session(), await writer.session()
    cursor = (await hub.poll(session))["cursor"]
    url = f"{hub.url}/api/poll/{session}?after={cursor}"
    status, headers, _ = await get(url)
    assert status == 200
    assert headers["cache-control"] == "private, no-cache"
    await writer.message(other)
    await until(lambda: hub.rowcast.hub.position == 1)
    status, headers, body = await get(url, If_None_Match=headers["etag"])
    assert (status, body) == (304, b"")
    await writer.message(session)
    await until(lambda: hub.rowcast.hub.position == 2)
    status, _, body = await get(url, If_None_Match=headers["etag"])
    assert status == 200
    assert len(json.loads(body)["events"]) == 1


async def test_a_quiet_client_does_not_fall_below_the_floor(hub: Hub, writer: Writer) -> None:
    session, other = await writer.session(), await writer.session()
    cursor = (await hub.poll(session))["cursor"]
    await writer.message(other)
    await until(lambda: hub.rowcast.hub.position == 1)
    await until(lambda: hub.rowcast.feed.stale(hub.rowcast.hub.position.__class__(0)))
    answer = await hub.poll(session, after=cursor)
    assert answer["events"] == []
    assert answer["cursor"].endswith("-1")


async def test_what_cannot_be_honoured_is_told(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    for n in range(5):
        await writer.message(session, str(n))
    await until(lambda: hub.rowcast.hub.position == 5)
    await writer.db.execute("UPDATE rowcast.event SET created_at = now() - interval '2 days' WHERE position <= 3")
    await writer.db.execute("SELECT rowcast.prune('1 day', 100)")
    epoch = hub.rowcast.hub.lineage.epoch
    for cursor, reason in ((f"{epoch}-2", "truncated"), (f"{epoch}-99", "ahead"), ("00000000-2", "epoch")):
        assert await hub.poll(session, after=cursor) == {"events": [], "cursor": f"{epoch}-5", "more": False, "reset": {"reason": reason}}
