"""Writes what a LangGraph graph or a LangChain chain does as a job with steps, and what its models say as a message.

Start at record(). It reads the events of `astream_events()` as dicts, of any version of either package, and imports neither.
"""

import asyncio
import dataclasses
import logging
import math
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Literal, Self
from uuid import UUID

from .errors import JobCancelled, WriterError
from .jobs import Job, Step
from .messages import Message
from .writer import Writer

logger = logging.getLogger(__name__)

Event = Mapping[str, Any]

SEPARATOR = "\n\n"
TRIED_AGAIN = "This failed, and was tried again."
INTERRUPT = "__interrupt__"
"""The key under which LangGraph tells that a run waits for a human, and what it asks."""

HIDDEN = "langsmith:hidden"
"""A tag of LangGraph's own runs that nobody wants to see."""
NO_STREAM = {"nostream", "langsmith:nostream"}
"""Tags of models whose text is not for the user."""


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


# The stream


class Watch:
    """Waits for events, and stops waiting as soon as the end of the job is asked for. The stream is read by the task
    that called, in its context, and is interrupted as asyncio.timeout() interrupts."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waits = self._fired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task
        self._task = task
        self._watcher = asyncio.create_task(self._watch(), name="rowcast writer: end of the job")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()

    async def _watch(self) -> None:
        await self._job.cancelled.wait()
        if self._waits:
            self._fired = True
            self._task.cancel()

    async def next(self, stream: AsyncIterator[Event]) -> Event | None:
        """The next event, or None at the end. JobCancelled."""
        self._job.raise_if_cancelled()
        cancels = self._task.cancelling()
        self._waits = True
        try:
            event = await anext(stream, None)
        except BaseException as error:
            if self._fired and self._task.uncancel() <= cancels:
                raise JobCancelled(f"the end of {self._job.name} was asked for") from error
            raise
        finally:
            self._waits = False
        if self._fired:
            self._task.uncancel()
            self._job.raise_if_cancelled()
        return event


async def close(stream: AsyncIterator[Event]) -> None:
    """Close it as `async for` does not. How it ended is known by then; what goes wrong here changes nothing."""
    if aclose := getattr(stream, "aclose", None):
        try:
            await aclose()
        except Exception as error:
            logger.warning("the event stream could not be closed: %r", error)


# What happens in it


@dataclass(eq=False, slots=True)
class Run:
    """One run of a node or a tool that has not ended, and its step."""

    id: str
    name: str
    above: "Run | None"
    step: Step
    task: str
    """Where LangGraph runs it, as in `outer:<task id>|inner:<task id>`; a run that is tried again has the same."""
    group: tuple[Any, ...] | None
    """The same for all nodes of one run of one graph; None for a tool."""
    number: int | None
    """Of the graph's superstep: what has a lower one has ended."""
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> "list[Run]":
        """It and what it runs in, from the inside out."""
        return [self, *(self.above.line if self.above else [])]


@dataclass(eq=False, slots=True)
class Voice:
    """What one run of a model says."""

    line: list[Run]
    task: str
    parents: tuple[str, ...]
    parts: list[str] = field(default_factory=list)
    ended: bool = False


class Answer:
    """What the message says. Models that speak at once are heard one after the other."""

    def __init__(self, message: Message, separator: str) -> None:
        self._message = message
        self._separator = separator
        self._voices: list[Voice] = []
        """Those whose text is in the message."""
        self._waiting: deque[Voice] = deque()
        """The first of them is heard, and the others say nothing until it has ended."""
        self._begun = False
        self._revised = False

    @property
    def text(self) -> str:
        return self._separator.join("".join(voice.parts) for voice in self._voices)

    @property
    def correction(self) -> str | None:
        """What the message is to say instead, where something in it was taken back."""
        return self.text if self._revised else None

    async def say(self, voice: Voice, text: str) -> None:
        if voice.ended or not text:
            return
        if not voice.parts:
            self._waiting.append(voice)
        voice.parts.append(text)
        if voice is self._waiting[0]:
            await self._hear(voice, text)

    async def end(self, which: Callable[[Voice], bool]) -> None:
        """These have nothing more to say."""
        for voice in self._waiting:
            voice.ended = voice.ended or which(voice)
        await self._go_on()

    async def take_back(self, which: Callable[[Voice], bool]) -> None:
        """These were a failed try. A message only grows: what is in it is replaced at its end."""
        for voice in filter(which, [*self._voices, *self._waiting]):
            voice.ended = True
            if voice in self._voices:
                self._voices.remove(voice)
                self._revised = True
            elif voice in self._waiting:
                voice.parts.clear()
        await self._go_on()

    async def _go_on(self) -> None:
        while self._waiting and self._waiting[0].ended:
            self._waiting.popleft()
            if self._waiting and (text := "".join(self._waiting[0].parts)):
                await self._hear(self._waiting[0], text)

    async def _hear(self, voice: Voice, text: str) -> None:
        if voice not in self._voices:
            self._voices.append(voice)
            text = self._separator + text if self._begun else text
            self._begun = True
        await self._message.write(text)


class Recording:
    """One run: what its events say, in steps of the job and in the answer."""

    def __init__(self, job: Job, answer: Answer, nodes: Collection[str] | None, states: bool) -> None:
        self._job = job
        self._answer = answer
        self._nodes = nodes
        self._states = states
        self._runs: dict[str, Run] = {}
        """Open ones, in the order of their starts."""
        self._voices: dict[str, Voice | None] = {}
        """Those of open runs of models; None: not for the message."""
        self._root: str | None = None
        self._events = 0
        self.output: Any = None
        self.interrupts: list[Any] | None = None
        """What a human is asked, if the run waits for one."""

    def __repr__(self) -> str:
        return f"<Recording {self._events} events, {len(self._runs)} open runs, {len(self._voices)} open models>"

    def result(self) -> dict[str, Any] | None:
        """The output as JSON."""
        if not self._states:
            return None
        asked = {} if self.interrupts is None else {INTERRUPT: plain(self.interrupts)}
        return {**(as_state(self.output) or {}), **asked} or None

    async def follow(self, stream: AsyncIterator[Event]) -> None:
        """Read it to its end, and close it whatever happens."""
        try:
            try:
                async with Watch(self._job) as watch:
                    while (event := await watch.next(stream)) is not None:
                        await self._take(event)
            finally:
                await close(stream)
            await self._answer.end(lambda voice: True)
            await self._end_all(lambda run: run.step.complete(None if self.interrupts is None else {**run.state, "interrupted": True}))
        except BaseException as error:
            with suppress(WriterError):
                await self._end_all(self._after(error))
            raise

    async def _take(self, event: Event) -> None:
        if "event" not in event:
            raise TypeError(f'no event of astream_events(…, version="v2"): it has {sorted(event)}')
        kind, _, phase = event["event"].removeprefix("on_").rpartition("_")
        self._look_at_root(event, phase)
        if phase == "start" and any(tag.startswith("retry:attempt:") for tag in tags(event)):
            await self._answer.take_back(lambda voice: within(voice.parents, event))
        match kind, phase:
            case (("chain" | "tool"), "start"):
                await self._begin(event, kind)
            case "chain", "stream":
                await self._tell(self._partial_of(event), data(event).get("chunk"))
            case "custom", "event":
                await self._tell(self._above(event), {str(event.get("name")): event.get("data")}, add=True)
            case (("chain" | "tool"), ("end" | "error")):
                await self._end(event, phase)
            case (("chat_model" | "llm"), ("start" | "stream" | "end" | "error")):
                await self._hear(event, phase)

    def _look_at_root(self, event: Event, phase: str) -> None:
        """The first run is the whole, unless the stream was filtered."""
        self._events += 1
        if self._events == 1 and not event.get("parent_ids"):
            self._root = run_id(event)
        if run_id(event) != self._root:
            return
        if phase == "end":
            self.output = data(event).get("output")
        if phase in ("stream", "end"):
            asked = interrupts(data(event).get("chunk" if phase == "stream" else "output"))
            if asked is not None:
                known = self.interrupts or []
                self.interrupts = [*known, *(one for one in asked if one not in known)]

    # Steps

    async def _begin(self, event: Event, kind: str) -> None:
        is_node = kind == "chain"
        if HIDDEN in tags(event) or (is_node and not self._is_node(event)):
            return
        name, task, group, number = str(event.get("name")), task_of(event), None, None
        if is_node:
            group = (*parents(event), task.rpartition("|")[0])
            number = about(event).get("langgraph_step")
            await self._end_earlier(group, task, number)
        above = self._above(event)
        step = self._job.step("/".join([*(run.name for run in reversed(above.line if above else [])), name]))
        await step.start()
        self._runs[run_id(event)] = Run(run_id(event), name, above, step, task, group, number)

    def _is_node(self, event: Event) -> bool:
        """Whether it is the node itself, and neither a routing function nor what runs within, under the node's name maybe."""
        if event.get("name") != about(event).get("langgraph_node"):
            return False
        if any(tag.startswith("graph:step:") for tag in tags(event)):
            return True
        task = task_of(event)  # a task of LangGraph's functional API has no such tag, and a place of its own
        there = next((run for run in self._runs.values() if run.group and run.task == task), None)
        return bool(task) and (there is None or (bool(parents(event)) and there.id not in parents(event)))

    async def _end_earlier(self, group: tuple[Any, ...], task: str, number: Any) -> None:
        """End what had no event of its end: what is tried again, and what has handed over to another graph's node."""
        if task:
            await self._answer.take_back(lambda voice: f"{voice.task}|".startswith(f"{task}|"))
        if not any(group):
            return
        for run in [run for run in self._runs.values() if run.group == group]:
            if task and run.task == task:
                await self._close(run, lambda one: one.step.fail(TRIED_AGAIN))
            elif run.number is not None and number is not None and run.number < number:
                await self._close(run, lambda one: one.step.complete())

    async def _end(self, event: Event, phase: str) -> None:
        run = self._runs.get(run_id(event))
        if run is None or (phase == "error" and is_no_failure(data(event).get("error"))):
            return
        await self._close(run, lambda one: one.step.fail(), spared=run)
        del self._runs[run.id]
        if phase == "error":
            await run.step.fail()
        else:
            await run.step.complete(as_state(data(event).get("output")) if self._states else None)

    async def _tell(self, run: Run | None, chunk: Any, add: bool = False) -> None:
        """What a node or tool knows by now."""
        if run and self._states and isinstance(chunk, Mapping) and (state := as_state({**run.state, **chunk} if add else chunk)):
            run.state = state
            await run.step.state(state)

    def _partial_of(self, event: Event) -> Run | None:
        """The node of which this is a part of the output: what a generator gives comes from a run within, of the same name."""
        run = self._above(event)
        return run if run and run.group and run.name == event.get("name") else None

    def _above(self, event: Event) -> Run | None:
        """The innermost open run that it belongs to."""
        if about_itself := self._runs.get(run_id(event)):
            return about_itself
        for parent in reversed(parents(event)):
            if parent in self._runs:
                return self._runs[parent]
        place = task_of(event)  # the events of version 1 name no parents
        while place:
            for run in self._runs.values():
                if run.group and run.task == place:
                    return run
            place = place.rpartition("|")[0]
        return None

    async def _close(self, run: Run, end: Callable[[Run], Awaitable[None]], spared: Run | None = None) -> None:
        """End the steps of a run and of all that runs in it, from the inside out."""
        inside = [one for one in self._runs.values() if run in one.line]
        for id in [id for id, voice in self._voices.items() if voice and run in voice.line]:
            del self._voices[id]
        await self._answer.end(lambda voice: run in voice.line)
        for one in reversed(inside):
            if one is not spared:
                del self._runs[one.id]
                await end(one)

    async def _end_all(self, end: Callable[[Run], Awaitable[None]]) -> None:
        while self._runs:
            _, run = self._runs.popitem()
            await end(run)

    def _after(self, error: BaseException) -> Callable[[Run], Awaitable[None]]:
        """How steps end that an exception has ended. LangGraph notes on it the ids of the tasks that it came from."""
        if isinstance(error, JobCancelled | asyncio.CancelledError):
            return lambda run: run.step.cancel()
        notes = "\n".join(getattr(error, "__notes__", ()))
        guilty = {run for run in self._runs.values() if (id := run.task.rpartition(":")[2]) and id in notes}
        return lambda run: run.step.fail() if run in guilty or not guilty else run.step.cancel()

    # Text

    async def _hear(self, event: Event, phase: str) -> None:
        id = run_id(event)
        if id not in self._voices:
            self._voices[id] = self._voice(event)
        voice = self._voices.pop(id) if phase in ("end", "error") else self._voices[id]
        if voice is None:
            return
        if phase == "stream":
            await self._answer.say(voice, text_of(data(event).get("chunk")))
        elif phase == "end" and not voice.parts:
            await self._answer.say(voice, text_of(data(event).get("output")))
        if phase in ("end", "error"):
            await self._answer.end(lambda one: one is voice)

    def _voice(self, event: Event) -> Voice | None:
        above = self._above(event)
        line = above.line if above else []
        is_named = self._nodes is None or any(run.name in self._nodes for run in line)
        is_inside_another = any(parent in self._voices for parent in parents(event))  # which passes its text on
        if not is_named or is_inside_another or NO_STREAM.intersection(tags(event)):
            return None
        return Voice(line, task_of(event), parents(event))


# What an event says


def run_id(event: Event) -> str:
    return str(event.get("run_id"))


def tags(event: Event) -> list[str]:
    return event.get("tags") or []


def parents(event: Event) -> tuple[str, ...]:
    """From the outside in. Version 1 has none."""
    return tuple(map(str, event.get("parent_ids") or ()))


def within(those: tuple[str, ...], event: Event) -> bool:
    """Whether what has those parents runs where the event's run does."""
    own = parents(event)
    return bool(own) and those[: len(own)] == own


def about(event: Event) -> Mapping[str, Any]:
    return event.get("metadata") or {}


def task_of(event: Event) -> str:
    return str(about(event).get("langgraph_checkpoint_ns") or "")


def data(event: Event) -> Mapping[str, Any]:
    given = event.get("data")
    return given if isinstance(given, Mapping) else {}


def interrupts(chunk: Any) -> list[Any] | None:
    """What a human is asked by a chunk of a graph's stream, in any of its modes; None if nobody is."""
    if isinstance(chunk, tuple | list) and chunk:
        chunk = chunk[-1]  # (mode, chunk), (namespace, chunk) or (namespace, mode, chunk)
    if not isinstance(chunk, Mapping) or INTERRUPT not in chunk:
        return None
    return list(chunk[INTERRUPT] or ())


def is_no_failure(error: Any) -> bool:
    """LangGraph raises what waits for a human, and what hands over to another graph's node."""
    return any(one.__name__ == "GraphBubbleUp" for one in type(error).__mro__)


def text_of(value: Any) -> str:
    """The text of a message, a chunk, a generation or a whole result, be it an object or a dict. Neither reasoning nor tool calls."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(map(_text_of_part, value))
    for name in ("generations", "message", "content", "text"):
        inner = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if name == "generations" and inner:
            return text_of(inner[0][0] if isinstance(inner[0], list) else inner[0]) if inner[0] else ""
        if inner is not None and not callable(inner):
            return text_of(inner)
    return ""


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text") if part.get("type", "text") == "text" else None
        return text if isinstance(text, str) else ""
    return part if isinstance(part, str) else ""


# What is kept of a state

STATE = 65_536
"""Characters of a state, about. What is more is left out, and `…` stands in its place."""
TEXT = 10_000
"""Characters of one text in it."""
NAME = 200
DEPTH = 10
CUT = "…"


def as_state(value: Any) -> dict[str, Any] | None:
    """As the state of a step: what a node gives is an object already, all else becomes `{"output": …}`."""
    kept = plain(value)
    return kept if kept is None or isinstance(kept, dict) else {"output": kept}


def plain(value: Any) -> Any:
    """As JSON, bounded in size: messages as `{"type", "content"}`, anything odd as its repr."""
    try:
        return Plain().of(value)
    except Exception as error:  # as when another thread changes it meanwhile
        return f"<{type(value).__name__}: {type(error).__name__}>"


class Plain:
    def __init__(self) -> None:
        self._left = STATE

    def of(self, value: Any, depth: int = 0) -> Any:
        self._left -= 4
        if depth > DEPTH:
            return CUT
        match value:
            case None | bool():
                return value
            case int() if -(2**63) <= value < 2**63:
                return value
            case float() if math.isfinite(value):
                return value
            case str():
                return self._text(value)
            case Mapping():
                return self._object(value.items(), len(value), depth)
            case list() | tuple() | set() | frozenset():
                return self._list(value, depth)
            case UUID() | date() | Decimal() | PurePath():
                return self._text(str(value))
        try:
            return self._odd(value, depth)
        except Exception as error:  # whatever it does when it is looked at
            return f"<{type(value).__name__}: {type(error).__name__}>"

    def _odd(self, value: Any, depth: int) -> Any:
        if isinstance(getattr(value, "type", None), str) and hasattr(value, "content"):
            return self._object([("type", value.type), ("content", value.content)], 2, depth)
        if hasattr(value, "goto") and hasattr(value, "update"):  # a Command
            return self.of(value.update, depth)
        if names := fields(value):
            return self._object(((name, getattr(value, name)) for name in names), len(names), depth)
        return self._text(repr(value))

    def _text(self, text: str) -> str:
        return self._cut(text, max(min(TEXT, self._left), 0))

    def _cut(self, text: str, most: int) -> str:
        self._left -= min(len(text), most)
        return text[:] if len(text) <= most else text[:most] + CUT

    def _object(self, items: Iterable[tuple[Any, Any]], length: int, depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for n, (name, value) in enumerate(items):
            if self._left <= 0:
                kept[CUT] = length - n
                break
            kept[self._cut(str(name), NAME)] = self.of(value, depth + 1)
        return kept

    def _list(self, values: Collection[Any], depth: int) -> list[Any]:
        kept: list[Any] = []
        for value in values:
            if self._left <= 0:
                kept.append(CUT)
                break
            kept.append(self.of(value, depth + 1))
        return kept


def fields(value: Any) -> list[str]:
    """Of a dataclass or a Pydantic model."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [one.name for one in dataclasses.fields(value)]
    return list(getattr(type(value), "model_fields", {}))
