"""An item of a Directus collection that grows: what Directus has of it, how it ends, and the one task that sends it."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from ..draft import Draft
from ..errors import Lost, NotSaved, Refused, WriterError
from ..flusher import backoff
from .rest import NotUnique, Passing, Steadfast

if TYPE_CHECKING:
    from . import DirectusMessages

logger = logging.getLogger(__name__)

UNAUTHORIZED, FORBIDDEN = "401", "403"

BUFFER = 2**20
"""Code points of one message that Directus does not have yet; write() waits where there would be more."""


class Item:
    def __init__(
        self, home: "DirectusMessages", values: dict[str, Any], metadata: dict[str, Any], id: UUID | str | int | None, interval: float
    ) -> None:
        self._home = home
        self._values = {name: value for name, value in values.items() if value is not None}
        self._metadata = metadata
        self._interval = interval
        self._has_given_id = id is not None
        self._names_itself = self._has_given_id or not home.gives_ids
        self.id: str | int = id if isinstance(id, int) else str(id or uuid4())
        self.error: WriterError | None = None
        """Why nothing more can be written."""
        self._draft = Draft()
        self._stored = ""
        """The text that Directus has."""
        self._final: dict[str, Any] | None = None
        """The last PATCH, once it is known how the message ends."""
        self._started = self._is_there = self._finished = False
        self._can_read = False
        self._doubtful = False
        """A request may have been carried out that we know nothing of."""
        self._failures = 0
        self._give_up_at = self._due_at = 0.0
        self._once = False
        """Do not try again what fails."""
        self._created, self._room, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._task: Steadfast | None = None

    def __repr__(self) -> str:
        state = self.error or ("ended" if self._finished else "open" if self._started else "not started")
        return f"<{type(self).__name__} {self.id} {state}, {self._unsent} unsent>"

    @property
    def name(self) -> str:
        return f"message {self.id}"

    @property
    def trace_id(self) -> str:
        return str(self._metadata["trace_id"])

    @property
    def result(self) -> dict[str, Any]:
        """What a caller hands on."""
        return {"assistant_message_id": self.id, "trace_id": self.trace_id}

    async def fail(self) -> None:
        """End it because nobody else does."""
        raise NotImplementedError

    # What is decided

    @property
    def _unsent(self) -> int:
        return max(0, self._draft.kept - len(self._stored))

    @property
    def _is_working(self) -> bool:
        return self._task is not None and not self._task.done()

    def _check(self) -> None:
        """WriterError if nothing can be written any more."""
        if self.error:
            raise self.error
        if not self._started:
            raise WriterError(f"{self.name} is not started: use `async with`, or await start()")
        if self._final is not None:
            raise WriterError(f"{self.name} has ended")

    def _may_end(self) -> bool:
        """Whether it is still open how it ends. An end that could not be stored may be tried again."""
        if not self._started:
            self._check()
        is_ending = self._final is not None and not self.error
        return not self._finished and not is_ending and not isinstance(self.error, Lost)

    def _end(self, text: str, metadata: dict[str, Any]) -> None:
        self._once = self.error is not None
        self.error = None
        self._metadata |= metadata
        self._final = self._home.named({"status": "completed", "text": text, "metadata": self._metadata})
        self._hurry.set()
        self._work()

    def _next(self) -> dict[str, Any] | None:
        """What is to be sent; None if Directus has all."""
        if self._final is not None:
            return None if self._finished else self._final
        text = self._draft.part().text
        return None if text == self._stored else self._home.named({"text": text})

    # What is sent

    def _work(self) -> None:
        """See that it is sent."""
        self._home.open.add(self)
        if not self._is_working:
            self._failures = 0
            self._task = Steadfast(self._run(), f"directus {self.name}")

    async def _begin(self) -> None:
        if not self._started:
            self._home.hold(self)
            self.error = None
            self._started = True
            self._created.clear()
            self._work()
        await self._created.wait()
        if self.error:
            raise self.error

    async def _wait_for_room(self) -> None:
        while self._unsent > BUFFER and not self.error:
            self._room.clear()
            await self._room.wait()
        if self.error:
            raise self.error

    async def _ended(self) -> None:
        if self._task and not self._finished:
            await asyncio.wait([self._task])
        if self.error:
            raise self.error

    async def _run(self) -> None:
        """The one task of a message, which runs as long as there is something to send."""
        try:
            while not self._is_there:
                await self._tried(self._create())
            self._created.set()
            while self._next() is not None:
                await self._pause()
                if body := self._next():
                    await self._tried(self._patch(body))
        except WriterError as error:
            self.error = error
        except Exception as error:
            logger.error("%s: the task that writes it died", self.name, exc_info=error)
            self.error = WriterError(f"{self.name}: the task that writes it died: {type(error).__name__}")
        if not self._is_there:
            self._started = False
        if self._finished or (self.error and (self._final is not None or not self._is_there)):
            self._home.open.discard(self)
        self._created.set()
        self._room.set()

    async def _pause(self) -> None:
        """Until the interval is over, or it ends."""
        loop = asyncio.get_running_loop()
        if self._final is None and loop.time() < self._due_at:
            self._hurry.clear()
            timer = loop.call_at(self._due_at, self._hurry.set)
            await self._hurry.wait()
            timer.cancel()
        self._due_at = loop.time() + self._interval

    async def _tried(self, attempt: Coroutine[Any, Any, None]) -> None:
        """Await it, and wait for a while if it fails in a way that passes. NotSaved when that takes too long."""
        try:
            await attempt
            self._failures = 0
        except Passing as trouble:
            self._doubtful |= trouble.doubtful
            now = asyncio.get_running_loop().time()
            if self._failures == 0:
                self._give_up_at = now + self._home.patience
                logger.warning("%s: trying again: %s", self.name, trouble)
            self._failures += 1
            delay = max(backoff(self._failures), trouble.wait * random.uniform(1.0, 1.1))
            if self._once or now + delay > self._give_up_at:
                raise NotSaved(f"{self.name}: not stored within {self._home.patience:g} s: {trouble}") from None
            await asyncio.sleep(delay)

    async def _create(self) -> None:
        """Passing, Refused. With a key of ours, an item that is there already after a doubtful try is this one."""
        answer = None
        if not (self._doubtful and self._names_itself and await self._is_found()):
            if self._final is not None:
                raise WriterError(f"{self.name} was ended before it was created")
            answer = await self._insert()
        self._is_there = True
        self._doubtful = False
        if answer is not None:
            self._can_read = True
            self.id = answer.get(self._home.key, self.id)

    async def _insert(self) -> dict[str, Any] | None:
        values = {**self._values, "status": "streaming", "text": "", "metadata": self._metadata, "trace_id": self.trace_id}
        body = self._home.named({**values, "id": self.id} if self._names_itself else values)
        try:
            answer = await self._ask("POST", body=body, fields=[self._home.key, *body])
        except NotUnique:
            if not self._doubtful:
                raise
            return None
        except Refused as error:
            # Directus's answer to a uuid where keys are numbers.
            if error.code != FORBIDDEN or self._has_given_id or not self._names_itself or not await self._home.find_who_gives_ids():
                raise
            self._names_itself = False
            return await self._insert()
        if answer is None and not self._names_itself:
            raise Refused(f"{self.name}: Directus gave no id: a token that may not read the items needs keys that are uuids")
        if answer is not None and (missing := [field for field in body if field not in answer]):
            await self._give_up(answer.get(self._home.key, self.id))
            where = f"{self._home.collection} has no {', '.join(missing)} that this token may read"
            raise Refused(f"{self.name}: {where}: give the names of its fields with `fields`")
        return answer

    async def _is_found(self) -> bool:
        try:
            await self._ask("GET", self.id, fields=[self._home.key])
        except Refused:
            return False
        return True

    async def _give_up(self, id: str | int) -> None:
        """It lacks fields, so nobody will write it."""
        body = self._home.named({"status": "completed", "metadata": {**self._metadata, "error": True}})
        with suppress(Passing, Refused):
            await self._ask("PATCH", id, body=body, fields=[self._home.key])

    async def _patch(self, body: dict[str, Any]) -> None:
        """Passing, Refused, Lost."""
        try:
            answer = await self._ask("PATCH", self.id, body=body, fields=[self._home.key])
        except Refused as error:
            self._shorten(error)
            return
        is_last = body is self._final
        if answer is None and self._can_read and not is_last:
            raise Lost(self.name, "gone")  # so answers Directus to an administrator
        self._stored = body.get(self._home.text_field, self._stored)
        if is_last:
            self._finished = not self._doubtful or await self._is_as_sent(body)

    def _shorten(self, error: Refused) -> None:
        """A failed message that Directus does not take, because its text is too long or for another reason of the text,
        ends without the rest of its text."""
        has_failed = self._metadata.get("error") is True
        if not self._final or not has_failed or self._home.text_field not in self._final or error.code in (UNAUTHORIZED, FORBIDDEN):
            raise error
        logger.warning("%s: it ends without the rest of its text: %s", self.name, error)
        del self._final[self._home.text_field]

    async def _is_as_sent(self, body: dict[str, Any]) -> bool:
        """False if something older came after the end, so that the end is to be sent again; which is asked once."""
        try:
            found = await self._ask("GET", self.id, fields=list(self._home.named({"text": "", "status": ""})))
        except Refused:
            found = None
        self._doubtful = False
        return found is None or all(body.get(field, value) == value for field, value in found.items())

    async def _ask(self, method: str, *id: str | int, body: dict[str, Any] | None = None, fields: Iterable[str]) -> dict[str, Any] | None:
        try:
            return await self._home.rest.ask(method, "items", self._home.collection, *id, body=body, fields=fields)
        except Refused as error:
            raise type(error)(f"{self.name}: {error}", error.code) from None
