"""What access rests on, and whose: when something changes there, they ask again whether they may."""

from typing import Protocol


class Guarded(Protocol):
    """Somebody whose access rests on grounds, such as `session:<id>` or `user:<sub>`."""

    def doubt(self) -> None:
        """It may have lost its access. Nothing more may be told before that is asked again."""


class Grounds:
    """An index from each ground to those who rest on it."""

    def __init__(self) -> None:
        self._resting: dict[str, set[Guarded]] = {}
        self._asking: set[Guarded] = set()
        """Who finds out what it rests on: until then, on everything."""
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

    def asking(self, guarded: Guarded) -> None:
        self._asking.add(guarded)

    def asked(self, guarded: Guarded) -> None:
        self._asking.discard(guarded)

    def __contains__(self, ground: str) -> bool:
        """Whether anybody's access rests on it."""
        return ground in self._resting or bool(self._asking)

    def shake(self, ground: str) -> None:
        self.shakes += 1
        for guarded in (*self._asking, *self._resting.get(ground, ())):
            guarded.doubt()

    def shake_all(self) -> None:
        """What changed is not known."""
        self.shakes += 1
        for guarded in self._asking.union(*self._resting.values()):
            guarded.doubt()
