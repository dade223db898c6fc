"""A request that is answered."""

from typing import Any
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

    async def done(self, response: str | None = None) -> None:
        """End it as `done`. Returns when that is stored. NotSaved, Lost, Refused."""
        await self._end(status="done", **({} if response is None else {"response": clean(response)}))

    async def fail(self, error: str | None = None) -> None:
        """End it as `error`; `error` is what a user reads."""
        await self._end(status="error", error=clean(error or self._error_text))

    def failure(self) -> dict[str, Any]:
        return {"status": "error", "error": self._error_text}

    async def succeed(self) -> None:
        await self.done()
