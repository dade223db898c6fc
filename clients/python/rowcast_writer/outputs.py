"""One message to two places: as a row, which a hub streams, and as an item of Directus. Each has its switch."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from .directus import DirectusMessages
from .errors import WriterError
from .lane import Call, Handle, Lane
from .statements import as_object
from .writer import Writer

logger = logging.getLogger(__name__)

ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Outputs:
    """Writes messages to whichever output is switched on, or to both at once.

    `writer`, `directus`              both stay the caller's, who closes them
    `sse_streaming_enabled`           write rows
    `directus_streaming_enabled`      write items
    `directus_streaming_interval_ms`  milliseconds between two PATCHes of a message, instead of what `directus` says
    """

    def __init__(
        self,
        writer: Writer | None = None,
        directus: DirectusMessages | None = None,
        *,
        sse_streaming_enabled: bool = True,
        directus_streaming_enabled: bool = True,
        directus_streaming_interval_ms: float | None = None,
    ) -> None:
        if not sse_streaming_enabled and not directus_streaming_enabled:
            raise ValueError("sse_streaming_enabled and directus_streaming_enabled are both off: nothing would be written")
        for switch, is_on, name, given in (
            ("sse_streaming_enabled", sse_streaming_enabled, "writer", writer),
            ("directus_streaming_enabled", directus_streaming_enabled, "directus", directus),
        ):
            if is_on and given is None:
                raise ValueError(f"{switch} is on, so give a `{name}`, or switch it off")
        if directus_streaming_interval_ms is not None and not 0 < directus_streaming_interval_ms < float("inf"):
            raise ValueError(f"directus_streaming_interval_ms is to be above 0, not {directus_streaming_interval_ms!r}")
        self._writer = writer if sse_streaming_enabled else None
        self._directus = directus if directus_streaming_enabled else None
        self._interval = directus_streaming_interval_ms and directus_streaming_interval_ms / 1000

    @classmethod
    def from_env(
        cls, writer: Writer | None = None, directus: DirectusMessages | None = None, environment: Mapping[str, str] | None = None
    ) -> Self:
        """As SSE_STREAMING_ENABLED, DIRECTUS_STREAMING_ENABLED and DIRECTUS_STREAMING_INTERVAL_MS say. Both are on where
        these say nothing. ValueError."""
        environment = os.environ if environment is None else environment
        return cls(
            writer,
            directus,
            sse_streaming_enabled=_switch(environment, "SSE_STREAMING_ENABLED"),
            directus_streaming_enabled=_switch(environment, "DIRECTUS_STREAMING_ENABLED"),
            directus_streaming_interval_ms=_milliseconds(environment, "DIRECTUS_STREAMING_INTERVAL_MS"),
        )

    def __repr__(self) -> str:
        return f"<Outputs {', '.join(repr(output) for output in (self._writer, self._directus) if output)}>"

    def message(
        self,
        session_id: UUID | str,
        *,
        job_id: UUID | str | None = None,
        role: str = "assistant",
        metadata: dict[str, Any] | None = None,
        trace_id: UUID | str | None = None,
        id: UUID | str | None = None,
    ) -> "OutputMessage":
        """A message of a session: `async with outputs.message(session_id) as message:`. The job is the row's only."""
        trace_id = str(trace_id or (metadata or {}).get("trace_id") or uuid4())
        metadata = {**(metadata or {}), "trace_id": trace_id}
        row = self._writer and self._writer.message(session_id, job_id=job_id, role=role, metadata=metadata, id=id)
        item = self._directus and self._directus.message(session_id, role=role, metadata=metadata, id=id, interval=self._interval)
        return OutputMessage([handle for handle in (item, row) if handle], trace_id)


def _switch(environment: Mapping[str, str], name: str) -> bool:
    given = environment.get(name, "").strip()
    if given.lower() in OFF:
        return False
    if given and given.lower() not in ON:
        raise ValueError(f"{name} takes true or false (or 1, yes, on, 0, no, off), not {given!r}")
    return True


def _milliseconds(environment: Mapping[str, str], name: str) -> float | None:
    given = environment.get(name, "").strip()
    try:
        number = float(given) if given else None
    except ValueError:
        number = 0.0
    if number is not None and not 0 < number < float("inf"):
        raise ValueError(f"{name} takes a number of milliseconds above 0, not {given!r}")
    return number


class OutputMessage:
    """Made by Outputs.message(). What goes wrong with one output neither stops nor delays the other, and is raised at
    the end; what goes wrong with all is raised at once. An ExceptionGroup where there is more than one error."""

    def __init__(self, handles: list[Any], trace_id: str) -> None:
        self._handles = handles
        self._lanes = [Lane(handle) for handle in handles]
        self._has_started = self._has_ended = False
        self._trouble: Exception | None = None
        self.trace_id = trace_id

    def __repr__(self) -> str:
        return f"<OutputMessage {self._handles}>"

    @property
    def id(self) -> Any:
        """Directus's id where it is on, else the row's."""
        return self._handles[0].id

    @property
    def result(self) -> dict[str, Any]:
        """What a caller hands on."""
        return {"assistant_message_id": self.id if isinstance(self.id, int) else str(self.id), "trace_id": self.trace_id}

    async def start(self) -> Self:
        """Start it everywhere. Returns when it has started somewhere."""
        if not self._has_started:
            self._has_started = True
            for lane in self._lanes:
                lane.tell(lane.handle.__aenter__)
        waiting = {asyncio.create_task(lane.done()): lane for lane in self._lanes}
        has_taken = False
        try:
            while waiting and not has_taken:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                has_taken = not all(waiting.pop(task).error for task in done)
        finally:
            for task in waiting:
                task.cancel()
        self._check()
        return self

    async def acknowledge(self, text: str) -> None:
        """Show this until real text comes."""
        await self._tell(text, lambda handle: handle.acknowledge)

    async def progress(self, text: str) -> None:
        """Show this in the place of an acknowledgement or of earlier progress; ignored once real text has come."""
        await self._tell(text, lambda handle: handle.progress)

    async def write(self, chunk: str) -> None:
        """Append real text. Waits where an output has more to catch up with than may be kept, until its patience ends."""
        await self._tell(chunk, lambda handle: handle.write)

    async def complete(self, text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it as `completed` everywhere; where something has failed, with what a user may read of that."""
        more = as_object(metadata or {}, "metadata")
        await self._end(lambda handle: partial(handle.complete, text, more), lambda handle: handle.fail)

    async def fail(self, user_text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it everywhere with what a user may read."""
        await self._end(*self._failing(user_text, as_object(metadata or {}, "metadata")))

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except asyncio.CancelledError:
            self._end_with(*self._failing())
            raise
        except Exception as error:
            await self._fail_after(error)
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            await self.complete()
        else:
            await self._fail_after(error)

    def _check(self) -> None:
        if not self._has_started:
            raise WriterError("the message is not started: use `async with`, or await start()")
        if all(lane.error for lane in self._lanes):
            self._raise()
        if self._has_ended:
            raise WriterError(f"message {self.id} has ended")

    def _raise(self) -> None:
        """What went wrong, if anything did."""
        errors = [lane.error for lane in self._lanes if lane.error]
        if not self._trouble and errors:
            self._trouble = errors[0] if len(errors) == 1 else ExceptionGroup(f"message {self.id} could not be written", errors)
        if self._trouble:
            raise self._trouble

    async def _tell(self, text: str, method: Callable[[Handle], Callable[[str], Awaitable[None]]]) -> None:
        self._check()
        for lane in self._lanes:
            lane.tell(partial(method(lane.handle), text), len(text))
        for lane in self._lanes:
            if lane.is_full:
                await lane.done()
        self._check()

    async def _end(self, call: Callable[[Handle], Call], fail: Callable[[Handle], Call]) -> None:
        if not self._has_started:
            self._check()
        self._end_with(call, fail)
        for lane in self._lanes:
            await lane.done()
        self._raise()

    def _end_with(self, call: Callable[[Handle], Call], fail: Callable[[Handle], Call]) -> None:
        """The first end counts."""
        if not self._has_ended:
            self._has_ended = True
            for lane in self._lanes:
                lane.end(call(lane.handle), fail(lane.handle))

    def _failing(self, user_text: str | None = None, metadata: dict[str, Any] | None = None) -> list[Callable[[Handle], Call]]:
        return [lambda handle: partial(handle.fail, user_text, metadata)] * 2

    async def _fail_after(self, error: BaseException) -> None:
        """What goes wrong here does not hide the error that led to it."""
        try:
            await self.fail()
        except Exception as trouble:
            if trouble is not error:
                error.add_note(str(trouble))
                logger.warning("%s", trouble)
