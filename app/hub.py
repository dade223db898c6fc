"""The hub: the in-process registry that fans events out to subscribers."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from .burst import Burst
from .events import Cursor, Event, Lineage, Position, Topic
from .grounds import Grounds

logger = logging.getLogger(__name__)


class Subscriber(Protocol):
    """One connected client. It is catching up (not in the hub), or live."""

    topics: tuple[Topic, ...]
    """Not changed while it is live."""

    def deliver(self, burst: Burst) -> None:
        """What is new in its topics. It may leave, and catch up from the log."""

    def reset(self, reason: str) -> None: ...
    def fail(self, problem: str) -> None: ...


class Hub:
    """Publishing is synchronous and in the order of positions; nothing here waits.

    A live subscriber costs no task, and no queue of events is held for anybody.
    """

    def __init__(self) -> None:
        self._live: dict[Topic, set[Subscriber]] = {}
        self._of_several: dict[Topic, set[Subscriber]] = {}
        """Those that follow more than one topic, under each."""
        self._of_none: set[Subscriber] = set()
        """WebSockets that have yet to say what they want."""
        self.grounds = Grounds()
        self.lineage = Lineage()
        self.position = Position(0)
        """The last event published: all up to here is in the log, and was offered to whoever is live."""
        self.published = 0
        self.on_identified: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Hub at {self.position}, {len(self._live.keys() | self._of_several.keys())} topics, {len(self._everybody())} live>"

    def cursor(self, position: Position) -> Cursor:
        return Cursor(self.lineage.epoch, position)

    def join(self, subscriber: Subscriber) -> None:
        registry = self._registry(subscriber)
        for topic in subscriber.topics:
            registry.setdefault(topic, set()).add(subscriber)
        if not subscriber.topics:
            self._of_none.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        self._of_none.discard(subscriber)
        registry = self._registry(subscriber)
        for topic in subscriber.topics:
            followers = registry.get(topic)
            if followers is not None:
                followers.discard(subscriber)
                if not followers:
                    del registry[topic]

    def _registry(self, subscriber: Subscriber) -> dict[Topic, set[Subscriber]]:
        return self._live if len(subscriber.topics) == 1 else self._of_several

    def is_live(self, subscriber: Subscriber) -> bool:
        registry = self._registry(subscriber)
        return any(subscriber in registry.get(topic, ()) for topic in subscriber.topics)

    def _everybody(self) -> set[Subscriber]:
        return self._of_none.union(*self._live.values(), *self._of_several.values())

    def publish(self, events: Sequence[Event]) -> None:
        """Offer the next events, at least one, to the live subscribers of their topics. Where one of them puts
        somebody's access in doubt, nothing after it is told to them before they have asked."""
        done = 0
        for n, event in enumerate(events, 1):
            ground = event.unsettles
            if ground is not None:
                if ground in self.grounds:
                    self._publish(events[done:n])
                    done = n
                self.grounds.shake(ground)
        if done < len(events):
            self._publish(events[done:])

    def _publish(self, events: Sequence[Event]) -> None:
        by_topic: dict[Topic, list[Event]] = {}
        for event in events:
            for topic in event.topics:
                by_topic.setdefault(topic, []).append(event)
        gathered: dict[Subscriber, list[Burst]] = {}
        for topic, news in by_topic.items():
            one, several = self._live.get(topic), self._of_several.get(topic)
            if one or several:
                burst = Burst(news)
                for subscriber in several or ():
                    gathered.setdefault(subscriber, []).append(burst)
                self._offer(burst, tuple(one or ()))
        if gathered:
            self._offer_joined(gathered)
        self.position = events[-1].position
        self.published += len(events)

    def _offer_joined(self, gathered: dict[Subscriber, list[Burst]]) -> None:
        """To each what is new in all its topics, in the order of positions; those that follow the same share it."""
        alike: dict[tuple[Burst, ...], list[Subscriber]] = {}
        for subscriber, bursts in gathered.items():
            alike.setdefault(tuple(bursts), []).append(subscriber)
        for together, subscribers in alike.items():
            self._offer(Burst.joined(together), subscribers)

    def _offer(self, burst: Burst, subscribers: Sequence[Subscriber]) -> None:
        for subscriber in subscribers:
            try:
                subscriber.deliver(burst)
            except Exception:  # one client's trouble is nobody else's
                logger.exception("hub: %r failed", subscriber)
                self.leave(subscriber)
                subscriber.fail("internal error")

    def identify(self, lineage: Lineage, head: Position) -> None:
        """Which log this is, at every (re)connect of the listener. Where ours does not go on in it,
        everybody is told, and begins again at its head."""
        known = self.lineage
        self.lineage = lineage
        if not known:
            self.position = head
            self.grounds.shake_all()  # what was told up to here, nobody has heard
        elif lineage.locate(known[-1]._replace(position=self.position)) is None or head < self.position:
            self.position = head
            self._reset("epoch")
        self.on_identified()

    def skip(self, floor: Position) -> None:
        """We were away for longer than events are kept."""
        self.position = floor
        self._reset("truncated")

    def _reset(self, reason: str) -> None:
        logger.warning("hub: the log does not go on where we were (%s); clients start anew at %d", reason, self.position)
        for subscriber in self._everybody():
            subscriber.reset(reason)
        self.grounds.shake_all()  # whoever lost access meanwhile: what told of it may be gone, too
