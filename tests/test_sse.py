"""The stream, over real sockets."""

from .rig import Hub, Writer


async def test_a_row_becomes_an_event(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with await hub.follow(session) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        await stream.expect("connected", "caught_up")
        message = await writer.message(session, "héllo")
        (event,) = await stream.expect("agent.message.appended")
        assert event.data["message"]["id"] == str(message)
        assert event.data["message"]["text"] == "héllo"
