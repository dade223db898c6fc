"""What access rests on, and whose: when something changes there, they ask again whether they may."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

ALL = "*"
"""What was shaken where that is not known."""


class Guarded(Protocol):
    """Somebody whose access rests on grounds, such as `session:<id>` or `user:<sub>`."""

    def doubt(self) -> None:
        """It may have lost its access. Nothing more may be told before that is asked again."""


class Grounds:
    """An index from each ground to those who rest on it."""

    def __init__(self) -> None:
        self._resting: dict[str, set[Guarded]] = {}
        self._heard: dict[int, set[str]] = {}
        """What was shaken since each of those began to ask who ask just now, by the identity of the set."""
        self.shakes = 0
        """How often anything was in doubt."""

    def __repr__(self) -> str:
        return f"<Grounds {len(self._resting)}, {self.shakes} shakes>"

    def rest(self, guarded: Guarded, grounds: frozenset[str]) -> None:
        for ground in grounds:
            self._resting.setdefault(ground, set()).add(guarded)

    def leave(self, guarded: Guarded, grounds: frozenset[str]) -> None:
        for ground in grounds:
            if resting := self._resting.get(ground):
                resting.discard(guarded)
                if not resting:
                    del self._resting[ground]

    @contextmanager
    def heard(self) -> Iterator[set[str]]:
        """What is shaken while somebody finds out what it rests on."""
        heard: set[str] = set()
        self._heard[id(heard)] = heard
        try:
            yield heard
        finally:
            del self._heard[id(heard)]

    def __contains__(self, ground: str) -> bool:
        """Whether anybody's access rests on it."""
        return ground in self._resting

    def shake(self, ground: str) -> None:
        self.shakes += 1
        for heard in self._heard.values():
            heard.add(ground)
        for guarded in tuple(self._resting.get(ground, ())):
            guarded.doubt()

    def shake_all(self) -> None:
        """What changed is not known."""
        self.shakes += 1
        for heard in self._heard.values():
            heard.add(ALL)
        for guarded in set().union(*self._resting.values()):
            guarded.doubt()
