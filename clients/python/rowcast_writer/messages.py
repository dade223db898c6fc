"""A message whose text grows while a browser looks on."""

import asyncio
from typing import Any
from uuid import UUID

from .draft import Draft
from .flusher import Flusher
from .held import Held, Write
from .statements import as_object


class Message(Held):
    """Made by Writer.message(). `id` is the row's."""

    table = "message"

    def __init__(self, flusher: Flusher, id: UUID | str | None, user_text: str, **values: Any) -> None:
        super().__init__(flusher, id, **values)
        self._user_text = user_text
        self._draft = Draft()
        self._counted = 0

    async def acknowledge(self, text: str) -> None:
        """Show this until real text comes."""
        await self._show(text)

    async def progress(self, text: str) -> None:
        """Show this in the place of an acknowledgement or of earlier progress; ignored once real text has come."""
        await self._show(text)

    async def write(self, chunk: str) -> None:
        """Append real text. Waits only where more is buffered than may be, before it takes the chunk; Lost if the row is no
        longer ours."""
        self._check()
        if self._flusher.is_full_for(self):
            await self._flusher.room(self)
            self._check()
        is_first = not self._draft.begun
        if not self._draft.write(chunk):
            return
        self._grown(urgent=is_first)
        if self._flusher.is_held_up:
            await asyncio.sleep(0)

    async def complete(self, text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it as `completed`, with all that was written, or with `text` in its place; metadata is merged into the
        row's. Returns when that is stored. What was shown only until real text comes goes. NotSaved, Lost, Refused."""
        await self._ended("completed", metadata, text)

    async def fail(self, user_text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it as `failed`; `user_text` is what a user reads, in `metadata.error`. What was written stays."""
        await self._ended("failed", {**(metadata or {}), "error": user_text or self._user_text})

    async def succeed(self) -> None:
        await self.complete()

    async def _show(self, text: str) -> None:
        self._check()
        if self._draft.show(text):
            self._grown(urgent=self.changes == 0)

    async def _ended(self, status: str, metadata: dict[str, Any] | None, text: str | None = None) -> None:
        final: dict[str, Any] = {"status": status}
        if metadata:
            final["metadata"] = as_object(metadata, "metadata")
        if self.final is None and not self.error and self._started:
            self._draft.end(text)
            self._count()
        await self._end(**final)

    def _grown(self, urgent: bool) -> None:
        self._count()
        self._changed(urgent)

    def _count(self) -> None:
        self._flusher.buffered += self._draft.kept - self._counted
        self._counted = self._draft.kept

    @property
    def kept(self) -> int:
        """Code points that are kept, because they are not stored for good."""
        return self._draft.kept

    def begun(self, answer: Any) -> None:
        if answer is not None:
            self._draft = Draft(answer)
        super().begun(answer)

    def failure(self) -> dict[str, Any]:
        return {"status": "failed", "metadata": {"error": self._user_text}}

    def take(self) -> Write:
        write = super().take()
        part = self._draft.part()
        write.values.update(offset=part.offset, delta=part.text)
        return Write(write.changes, write.values, write.ends, part)

    def stored(self, write: Write) -> None:
        assert write.part
        self._draft.stored(write.part)
        self._count()

    def forget(self) -> None:
        self._flusher.buffered -= self._counted
        self._counted = 0
