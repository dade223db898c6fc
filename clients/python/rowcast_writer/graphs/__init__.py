"""Writes what a LangGraph graph or a LangChain chain does as a job with steps, and what its models say as a message.

Start at record(). It reads the events of `astream_events()` as dicts, of any version of either package, and imports neither.
"""

from collections.abc import AsyncIterable, Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from ..errors import JobCancelled, WriterError
from ..jobs import Job
from ..messages import Message
from ..writer import Writer
from .answer import Answer
from .events import Event
from .recording import Recording

SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What record() gives. `text` is what the models said; `output` what the run ended with, as the stream gave it;
    `interrupted` whether it ended only because it waits for a human."""

    job_id: UUID
    message_id: UUID
    text: str
    output: Any
    interrupted: bool = False


async def record(
    events: AsyncIterable[Event],
    writer: Writer,
    session_id: UUID | str | None = None,
    *,
    job: Job | None = None,
    message: Message | None = None,
    kind: Literal["agent", "workflow"] = "agent",
    name: str | None = None,
    nodes: Collection[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    separator: str = SEPARATOR,
    states: bool = True,
) -> Recorded:
    """Write a run while it happens: `await record(graph.astream_events(…, version="v2"), writer, session_id)`.

    `session_id` that of the job and of the message that are made here
    `job`, `message` open ones to use instead; they are not ended here, and an exception leaves that to their own blocks
    `kind`, `name` of the job that is made; `metadata` of the message that is made
    `nodes`     names of the nodes and tools whose models' text goes into the message; None: of all
    `separator` between the texts of two runs of models
    `states`    whether what nodes and tools give becomes the state of their steps, and the output the job's result

    An exception of the run fails the steps that it ended, the message and the job, and is raised. If the end of the job
    is asked for, the stream is closed, the steps and the job end as cancelled, the message is completed with what it
    says by then and `{"cancelled": true}` in its metadata, and JobCancelled is raised. A run that waits for a human
    (`interrupt()`) completes the message with `{"interrupted": true}`. NotSaved, Lost, Refused.
    """
    if session_id is None and (job is None or message is None):
        raise ValueError("give a session_id, or an open job and an open message")
    if not isinstance(events, AsyncIterable):
        raise TypeError(f'the events of astream_events(…, version="v2") are wanted, not {type(events).__name__}')
    async with AsyncExitStack() as made:
        its_job = await made.enter_async_context(writer.job(kind, session_id=session_id, name=name)) if job is None else job
        if message is None:
            assert session_id is not None
            its_message = await made.enter_async_context(writer.message(session_id, job_id=its_job.id, metadata=metadata))
        else:
            its_message = message
        answer = Answer(its_message, separator)
        recording = Recording(its_job, answer, {nodes} if isinstance(nodes, str) else nodes, states)
        try:
            await recording.follow(aiter(events))
        except JobCancelled:
            if message is None:
                with suppress(WriterError):
                    await its_message.complete(answer.correction, {"cancelled": True})
            raise
        interrupted = recording.interrupts is not None
        if message is None:
            await its_message.complete(answer.correction, {"interrupted": True} if interrupted else None)
        if job is None:
            await its_job.complete(recording.result())
        return Recorded(its_job.id, its_message.id, answer.text, recording.output, interrupted)
