"""The same messages over a Directus server, for front ends that follow Directus: these see only what is changed through it.

Directus cannot append to a text. Each PATCH holds the whole, so there is at most one an interval, one at a time.
"""

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

from ..errors import Refused, WriterError
from ..statements import as_object
from ..writer import USER_TEXT
from .items import Item
from .rest import Rest, Steadfast

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

FIELDS: dict[str, str | None] = {
    "id": "id",
    "session_id": "session_id",
    "role": "role",
    "status": "status",
    "text": "messageText",
    "metadata": "metadata",
    "trace_id": None,
}
"""Our names, and the collection's. None: there is no such field."""

NEEDED = ("status", "text")

NUMBERS = ("integer", "bigInteger")


class DirectusMessages:
    """Writes messages as items of a Directus collection. Make one for a process, and close it at the end.

    `token`      a static token of a user who may create and update items of the collection; it should be able to read them
    `fields`     the collection's names for ours, where they differ from FIELDS; None leaves one out
    `interval`   seconds between two PATCHes of a message
    `patience`   seconds for which it goes on trying while Directus is away, before NotSaved is raised
    `user_text`  what users read of a message that an exception has ended
    `source`     the `metadata.source` of all messages
    `client`     an httpx.AsyncClient to use, which stays open
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        collection: str = "messages",
        fields: Mapping[str, str | None] | None = None,
        interval: float = 0.2,
        patience: float = 60.0,
        user_text: str = USER_TEXT,
        source: str = "rowcast-writer",
        client: "httpx.AsyncClient | None" = None,
    ) -> None:
        for name, value in (("interval", interval), ("patience", patience)):
            if not value > 0:
                raise ValueError(f"{name} is to be above 0, not {value!r}")
        self.rest = Rest(url, token, client)
        self.collection = collection
        self.fields = _checked_fields(fields or {})
        self.interval = interval
        self.patience = patience
        self.user_text = user_text
        self.source = source
        self.gives_ids = self.fields["id"] is None
        """Whether Directus makes the keys, because they are numbers."""
        self.open: set[Item] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<DirectusMessages {self.collection} at {self.rest.host}, {len(self.open)} open{', closed' if self._closed else ''}>"

    def message(
        self,
        session_id: UUID | str | int | None,
        *,
        role: str = "assistant",
        metadata: dict[str, Any] | None = None,
        trace_id: UUID | str | None = None,
        id: UUID | str | int | None = None,
        interval: float | None = None,
    ) -> "DirectusMessage":
        """A message of a session: `async with directus.message(session_id) as message:`. `interval`: instead of ours."""
        given = as_object(metadata or {}, "metadata")
        if trace_id is not None:
            given["trace_id"] = str(trace_id)
        metadata = {"source": self.source, "trace_id": str(uuid4()), **given}
        session_id = str(session_id) if isinstance(session_id, UUID) else session_id
        return DirectusMessage(self, {"session_id": session_id, "role": role}, metadata, id, interval or self.interval)

    def hold(self, message: Item) -> None:
        if self._closed:
            raise WriterError(f"{message.name}: the DirectusMessages is closed")
        self.open.add(message)

    def named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Under the collection's names, without what it has no field for."""
        return {field: value for name, value in values.items() if (field := self.fields[name])}

    @property
    def key(self) -> str:
        return self.fields["id"] or "id"

    @property
    def text_field(self) -> str:
        return str(self.fields["text"])

    async def find_who_gives_ids(self) -> bool:
        """Whether it turns out that the keys are numbers, which Directus gives. Passing."""
        try:
            field = await self.rest.ask("GET", "fields", self.collection, self.key, fields=())
        except Refused:
            return False
        self.gives_ids = (field or {}).get("type") in NUMBERS
        return self.gives_ids

    async def close(self) -> None:
        """Fail what is still open, and close what was opened here."""
        self._closed = True
        try:
            await _finished([Steadfast(message.fail(), f"end of {message.name}") for message in self.open])
        finally:
            await self.rest.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


async def _finished(tasks: list[Steadfast]) -> None:
    """Wait for tasks that end by themselves, whoever cancels us meanwhile."""
    cancelled = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for trouble in filter(None, (task.exception() for task in tasks)):
        logger.warning("%s", trouble)
    if cancelled:
        raise cancelled


def _checked_fields(fields: Mapping[str, str | None]) -> dict[str, str | None]:
    for name, field in fields.items():
        if name not in FIELDS:
            raise ValueError(f"fields: there is no {name!r}, but {', '.join(FIELDS)}")
        if not field and name in NEEDED:
            raise ValueError(f"fields: {name} cannot be left out")
    return {**FIELDS, **fields}


class DirectusMessage(Item):
    """Made by DirectusMessages.message(). `id` is the item's, which Directus gives where keys are numbers."""

    async def start(self) -> Self:
        """Create the item with status `streaming`. NotSaved, Refused."""
        await self._begin()
        return self

    async def acknowledge(self, text: str) -> None:
        """Show this until real text comes."""
        self._show(text)

    async def progress(self, text: str) -> None:
        """Show this in the place of an acknowledgement or of earlier progress; ignored once real text has come."""
        self._show(text)

    async def write(self, chunk: str) -> None:
        """Append real text. Returns at once unless Directus lacks more of it than may be kept. NotSaved, Lost, Refused."""
        self._check()
        if self._draft.write(chunk):
            self._work()
        await self._wait_for_room()

    async def complete(self, text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it as `completed`, with all that was written, or with `text` in its place; metadata is merged into the
        item's. Returns when Directus has it. What was shown only until real text comes goes. NotSaved, Lost, Refused."""
        more = as_object(metadata or {}, "metadata")
        if self._may_end():
            self._draft.end(text)
            self._end(self._draft.part().text, more)
        try:
            await self._ended()
        except Refused as error:
            await self._fail_after(error)
            raise

    async def fail(self, user_text: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        """End it as `completed` too, with `metadata.error` true, and `user_text` below what was written."""
        more = {**as_object(metadata or {}, "metadata"), "error": True}
        if self._may_end():
            self._draft.end()
            written, user_text = self._draft.part().text, user_text or self._home.user_text
            self._end(f"{written}\n\n{user_text}" if written.strip() else user_text, more)
        await self._ended()

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except asyncio.CancelledError:
            self._abandon()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            await self.complete()
        else:
            await self._fail_after(error)

    def _show(self, text: str) -> None:
        self._check()
        if self._draft.show(text):
            self._work()

    def _abandon(self) -> None:
        """The start was cut short: end what may be there, and wait for nothing."""
        if self._may_end():
            self._end(self._home.user_text, {"error": True})

    async def _fail_after(self, error: BaseException) -> None:
        """What goes wrong here does not hide the error that led to it."""
        try:
            await self.fail()
        except WriterError as trouble:
            if trouble is not error:
                error.add_note(str(trouble))
                logger.warning("%s", trouble)
