"""Publishing and the switch to live, step by step, without a database."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from rowcast.access import Access, Authority
from rowcast.burst import VIEWS, Burst, View
from rowcast.errors import Forbidden
from rowcast.events import Cursor, Event, Lineage, Position, Topic, Types
from rowcast.feed import Feed
from rowcast.follower import Follower
from rowcast.grant import Grant
from rowcast.hub import Hub
from rowcast.limits import Limits
from rowcast.log import Batch, Bounds, Log
from rowcast.sinks import AsgiSink
from rowcast.wish import Wish

from .rig import until

TOPIC = (Topic("session", "s"),)
EPOCH = "0000abcd"


def event(position: int, session: str = "s", project: str | None = None) -> Event:
    return Event(Cursor(EPOCH, Position(position)), "x.y", session, project, None, 0.0, b"{}")


class Shelf:
    """A log of events in memory that a test can stop in the middle of a read."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads = 0
        self.during_read: Any = None

    async def read(self, epoch: str, after: Position, upto: Position, topics: object = None) -> Batch:
        self.reads += 1
        found = [e for e in self.events if after < e.position <= upto]
        await asyncio.sleep(0)
        if self.during_read:
            self.during_read()
        return Batch(Burst(found) if found else None, upto, complete=True)

    async def bounds(self) -> Bounds:
        return Bounds(Position(0), self.events[-1].position if self.events else Position(0))


class World:
    def __init__(self, limit: int = 10**6) -> None:
        self.hub, self.shelf = Hub(), Shelf()
        self.feed = Feed(self.hub, self.shelf, None, Limits(9, 9, 9, 0), timedelta(minutes=5), 100, 1.0, 60.0)  # type: ignore[arg-type]
        self.hub.identify(Lineage([Cursor(EPOCH, Position(0))]), Position(0))
        self.limit = limit

    def publish(self, *positions: int) -> None:
        for position in positions:
            self.shelf.events.append(event(position))
            self.hub.publish([self.shelf.events[-1]])

    def follow(self, after: int, access: Access | None = None) -> Follower:
        return self.feed.follow(TOPIC, Wish(after=Cursor(EPOCH, Position(after))), AsgiSink(self.limit), access)


def told(follower: Follower) -> list[str]:
    sink = follower.sink
    assert isinstance(sink, AsgiSink)
    lines = b"".join(sink._pending).decode().split("\n")
    ids = [line.partition("-")[2] for line in lines if line.startswith("id: ")]
    types = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    return [id for id, type in zip(ids, types, strict=True) if type == "x.y"]


async def take(follower: Follower, seen: list[str]) -> None:
    """As the server would: take whatever there is."""
    async for chunk in follower.sink:  # type: ignore[attr-defined]
        blocks = chunk.decode().split("\n\n")
        seen += [b.partition("-")[2].split("\n")[0] for b in blocks if "event: x.y" in b]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_published_while_it_catches_up_comes_once() -> None:
    world = World()
    world.publish(*range(1, 11))
    more = iter(range(11, 16))
    world.shelf.during_read = lambda: [world.publish(n) for n in [next(more, None)] if n]
    follower = world.follow(after=4)
    seen: list[str] = []
    taking = asyncio.create_task(take(follower, seen))
    await settle()
    world.publish(16, 17)
    await settle()
    assert seen == [str(n) for n in range(5, 18)]
    follower.gone()
    await taking


@pytest.mark.parametrize("turns", range(12))
async def test_the_switch_to_live_has_no_gap_whenever_it_happens(turns: int) -> None:
    """An event is published after every possible number of turns of the loop."""
    world = World()
    world.publish(1, 2, 3)
    follower = world.follow(after=0)
    seen: list[str] = []
    taking = asyncio.create_task(take(follower, seen))
    for _ in range(turns):
        await asyncio.sleep(0)
    world.publish(4)
    await asyncio.sleep(0)
    world.publish(5)
    await settle()
    assert seen == ["1", "2", "3", "4", "5"]
    follower.gone()
    await taking


async def test_one_that_read_ahead_of_the_hub_gets_nothing_twice() -> None:
    """Another process told it of events that this one has not been notified of yet."""
    world = World()
    world.publish(1, 2)
    world.shelf.events += [event(3), event(4)]
    follower = world.follow(after=4)
    await settle()
    assert world.hub.is_live(follower)
    world.hub.publish([world.shelf.events[2]])
    world.hub.publish([world.shelf.events[3], event(5)])
    world.publish(6)
    assert told(follower) == ["5", "6"]
    follower.gone()


class Gate(Authority):
    """Lets in until it is told not to, and asks for as long as a test wants."""

    def __init__(self, world: World) -> None:
        super().__init__(None, world.hub.grounds, None, 0.0)  # type: ignore[arg-type]
        self.open = True
        self.asked = 0
        self.during_ask: Any = None

    async def examine(self, *_: Any) -> frozenset[str]:
        self.asked += 1
        allowed = self.open  # as a database answers: what was so when it was asked
        await asyncio.sleep(0)
        if self.during_ask:
            self.during_ask()
        if not allowed:
            raise Forbidden("no")
        return frozenset(("session:s", "user:alice"))

    def shut(self) -> None:
        self.open, self.during_ask = False, None
        self._shaken()

    def _shaken(self) -> None:
        self.grounds.shake("user:alice")


GRANT = Grant("alice", frozenset(("stream",)))


def types_of(follower: Follower) -> list[str]:
    assert isinstance(follower.sink, AsgiSink)
    text = b"".join(follower.sink._pending).decode()
    return [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]


async def test_nothing_is_told_of_what_was_read_while_access_was_lost() -> None:
    world = World()
    gate = Gate(world)
    access = Access(gate, GRANT, [TOPIC])
    await access.ask()
    world.publish(1, 2, 3)
    world.shelf.during_read = gate.shut
    follower = world.follow(after=0, access=access)
    await settle()
    assert types_of(follower) == ["error"]
    assert follower.closed
    follower.gone()
    assert not world.hub.grounds._resting


async def test_what_changes_while_it_is_asked_is_asked_again() -> None:
    world = World()
    gate = Gate(world)
    access = Access(gate, GRANT, [TOPIC])
    gate.during_ask = gate.shut
    await access.ask()
    assert access.doubtful, "the answer was of before"
    follower = world.follow(after=0, access=access)
    world.publish(1)
    await settle()
    assert types_of(follower) == ["error"]
    assert gate.asked == 2
    follower.gone()


async def test_what_changes_before_a_client_is_there_is_asked_again() -> None:
    """Between the answer that let it in, and its first frame."""
    world = World()
    gate = Gate(world)
    access = Access(gate, GRANT, [TOPIC])
    await access.ask()
    assert not access.doubtful
    gate.shut()
    assert not access.doubtful, "nobody listens yet"
    world.publish(1)
    follower = world.follow(after=0, access=access)
    await settle()
    assert types_of(follower) == ["error"]
    follower.gone()


async def test_what_was_lost_before_the_log_was_known_is_asked_again() -> None:
    """Let in while the LISTEN connection is away; what told of the loss is below the position at which the hub begins."""
    world = World()
    world.hub = Hub()
    world.feed.hub = world.hub
    world.hub.on_identified = world.feed._identified.set
    world.feed._identified.clear()
    gate = Gate(world)
    access = Access(gate, GRANT, [TOPIC])
    await access.ask()
    follower = world.feed.follow(TOPIC, Wish(since="start"), AsgiSink(10**6), access)
    await settle()
    gate.open = False
    world.shelf.events += [event(1), event(2)]
    world.hub.identify(Lineage([Cursor(EPOCH, Position(0))]), Position(2))
    await settle()
    assert types_of(follower) == ["error"]
    follower.gone()


async def test_a_live_client_in_doubt_goes_on_where_it_was() -> None:
    world = World()
    gate = Gate(world)
    access = Access(gate, GRANT, [TOPIC])
    await access.ask()
    follower = world.follow(after=0, access=access)
    seen: list[str] = []
    taking = asyncio.create_task(take(follower, seen))
    await settle()
    assert world.hub.is_live(follower)
    for n in range(1, 6):
        gate._shaken()
        assert not world.hub.is_live(follower)
        world.publish(n)
    await settle()
    assert seen == ["1", "2", "3", "4", "5"]
    assert world.hub.is_live(follower)
    world.hub.grounds.shake("user:bob")
    world.hub.grounds.shake("session:t")
    assert world.hub.is_live(follower), "that was somebody else's"
    follower.gone()
    await taking
    assert not world.hub.grounds._resting
    assert not world.hub.grounds._heard


async def test_what_comes_together_is_written_once_for_each_view() -> None:
    world = World()
    views = [View.of(), View.of("z.*"), View.of("*", "message"), View.of(), View.of("x.y")]
    followers = [world.feed.follow(TOPIC, Wish(since="now", view=view), AsgiSink(10**6), None) for view in views]
    await settle()
    before = [list(follower.sink._pending) for follower in followers]  # type: ignore[attr-defined]
    world.hub.publish([event(1), event(2), event(3)])
    new = [follower.sink._pending[len(old) :] for follower, old in zip(followers, before, strict=True)]  # type: ignore[attr-defined]
    assert [len(blocks) for blocks in new] == [1, 0, 1, 1, 1]
    assert new[0][0] is new[3][0]
    assert new[0][0] == new[4][0]
    assert bytes(new[2][0]).count(b'"type":"x.y"') == 3
    for follower in followers:
        follower.gone()


async def test_one_that_is_full_leaves_and_comes_back_without_a_gap() -> None:
    world = World(limit=300)
    follower = world.follow(after=0)
    seen: list[str] = []
    await settle()
    world.publish(*range(1, 50))  # nobody takes anything
    assert not world.hub.is_live(follower)
    assert follower.sink.buffered < 300 + 100  # type: ignore[attr-defined]
    taking = asyncio.create_task(take(follower, seen))
    await settle()
    assert world.hub.is_live(follower)
    world.publish(50)
    await settle()
    assert seen == [str(n) for n in range(1, 51)]
    follower.gone()
    await taking


async def test_an_event_of_two_topics_comes_once() -> None:
    world = World()
    follower = world.follow(after=0)
    await settle()
    world.hub.publish([event(1, "s", "p")])
    assert told(follower) == ["1"]
    follower.gone()


async def test_publishing_survives_followers_that_leave_meanwhile() -> None:
    world = World()

    class Leaving(Follower):
        def write(self, burst: Burst) -> None:
            for follower in both:
                follower.gone()

    both = [Leaving(world.feed, TOPIC, Wish(), AsgiSink(1000)) for _ in range(2)]
    for follower in both:
        world.hub.join(follower)
    world.publish(1)
    assert not world.hub._live


async def test_a_promotion_goes_on_and_a_restore_starts_anew() -> None:
    world = World()
    follower = world.follow(after=0)
    await settle()
    world.publish(1, 2)
    old = Cursor(EPOCH, Position(0))
    world.hub.identify(Lineage([old, Cursor("0000beef", Position(2))]), Position(2))
    assert b"event: reset" not in b"".join(follower.sink._pending)  # type: ignore[attr-defined]
    world.hub.identify(Lineage([Cursor("0000cafe", Position(7))]), Position(7))
    assert b'event: reset\ndata: {"reason":"epoch","cursor":"0000cafe-7"}' in b"".join(follower.sink._pending)  # type: ignore[attr-defined]
    follower.gone()


def test_lineage() -> None:
    lineage = Lineage([Cursor("0000000a", Position(0)), Cursor("0000000b", Position(10)), Cursor("0000000c", Position(20))])
    found = {
        ("0000000a", 10): 10,
        ("0000000a", 11): None,
        ("0000000b", 20): 20,
        ("0000000b", 21): None,
        ("0000000c", 99): 99,
        ("0000000d", 1): None,
    }
    for (epoch, position), wanted in found.items():
        assert lineage.locate(Cursor(epoch, Position(position))) == wanted


@pytest.mark.parametrize(
    ("text", "type", "wanted"),
    [
        ("*", "a.b", True),
        ("message.*", "message.delta", True),
        ("message.*", "messages.delta", False),
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b,c.*", "c.d.e", True),
        ("c.*", "c", False),
    ],
)
def test_types(text: str, type: str, wanted: bool) -> None:
    assert (type in Types(text)) is wanted


def test_things_say_what_they_are() -> None:
    world = World()
    assert repr(world.hub) == "<Hub at 0, 0 topics, 0 live>"
    assert repr(world.feed) == "<Feed 0 clients>"


class Row(tuple[Any, ...]):
    """Of the log, as the driver gives it."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__({"floor": 0, "size": 1}[key] if isinstance(key, str) else key)


class Reads:
    """A pool that counts, and answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer = asyncio.Event()
        self.fails = False

    async def fetch(self, query: str, after: int, upto: int, *rest: object) -> list[Any]:
        self.asked.append((after, upto, *rest))
        await self.answer.wait()
        if self.fails:
            raise OSError("gone")
        row = Row((0, 2, upto, "x.y", 0.0, "{}", "s", None, None, None, None, None))
        return [row] if upto > after else [Row((0, 2, None, *row[3:]))]


async def test_what_many_come_for_is_read_once() -> None:
    pool = Reads()
    log = Log(pool)  # type: ignore[arg-type]
    many = [asyncio.create_task(log.read(EPOCH, Position(3), Position(9), TOPIC)) for _ in range(50)]
    other = asyncio.create_task(log.read(EPOCH, Position(3), Position(9), (Topic("session", "other"),)))
    await settle()
    many[0].cancel()  # its client left: nobody else is to suffer for it
    await settle()
    pool.answer.set()
    batches = await asyncio.gather(*many[1:])
    assert len({id(batch.burst) for batch in batches}) == 1
    assert (await other).burst is not batches[0].burst
    assert pool.asked == [(3, 9, "s"), (3, 9, "other")]
    assert await log.read(EPOCH, Position(3), Position(9), TOPIC) is batches[0]
    assert (await log.read(EPOCH, Position(3), Position(11), TOPIC)).position == 11  # there may be more by now
    assert (await log.read("0000beef", Position(3), Position(9), TOPIC)).events[0].cursor.epoch == "0000beef"
    assert len(pool.asked) == 4


async def test_a_read_that_fails_fails_for_all_and_is_tried_again() -> None:
    pool = Reads()
    pool.fails = True
    pool.answer.set()
    log = Log(pool)  # type: ignore[arg-type]
    many = [asyncio.create_task(log.read(EPOCH, Position(3), Position(9), TOPIC)) for _ in range(3)]
    assert all(isinstance(error, OSError) for error in await asyncio.gather(*many, return_exceptions=True))
    pool.fails = False
    assert (await log.read(EPOCH, Position(3), Position(9), TOPIC)).position == 9


async def test_what_is_kept_for_others_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Reads()
    pool.answer.set()
    log = Log(pool)  # type: ignore[arg-type]
    monkeypatch.setattr("rowcast.log.KEPT_BYTES", 50_000)
    monkeypatch.setattr("rowcast.log.KEPT_SECONDS", 0.3)
    for n in range(100):
        await log.read(EPOCH, Position(n), Position(99), TOPIC)
    assert 40_000 < log._kept <= 50_000
    assert 10 < len(log._batches) < 50
    await until(lambda: not log._batches)
    assert log._kept == 0


async def test_clients_that_ask_for_many_views_leave_few_behind() -> None:
    burst = Burst([event(1), event(2)])
    blocks = [burst.block(View.of(f"x.y,z{n}")) for n in range(100)]
    assert all(block and bytes(block.data) == bytes(blocks[0].data) for block in blocks if blocks[0])
    assert len(burst._blocks) == VIEWS


async def test_a_read_that_nobody_waits_for_any_more_is_given_up() -> None:
    pool = Reads()
    log = Log(pool)  # type: ignore[arg-type]
    waiting = [asyncio.create_task(log.read(EPOCH, Position(n // 2), Position(9), TOPIC)) for n in range(10)]
    await settle()
    assert len(pool.asked) == 5
    for task in waiting[1:]:
        task.cancel()
    await settle()
    assert len(log._reading) == 1
    again = asyncio.create_task(log.read(EPOCH, Position(1), Position(9), TOPIC))  # one that was given up just now
    await settle()
    pool.answer.set()
    assert (await waiting[0]).position == (await again).position == 9
    assert not log._reading


async def test_where_recent_begins_is_not_shared_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who joins a look-up that was asked before an event begins before that event as well."""
    log = Log(None)  # type: ignore[arg-type]
    asked = asyncio.Event()

    class Slow:
        async def fetchval(self, *args: object) -> None:
            await asked.wait()

    log._pool = Slow()  # type: ignore[assignment]
    first = asyncio.create_task(log.recent(TOPIC, Position(1), timedelta(minutes=5), 100))
    await settle()
    second = asyncio.create_task(log.recent(TOPIC, Position(2), timedelta(minutes=5), 100))
    await settle()
    asked.set()
    assert (await first, await second) == (1, 1)


def test_a_cursor_beyond_what_a_new_primary_had_means_nothing() -> None:
    lineage = Lineage([Cursor("aaaaaaaa", Position(0)), Cursor("bbbbbbbb", Position(10))])
    asked = {"aaaaaaaa-10": 10, "aaaaaaaa-11": None, "bbbbbbbb-11": 11, "cccccccc-1": None}
    assert {text: lineage.locate(Cursor.parse(text)) for text in asked} == asked
