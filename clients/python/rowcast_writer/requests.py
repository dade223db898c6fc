"""A request that is answered."""

from types import TracebackType
from typing import Any, Self
from uuid import UUID

from .draft import clean
from .flusher import Flusher
from .held import Held


class Request(Held):
    """Made by Writer.request(). `id` is the row's."""

    table = "request"

    def __init__(self, flusher: Flusher, id: UUID | str | None, error_text: str, **values: Any) -> None:
        super().__init__(flusher, id, **values)
        self._error_text = error_text

    async def start(self) -> Self:
        """Create the row with status `in_progress`, or take the one that is there. NotSaved, Lost, Refused."""
        await self._start()
        return self

    async def done(self, response: str | None = None) -> None:
        """End it as `done`. Returns when that is stored. NotSaved, Lost, Refused."""
        await self._end(status="done", **({} if response is None else {"response": clean(response)}))

    async def fail(self, error: str | None = None) -> None:
        """End it as `error`; `error` is what a user reads."""
        await self._end(status="error", error=clean(error or self._error_text))

    def failure(self) -> dict[str, Any]:
        return {"status": "error", "error": self._error_text}

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            if self.final is None or self.error:
                await self.done()
        elif self.final is None and not self.error:
            await self._end_after(error, self.fail())
