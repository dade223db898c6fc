"""`rowcast tail`: follow topics in the terminal, and end as what was followed ended."""

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

from rich.console import Console

from .errors import ConfigurationError
from .events import AUDIENCES, JOB_FAMILIES
from .eventsource import EventSource, Frame
from .picture import Picture

KINDS = (*AUDIENCES, "task")
OUTCOMES = {"completed": 0, "done": 0, "failed": 1, "error": 1, "deleted": 1, "cancelled": 3}
INTERRUPTED = 130

# What a terminal might obey or a program cannot encode. In JSON the escapes mean the same.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class Target:
    """Where to listen for what. `until_end` None leaves it to the topics: one task, job or request has an end."""

    url: str
    topics: list[str]
    after: str | None = None
    since: str | None = None
    until_end: bool | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError("the token is none: it has characters that no token has")
        named = [_topic(topic) for topic in self.topics]
        self.kinds = [kind for kind, _ in named]
        alone = self.kinds[0] if len(named) == 1 else ""
        self.task = named[0][1] if alone == "task" else None
        self.job = named[0][1] if alone in ("task", "job") else None
        if "task" in self.kinds and not self.task:
            raise ConfigurationError("a task is followed alone; job:<id> can stand beside others")
        if self.until_end is None:
            self.until_end = alone in ("task", "job", "request")
        if self.since is None:  # one that ended long ago is to end at once
            self.since = {"job": "snapshot", "request": "start"}.get(alone, "recent")

    @property
    def _base(self) -> str:
        return self.url.rstrip("/")

    @property
    def state(self) -> str:
        """Of the one task or job."""
        return f"{self._base}/api/v1/tasks/{quote(self.job or '', safe='')}"

    @property
    def address(self) -> str:
        if self.task:
            return f"{self.state}/stream"
        topics = [("topic", topic if ":" in topic else f"session:{topic}") for topic in self.topics]
        return f"{self._base}/api/stream?" + urlencode([*topics, ("from", self.since), ("until", "end" if self.until_end else "never")])


def _topic(text: str) -> tuple[str, str]:
    kind, colon, id = text.partition(":")
    if not colon:
        return "session", text
    if kind not in KINDS or not id:
        raise ConfigurationError(f"{text} is no topic: {', '.join(f'{kind}:<id>' for kind in KINDS)}")
    return kind, id


def tail(target: Target, as_json: bool) -> int:
    """Returns the exit status: 0, or where there is an end its outcome."""
    picture = None if as_json or not _terminal() else Picture(Console(highlight=False))
    # Drawing each of many small changes would only fall behind.
    address = target.address + ("&batch=50" if picture and not target.task else "")
    source = EventSource(address, target.after, picture.note if picture else _note, target.token)
    show: Callable[[Frame], None] = picture.show if picture else _json if as_json else _line
    try:
        with picture or nullcontext():
            return _follow(source, show, target)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it ends
        return 1


def _terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _follow(source: EventSource, show: Callable[[Frame], None], target: Target) -> int:
    status = None
    for frame in source:
        show(frame)
        outcome = OUTCOMES.get(_ended(frame, target.task is not None))
        status = status if outcome is None else outcome
        if target.until_end and (frame.type == "end" or (outcome is not None and (target.task or frame.type == "snapshot"))):
            break
    if not target.until_end:
        return 0
    if status is None and target.job:  # it was told before the cursor
        job = source.ask(target.state)
        status = OUTCOMES.get(job["status"] if job else "deleted")
    return status or 0


def _ended(frame: Frame, of_a_task: bool) -> str:
    """As what a job or request ended, if this says so."""
    family, _, last = frame.type.rpartition(".")
    if frame.type in ("job.deleted", "request.deleted") or (of_a_task and not family):
        return last
    if family in JOB_FAMILIES or frame.type in ("request_update", "snapshot"):
        row = frame.payload.get("job") or frame.payload.get("run") or frame.payload
        return str(row.get("status", last))
    return ""


def _json(frame: Frame) -> None:
    print(_plain(json.dumps({"cursor": frame.cursor, "type": frame.type, "data": frame.payload}, ensure_ascii=False)), flush=True)


def _line(frame: Frame) -> None:
    print(f"{datetime.now():%H:%M:%S} {_plain(frame.type):24} {_plain(frame.data)}", flush=True)


def _note(text: str) -> None:
    print(_plain(text), file=sys.stderr, flush=True)


def _plain(text: str) -> str:
    return _ODD.sub(lambda odd: f"\\u{ord(odd[0]):04x}", text)
