"""How much one client, one session and one process may take."""

import ipaddress
import time
from collections import Counter
from collections.abc import Hashable, Iterable

from .errors import TooMany
from .events import Topic, Topics

BURST = 10
"""Seconds' worth of handshakes that may come at once, as after a restart."""
ADDRESSES = 20_000
"""That are remembered; the ones that were quiet for longest are forgotten first."""
NETWORK = 64
"""Bits of an IPv6 address: the rest of it is one client's to choose."""

PROCESS = object()


class Limits:
    """Counts who is connected. What is full is told as TooMany, before anything is given."""

    def __init__(self, connections: int, of_subject: int, of_session: int, handshakes: int) -> None:
        self._connections = connections
        self._of_subject = of_subject
        self._of_session = of_session
        self._handshakes = handshakes
        self._counts: Counter[Hashable] = Counter()
        self._held: dict[object, list[Hashable]] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        """By address: how many handshakes it had left, and when."""

    def __repr__(self) -> str:
        return f"<Limits {self._counts[PROCESS]} of {self._connections} connections>"

    def room(self, subject: str | None, topics: Topics, connections: int = 1) -> None:
        """TooMany unless there is room for a connection of this subject that follows these (or a topic more: 0)."""
        for key, limit, name in self._limits(subject, topics, connections):
            if self._counts[key] >= limit:
                raise TooMany(f"{limit} connections at most {name}")

    def _limits(self, subject: str | None, topics: Topics, connections: int) -> Iterable[tuple[Hashable, int, str]]:
        if connections:
            yield PROCESS, self._connections, "to one process (ROWCAST_CONNECTIONS)"
            if subject is not None:
                yield subject, self._of_subject, "of one user (ROWCAST_USER_CONNECTIONS)"
        for topic in topics:
            if topic.kind == "session":
                yield topic, self._of_session, f"to {topic} (ROWCAST_SESSION_CONNECTIONS)"

    def enter(self, client: object, subject: str | None, topics: Topics) -> None:
        held: list[Hashable] = [PROCESS, *(() if subject is None else (subject,)), *_sessions(topics)]
        self._held[client] = held
        self._counts.update(held)

    def change(self, client: object, more: Topics = (), less: Topics = ()) -> None:
        """It follows these as well, or no longer."""
        if held := self._held.get(client):
            for topic in _sessions(more):
                if topic not in held:
                    held.append(topic)
                    self._counts[topic] += 1
            for topic in _sessions(less):
                if topic in held:
                    held.remove(topic)
                    self._release(topic)

    def leave(self, client: object) -> None:
        for key in self._held.pop(client, ()):
            self._release(key)

    def _release(self, key: Hashable) -> None:
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def handshake(self, address: str | None) -> None:
        """TooMany if there were too many from this address (a token bucket)."""
        if not self._handshakes or address is None:
            return
        address, now, most = _network(address), time.monotonic(), self._handshakes * BURST
        left, at = self._buckets.pop(address, (float(most), now))
        left = min(left + (now - at) * self._handshakes, most)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        if left < 1:
            raise TooMany(f"{self._handshakes} new connections a second at most from one address (ROWCAST_HANDSHAKES)")


def _sessions(topics: Topics) -> list[Topic]:
    return [topic for topic in topics if topic.kind == "session"]


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, NETWORK), strict=False))
    return address
