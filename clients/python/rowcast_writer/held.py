"""A row that this writer holds: what is not written yet, whether it is still ours, how it ends."""

import asyncio
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import UUID, uuid4

from .draft import Part
from .errors import Lost, NotSaved, WriterError

if TYPE_CHECKING:
    from .flusher import Flusher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """What one flush says of one row. `changes` is how many changes it holds, and the row's revision."""

    changes: int
    values: dict[str, Any]
    ends: bool
    part: Part | None = None


class Held:
    table: ClassVar[str]

    def __init__(self, flusher: "Flusher", id: UUID | str | None, **values: Any) -> None:
        self._flusher = flusher
        self.id = id if isinstance(id, UUID) else UUID(id) if id else uuid4()
        self.fence = uuid4()
        """The fencing token: whoever takes the row, or the reaper, puts another in its place."""
        self.first_values = values
        """What it is created with."""
        self.error: WriterError | None = None
        """Why nothing more can be written."""
        self.final: dict[str, Any] | None = None
        """How it ends, once that is known."""
        self.changes = 0
        self.written = 0
        """How many of the changes the row has."""
        self.written_at = 0.0
        """When it was last written, on the loop's clock."""
        self.trouble: str | None = None
        """Why it could not be written the last time, though others could."""
        self.retry_at = 0.0
        """It is not written before then, because it held up others."""
        self._starting: asyncio.Task[None] | None = None
        self._started = self._abandoned = False
        self.finished = asyncio.Event()

    def __repr__(self) -> str:
        state = self.error or (self.final or {}).get("status") or ("open" if self._started else "not started")
        return f"<{type(self).__name__} {self.id} {state}, {self.changes - self.written} changes unwritten>"

    @property
    def name(self) -> str:
        return f"{self.table} {self.id}"

    @property
    def is_dirty(self) -> bool:
        return self.changes > self.written

    @property
    def is_finished(self) -> bool:
        return self.finished.is_set()

    @property
    def kept(self) -> int:
        """Code points of text that are kept here."""
        return 0

    @property
    def is_held_back(self) -> bool:
        """Whether something else is to be written first."""
        return False

    # What the flusher asks

    async def fail(self) -> None:
        """End it because nobody else does."""
        raise NotImplementedError

    def due_at(self) -> float:
        """When it is to be written though nothing changed, on the loop's clock."""
        return self.written_at + self._flusher.renewal

    def take(self) -> Write:
        """What is to be written now. What was taken before, and may be lost again, is in it."""
        values = {"id": str(self.id), "fence": str(self.fence), **self.values(), **(self.final or {})}
        if self.changes:
            values["revision"] = self.changes
        return Write(self.changes, values, self.final is not None)

    def values(self) -> dict[str, Any]:
        return {}

    def answered(self, write: Write, outcome: str, durable: bool, *more: Any) -> None:
        """What became of a write."""
        self.trouble = "somebody else's transaction holds the row, or row security hides it" if outcome == "locked" else None
        if outcome == "locked":
            return
        if outcome != "written":
            self.lose(Lost(self.name, outcome))
            return
        self.written = max(self.written, write.changes)
        self.written_at = asyncio.get_running_loop().time()
        if durable:
            self.stored(write)
        if write.ends and durable:
            self.over()

    def failure(self) -> dict[str, Any]:
        """How it ends where nobody says how; empty if something else ends it."""
        raise NotImplementedError

    def stored(self, write: Write) -> None:
        """What that write said will survive a crash."""

    def forget(self) -> None:
        """The flusher holds it no longer."""

    def lose(self, error: WriterError) -> None:
        self.error = error
        self.over()

    def over(self) -> None:
        """Nothing more will be written of it."""
        self.finished.set()

    def begun(self, answer: Any) -> None:
        """It is there, and ours. `answer` is what starting it gave."""
        self._started = True
        self.written_at = asyncio.get_running_loop().time()
        self._flusher.hold(self)
        if self._abandoned:
            self.final = self.failure()
            self._changed(urgent=True)

    # What pipelines ask

    async def start(self) -> Self:
        """Create the row, or take the one that is there. Who is cancelled here leaves nothing open: what is started all the
        same is failed. NotSaved, Lost, Refused."""
        if self._started:
            return self
        self._starting = self._starting or self._flusher.start(self)
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            self._abandoned = True
            if self._started and self.final is None:
                self.begun(None)
            raise
        finally:
            if self._starting.done():
                self._starting = None
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            if self.final is None or self.error:
                await self.succeed()
        elif self.final is None and not self.error:
            try:
                await self.fail_by(error)
            except WriterError as trouble:  # which does not hide what led to it
                error.add_note(str(trouble))
                logger.warning("%s", trouble)

    async def succeed(self) -> None:
        """End it well, because its block was left and nobody said how it ends."""
        raise NotImplementedError

    async def fail_by(self, error: BaseException) -> None:
        """End it, because its block was left by an exception."""
        await self.fail()

    def _changed(self, urgent: bool = False) -> None:
        self.changes += 1
        self._flusher.wake(self, urgent)

    def _check(self) -> None:
        """WriterError if nothing can be written any more."""
        if self.error:
            raise self.error
        if not self._started:
            raise WriterError(f"{self.name} is not started: use `async with`, or await start()")
        if self.final is not None:
            raise WriterError(f"{self.name} has ended")

    async def _end(self, **final: Any) -> None:
        """Write how it ends together with all that is not written yet, and wait until that is stored. The first end
        counts. NotSaved if that takes longer than the writer's patience, Lost, Refused."""
        if self.final is None and not self.error:
            self._check()
            self.final = final
            self._changed(urgent=True)
        if not self.is_finished and not await self._flusher.waited(self.finished):
            self.lose(NotSaved(f"{self.name}: its end could not be stored for {self._flusher.patience:g} s: {self.why_not}"))
            self._flusher.drop(self)
        if self.error:
            raise self.error

    @property
    def why_not(self) -> str:
        """Why it is not written."""
        return self.trouble or self._flusher.trouble or "the database takes too long"
