"""A job with stages, progress and steps."""

import asyncio
import math
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from .draft import clean
from .errors import JobCancelled, Lost, WriterError
from .flusher import Flusher
from .held import Held, Write
from .statements import as_json, as_object

STOPPED = (JobCancelled, asyncio.CancelledError)
"""By these a job and its steps end as cancelled, by other exceptions as failed."""

CANCEL_INTERVAL = 1.0
"""Seconds between looks whether somebody asked for the end of a job."""


class Fields(Held):
    """A row some of whose columns change. What is not stored for good is kept, a value a column."""

    def __init__(self, flusher: Flusher, id: UUID | str | None, **values: Any) -> None:
        super().__init__(flusher, id, **values)
        self._fields: dict[str, Any] = {}
        self._changed_at: dict[str, int] = {}

    def values(self) -> dict[str, Any]:
        return self._fields

    def stored(self, write: Write) -> None:
        for name in [name for name, changes in self._changed_at.items() if changes <= write.changes]:
            del self._fields[name], self._changed_at[name]

    def _set(self, urgent: bool = False, **fields: Any) -> None:
        self._check()
        self._fields.update(fields)
        self._changed(urgent)
        self._changed_at.update(dict.fromkeys(fields, self.changes))


class Job(Fields):
    """Made by Writer.job(). `id` is the row's."""

    table = "job"

    def __init__(self, flusher: Flusher, id: UUID | str | None, error_text: str, **values: Any) -> None:
        super().__init__(flusher, id, **values)
        self._error_text = error_text
        self._steps: list[Step] = []
        self._refused: WriterError | None = None
        """What went wrong with a step."""
        self.cancelled = asyncio.Event()
        """Set when somebody asked for the end of the job."""

    async def stage(self, text: str, progress: float | None = None) -> None:
        """Say which stage it is in."""
        self._set(urgent=self.changes == 0, stage=clean(text), **({} if progress is None else {"progress": percent(progress)}))

    async def progress(self, progress: float, message: str | None = None) -> None:
        """Say how far it is, in percent, and what is being done."""
        self._set(urgent=self.changes == 0, progress=percent(progress), **({} if message is None else {"message": clean(message)}))

    async def result(self, value: Any) -> None:
        """What came out of it, as JSON. May be said before the end."""
        self._set(result=as_json(value))

    def step(self, name: str, state: dict[str, Any] | None = None) -> "Step":
        """A step of the job: `async with job.step("read") as step:`."""
        return Step(self, name, state)

    def began(self, step: "Step") -> None:
        """Remember a step until it is over, to end it with the job."""
        self._steps = [one for one in self._steps if one.error or not one.is_finished]
        self._steps.append(step)

    def raise_if_cancelled(self) -> None:
        """JobCancelled if somebody asked for the end of the job."""
        if self.cancelled.is_set():
            raise JobCancelled(f"the end of {self.name} was asked for")

    async def complete(self, result: Any = None) -> None:
        """End it as `completed`, at 100 percent. Returns when that is stored, and all its steps. NotSaved, Lost, Refused."""
        given = {} if result is None else {"result": as_json(result)}
        if self.final is None:
            self._fields.pop("progress", None)
            self._changed_at.pop("progress", None)
        await self._ended("completed", **given)

    async def fail(self, error: str | None = None) -> None:
        """End it as `failed`; `error` is what a user reads."""
        await self._ended("failed", error=clean(error or self._error_text))

    async def cancel(self) -> None:
        """End it as `cancelled`."""
        await self._ended("cancelled")

    async def succeed(self) -> None:
        await self.complete()

    async def fail_by(self, error: BaseException) -> None:
        await (self.cancel() if isinstance(error, STOPPED) else self.fail())

    async def _ended(self, status: str, **values: Any) -> None:
        await self._end(status=status, **values)
        if self._refused:
            raise self._refused

    @property
    def is_held_back(self) -> bool:
        return self.final is not None and any(step.is_dirty and not step.is_finished for step in self._steps)

    def begun(self, answer: Any) -> None:
        if answer:
            self.cancelled.set()
        super().begun(answer)

    def over(self) -> None:
        self._refused = next((step.error for step in self._steps if step.error), None)
        for step in self._steps:
            step.over_with_the_job()
        super().over()

    def failure(self) -> dict[str, Any]:
        return {"status": "failed", "error": self._error_text}

    def due_at(self) -> float:
        return min(super().due_at(), self.written_at + CANCEL_INTERVAL)

    def answered(self, write: Write, outcome: str, durable: bool, *more: Any) -> None:
        super().answered(write, outcome, durable)
        if more and more[0]:
            self.cancelled.set()


class Step(Fields):
    """Made by Job.step(). `id` is the row's."""

    table = "job_step"

    def __init__(self, job: Job, name: str, state: dict[str, Any] | None) -> None:
        super().__init__(job._flusher, None)
        self._job = job
        self._name = clean(name)
        self._first_state = {} if state is None else {"state": as_object(state, "state")}
        self.fence = job.fence

    async def start(self) -> Self:
        """Have the row created with status `running`, by the next flush, which is at once."""
        if not self._started:
            self._job._check()
            self._job.began(self)
            self.begun(None)
            self._set(urgent=True, **self._first_state)
        return self

    async def state(self, state: dict[str, Any]) -> None:
        """What it knows by now, in the place of what was said before."""
        self._job._check()
        self._set(state=as_object(state, "state"))

    async def complete(self, state: dict[str, Any] | None = None) -> None:
        """End it as `completed`. Stored soon, and before the end of the job; what goes wrong is told then."""
        self._over("completed", state)

    async def fail(self, error: str | None = None, state: dict[str, Any] | None = None) -> None:
        """End it as `failed`; `error` is what a user reads. Stored as with complete()."""
        self._over("failed", state, error=clean(error or self._job._error_text))

    async def cancel(self) -> None:
        """End it as `cancelled`. Stored as with complete()."""
        self._over("cancelled", None)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.final is not None or self.error or (self._job.final is not None and not self._job.error):
            return
        if error is None:
            await self.complete()
            return
        with suppress(WriterError):  # which does not hide what led to it, and is told with the end of the job
            await (self.cancel() if isinstance(error, STOPPED) else self.fail())

    def over_with_the_job(self) -> None:
        """The end of a job ends its open steps; nothing more can be written of this one."""
        if not self.is_finished:
            self.lose(Lost(self.name, "ended"))
            self._flusher.drop(self)

    def _over(self, status: str, state: dict[str, Any] | None, **values: Any) -> None:
        self._check()
        self._job._check()
        self.final = {"status": status, **values, **({} if state is None else {"state": as_object(state, "state")})}
        self._changed(urgent=True)

    def failure(self) -> dict[str, Any]:
        return {}  # it ends with its job

    def due_at(self) -> float:
        return math.inf  # the lease is the job's

    def values(self) -> dict[str, Any]:
        return {"job_id": str(self._job.id), "name": self._name, **super().values()}


def percent(value: float) -> float:
    """As a job's progress is kept: 0 to 100."""
    if not isinstance(value, int | float) or value != value:
        raise TypeError(f"progress is a number from 0 to 100, not {value!r}")
    return min(max(float(value), 0.0), 100.0)
