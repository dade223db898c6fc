"""Windows of time: whoever asked for batches is written to at most once in each."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from .burst import Burst

logger = logging.getLogger(__name__)


class Member(Protocol):
    def flush(self, together: Callable[[Sequence[Burst]], Burst]) -> None:
        """Write what it holds, as one burst."""

    def fail(self, problem: str) -> None: ...


class Window:
    """All clients that batch alike share its ends, so that those who hold the same are written the same."""

    def __init__(self, milliseconds: int) -> None:
        self._seconds = milliseconds / 1000
        self._members: set[Member] = set()

    def __repr__(self) -> str:
        return f"<Window of {self._seconds:g} s, {len(self._members)} wait>"

    def add(self, member: Member) -> None:
        if not self._members:
            loop = asyncio.get_running_loop()
            loop.call_at((loop.time() // self._seconds + 1) * self._seconds, self._end)
        self._members.add(member)

    def _end(self) -> None:
        members, self._members = self._members, set()
        joined: dict[tuple[Burst, ...], Burst] = {}

        def together(bursts: Sequence[Burst]) -> Burst:
            key = tuple(bursts)
            return joined.get(key) or joined.setdefault(key, Burst.joined(key))

        for member in members:
            try:
                member.flush(together)
            except Exception:  # one client's trouble is nobody else's
                logger.exception("%r failed", member)
                member.fail("internal error")
