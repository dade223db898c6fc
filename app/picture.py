"""What `rowcast tail` shows in a terminal: bars for jobs, text that grows in place, a line for anything else.

What is finished is printed once and scrolls away; what is not is drawn again below it with every event.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .events import JOB_FAMILIES
from .eventsource import Frame

COLOURS = {"completed": "green", "done": "green", "failed": "red", "error": "red", "cancelled": "yellow"}
T = TypeVar("T")

MOST = 50
"""Of the messages and of the jobs that are drawn: of more, the oldest are given up."""

# All that a terminal could take for a command, or that turns a line around; not tab and line feed.
_RANGES = ((0, 9), (11, 32), (0x7F, 0xA0), (0x61C, 0x61D), (0x200E, 0x2010), (0x2028, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000))
_HARMLESS = dict.fromkeys((code for start, end in _RANGES for code in range(start, end)), "\N{REPLACEMENT CHARACTER}")


def harmless(value: object) -> str:
    """Text from elsewhere, with nothing in it that a terminal would obey."""
    return str(value).replace("\r\n", "\n").translate(_HARMLESS)


@dataclass
class Message:
    text: str = ""
    start: int = 0
    """Where the known text begins, in code points."""
    role: str = ""

    def grow(self, offset: int, delta: str) -> None:
        if not self.start <= offset <= self.start + len(self.text):
            self.start, self.text = offset, ""  # what lies between was never seen
        self.text = self.text[: offset - self.start] + delta

    def shown(self, most: int | None = None) -> Text:
        """All of it, or its last characters."""
        begin = max(0, len(self.text) - most) if most else 0
        text = ("…" if self.start or begin else "") + harmless(self.text[begin:])
        return Text.assemble((f"{_line(self.role) or 'message'}: ", "bold"), text)


@dataclass
class Picture:
    console: Console
    messages: dict[str, Message] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    painting: bool = False
    """Not while it catches up: what came and went in the past is not drawn."""

    def __post_init__(self) -> None:
        self._live = Live(console=self.console, auto_refresh=False)

    def __enter__(self) -> "Picture":
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._paint()
        self._live.stop()

    def note(self, text: str) -> None:
        self._print(Text(harmless(text), "dim"))

    def show(self, frame: Frame) -> None:
        type = frame.type
        if not self._draws(type, frame.payload):
            colour = "dim" if type in ("connected", "caught_up", "bye", "end") else "red" if type in ("reset", "error") else "cyan"
            time = f"{datetime.now():%H:%M:%S} "
            self._print(Text.assemble((time, "dim"), (f"{_line(type):24} ", colour), harmless(frame.data)))
        self.painting |= type in ("caught_up", "progress")
        if self.painting:
            self._paint()

    def _draws(self, type: str, data: Any) -> bool:
        """Take in what belongs to the picture; False leaves it to be shown as a line."""
        match data:
            case {"cursor": _} if type == "snapshot":
                for row in data.get("messages", ()):
                    self._message(row, {})
                for row in data.get("jobs", [data.get("job")]):
                    _ = row and self._job(row)
                return True
            case {"message_id": str(id), "offset": int(offset), "delta": str(delta)} if type == "message.delta":
                self._take(self.messages, id, self.messages.get(id) or Message()).grow(offset, delta)
                return True
            case {"message": {"id": str(id)}} | {"job": {"id": str(id)}} if type.endswith(".deleted"):
                self.messages.pop(id, None)
                self.jobs.pop(id, None)
                return False
            case {"message": dict(row)} if type.startswith(("agent.message.", "message.")):
                return self._message(row, data)
            case {"job": dict(row)} | {"run": dict(row)} if type.rpartition(".")[0] in JOB_FAMILIES:
                return self._job(row)
            case {"id": _, "status": _} if type in ("progress", *COLOURS):  # of a task's stream
                return self._job(data)
            case _:
                self._forget(type)
                return False

    def _forget(self, type: str) -> None:
        if type == "reset":  # what is missing may have ended them
            self.messages.clear()
            self.jobs.clear()

    def _message(self, row: dict[str, Any], event: dict[str, Any]) -> bool:
        id, known = str(row.get("id")), self.messages.get(str(row.get("id")))
        if "text" in row:
            known = Message(row["text"] or "")
        elif "delta" in event:
            known = known or Message()
            known.grow(event["offset"], event["delta"])
        if known is None:
            return False
        known.role = row.get("role") or ""
        if row.get("status") not in COLOURS:
            self._take(self.messages, id, known)
            return True
        self.messages.pop(id, None)
        self._print(known.shown())
        self._why(event.get("errorMessage"))
        return True

    def _job(self, row: dict[str, Any]) -> bool:
        id = str(row.get("id"))
        job = {**self.jobs.get(id, {}), **row}
        if job.get("status") not in COLOURS:
            self._take(self.jobs, id, job)
            return True
        self.jobs.pop(id, None)
        self._print(_bars([job]))
        self._why(job.get("error"))
        return True

    def _take(self, kept: dict[str, T], id: str, value: T) -> T:
        kept[id] = value
        if len(kept) > MOST:
            del kept[next(iter(kept))]
        return value

    def _why(self, error: object) -> None:
        if error:
            self._print(Text(harmless(error), "red"))

    def _print(self, what: RenderableType) -> None:
        self.console.print(what, soft_wrap=isinstance(what, Text))

    def _paint(self) -> None:
        """As much as the terminal is high: of texts the end, of jobs the newest."""
        width, height = self.console.size
        jobs = list(self.jobs.values())[-height // 2 :]
        room = height - len(jobs) - 1
        messages = list(self.messages.values())[-room // 2 :]
        each = room // len(messages) if messages else 0
        texts = [line for message in messages for line in message.shown(each * width).wrap(self.console, width)[-each:]]
        self._live.update(Group(*texts, _bars(jobs)), refresh=True)


def _bars(jobs: list[dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for job in jobs:
        status = str(job.get("status"))
        done = job["progress"] if isinstance(job.get("progress"), int | float) else 0
        doing = job.get("message") or job.get("stage") or status
        what = Text(_line(status if status in COLOURS else doing), COLOURS.get(status, ""))
        name = Text(_line(job.get("name") or job.get("kind") or "task"), "bold")
        table.add_row(name, ProgressBar(100, done, width=20), f"{done:3.0f}%", what)
    return table


def _line(value: object) -> str:
    return " ".join(harmless(value).split())
