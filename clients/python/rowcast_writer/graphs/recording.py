"""What a run does, as steps of a job, and what its models say, in an answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from ..errors import JobCancelled, WriterError
from ..jobs import Job
from .answer import Answer, Run, Voice
from .events import INTERRUPT, Event, about, data, interrupts, is_no_failure, parents, run_id, tags, task_of, text_of, within
from .states import as_state, plain
from .watch import Watch, close

TRIED_AGAIN = "This failed, and was tried again."

HIDDEN = "langsmith:hidden"
"""A tag of LangGraph's own runs that nobody wants to see."""

NO_STREAM = {"nostream", "langsmith:nostream"}
"""Tags of models whose text is not for the user."""


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
