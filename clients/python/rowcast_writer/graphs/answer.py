"""Who speaks in a run of a graph, and what of it is in the message."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..jobs import Step
from ..messages import Message


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
