"""`rowcast tail`, run as a program against real hubs: what it prints, what a terminal shows, how it ends."""

import asyncio
import fcntl
import json
import os
import re
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyte
import pytest
from rowcast.picture import Message, harmless
from rowcast.tail import Target

from .rig import SECRET, Hub, HubProcess, Writer, token, until

ENDS = {"completed": 0, "failed": 1, "cancelled": 3}
_OF_OURS = ("NO_COLOR", "COLUMNS", "LINES")  # the terminal says how large it is
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k not in _OF_OURS}, "PYTHONUNBUFFERED": "1", "TERM": "xterm-256color"}


@dataclass
class Tail:
    """The program with pipes."""

    started: ClassVar[list["Tail"]] = []
    process: asyncio.subprocess.Process
    out: str = ""
    err: str = ""
    reading: list["asyncio.Task[None]"] = field(default_factory=list)

    @classmethod
    async def start(cls, *arguments: str, **environment: str) -> "Tail":
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rowcast.cli", "tail", *arguments, stdout=pipe, stderr=pipe, env={**ENVIRONMENT, **environment}
        )
        tail = cls(process)
        cls.started.append(tail)
        tail.reading = [asyncio.create_task(tail.read("out", process.stdout)), asyncio.create_task(tail.read("err", process.stderr))]
        return tail

    async def read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream
        async for line in stream:
            setattr(self, name, getattr(self, name) + line.decode())

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of --json: the whole lines."""
        return [json.loads(line) for line in self.out.split("\n")[:-1]]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    async def end(self) -> int:
        async with asyncio.timeout(20):
            await asyncio.gather(*self.reading)
            return await self.process.wait()

    @classmethod
    async def end_all(cls) -> None:
        """Those that a test left running."""
        for tail in cls.started:
            if tail.process.returncode is None:
                tail.process.kill()
            await tail.end()
        cls.started.clear()

    async def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return await self.end()


class Terminal:
    """The program in a terminal of 60 columns and 16 lines."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 16, 60, 0, 0))
        self.screen = pyte.Screen(60, 16)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.arguments, self.slave = arguments, slave

    async def __aenter__(self) -> "Terminal":
        asyncio.get_running_loop().add_reader(self.master, self._read)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rowcast.cli", "tail", *self.arguments,
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(self.slave)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            asyncio.get_running_loop().remove_reader(self.master)
            return
        self.raw += data
        self.stream.feed(data)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    async def shows(self, *patterns: str) -> None:
        try:
            await until(lambda: all(re.search(pattern, self.text) for pattern in patterns))
        except AssertionError:
            raise AssertionError(f"{patterns} are not all in\n{self.text}") from None

    async def end(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@pytest.fixture(autouse=True)
def no_tail_left(runner: asyncio.Runner) -> Iterator[None]:
    yield
    runner.run(Tail.end_all())


async def job(writer: Writer, **columns: Any) -> Any:
    return await writer.insert("job", **{"kind": "ingest", "name": "report.pdf", "status": "running", **columns})


async def test_it_follows_through_a_restart(database: str, writer: Writer) -> None:
    session = await writer.session()
    async with HubProcess(database) as hub:
        port = int(hub.url.rpartition(":")[2])
        tail = await Tail.start(session, "--url", hub.url, "--json")
        await until(lambda: "caught_up" in tail.types())
        await writer.message(session, "one")
        await until(lambda: "agent.message.appended" in tail.types())
        hub.send(signal.SIGKILL)
        await hub.wait()
    await writer.message(session, "two")
    async with HubProcess(database, {"port": port}):
        await until(lambda: tail.types().count("agent.message.appended") == 2)
        assert await tail.interrupt() == 130
    texts = [event["data"]["message"]["text"] for event in tail.events if event["type"] == "agent.message.appended"]
    assert texts == ["one", "two"]
    notes = tail.err.splitlines()
    assert len(notes) == 2
    assert notes[0].startswith("no connection")
    assert notes[1] == "connected again"


async def test_several_topics(hub: Hub, writer: Writer) -> None:
    session, project = await writer.session(), await writer.project()
    tail = await Tail.start(f"session:{session}", f"project:{project}", "--url", hub.url, "--json")
    await until(lambda: "caught_up" in tail.types())
    await writer.message(session, "here")
    await job(writer, project_id=project)
    await until(lambda: {"agent.message.appended", "ingest.job.created"} <= set(tail.types()))
    assert await tail.interrupt() == 130


@pytest.mark.parametrize(("status", "code"), ENDS.items())
async def test_a_job_ends_it_with_its_outcome(hub: Hub, writer: Writer, status: str, code: int) -> None:
    id = await job(writer)
    tail = await Tail.start(f"job:{id}", "--url", hub.url, "--json")
    await until(lambda: "caught_up" in tail.types())
    await writer.update("job", id, progress=50)
    await writer.update("job", id, status=status)
    assert await tail.end() == code
    assert tail.types()[-3:] == ["ingest.job.updated", f"ingest.job.{status}", "end"]
    late = await Tail.start(f"job:{id}", "--url", hub.url, "--json")
    assert await late.end() == code
    assert late.types()[-1] == "snapshot"
    again = await Tail.start(f"job:{id}", "--after", tail.events[-1]["cursor"], "--url", hub.url, "--json")
    assert await again.end() == code
    assert again.out == ""


@pytest.mark.parametrize(("status", "code"), ENDS.items())
async def test_a_task_ends_it_with_its_outcome(hub: Hub, writer: Writer, status: str, code: int) -> None:
    id = await job(writer, kind="task")
    tail = await Tail.start(f"task:{id}", "--url", hub.url, "--json")
    await until(lambda: tail.types())
    await writer.update("job", id, progress=50)
    await writer.update("job", id, status=status)
    assert await tail.end() == code
    assert tail.types() == ["progress", "progress", status]
    assert tail.err == ""
    again = await Tail.start(f"task:{id}", "--after", tail.events[-1]["cursor"], "--url", hub.url, "--json")
    assert await again.end() == code
    assert again.out + again.err == ""
    await writer.db.execute("DELETE FROM job")
    gone = await Tail.start(f"task:{id}", "--after", tail.events[-1]["cursor"], "--url", hub.url, "--json")
    assert await gone.end() == 1


async def test_a_task_that_is_not_there(hub: Hub) -> None:
    tail = await Tail.start("task:00000000-0000-4000-8000-00000000dead", "--url", hub.url)
    assert await tail.end() == 1
    assert "Task not found" in tail.out
    assert len(tail.out.splitlines()) == 1


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("error", 1)])
async def test_a_request_ends_it_with_its_outcome(hub: Hub, writer: Writer, status: str, code: int) -> None:
    id = await writer.insert("request", session_id=await writer.session(), status=status)
    tail = await Tail.start(f"request:{id}", "--url", hub.url, "--json")
    assert await tail.end() == code
    assert tail.types()[-1] == "end"


async def test_a_session_may_end_it_too_and_a_job_need_not(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    id = await job(writer, session_id=session)
    ending = await Tail.start(session, "--until-end", "--url", hub.url, "--json")
    staying = await Tail.start(f"job:{id}", "--no-until-end", "--url", hub.url, "--json")
    await until(lambda: "caught_up" in ending.types() and "caught_up" in staying.types())
    await writer.update("job", id, status="cancelled")
    assert await ending.end() == 3
    await until(lambda: "ingest.job.cancelled" in staying.types())
    await writer.update("job", id, message="after all")
    await until(lambda: "ingest.job.updated" in staying.types())
    assert await staying.interrupt() == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--after", "garbage"], "Last-Event-ID"),
        (["nothing:x"], "nothing:x is no topic"),
        (["session:"], "is no topic"),
        (["task:1", "task:2"], "followed alone"),
        (["x" * 129], "128"),
        (["x", "--url", "nowhere"], "no address of a hub"),
        (["x", "--url", "ftp://127.0.0.1"], "no address of a hub"),
        (["project:1", "--from", "snapshot"], "snapshot"),
    ],
)
async def test_an_error_is_one_line(hub: Hub, arguments: list[str], said: str) -> None:
    tail = await Tail.start("--url", hub.url, *arguments)
    assert await tail.end() == 2
    assert said in tail.err
    assert len(tail.err.splitlines()) == 1
    assert tail.out == ""


async def test_with_a_token(database: str, writer: Writer) -> None:
    async with Hub(database, key=SECRET) as hub:
        session = await writer.session()
        await writer.db.execute("UPDATE session SET owner_id = 'alice'")
        job = await writer.insert("job", session_id=session, status="completed")
        tail = await Tail.start(session, "--url", hub.url, "--json", ROWCAST_TOKEN=token("alice"))
        await until(lambda: "caught_up" in tail.types())
        task = await Tail.start(f"job:{job}", "--url", hub.url, "--token", token("alice"))
        assert await task.end() == 0
        for given, said in (
            ({}, "the hub answers 401: there is no token: Authorization: Bearer <token>, or the cookie"),
            ({"ROWCAST_TOKEN": "x"}, "the hub answers 401: the token is no JSON Web Token"),
            ({"ROWCAST_TOKEN": token("bob")}, f"the hub answers 403: session:{session}: not allowed, or not there"),
            ({"ROWCAST_TOKEN": "x\ny"}, "the token is none: it has characters that no token has"),
        ):
            refused = await Tail.start(session, "--url", hub.url, **given)
            assert await refused.end() == 2
            assert refused.err == f"rowcast: {said}\n"
        await writer.db.execute("SELECT rowcast.revoke('alice')")
        assert await tail.end() == 2
        assert tail.err.splitlines()[-1] == "rowcast: the hub answers 401: the token is revoked"


async def test_what_is_no_hub(hub: Hub) -> None:
    tail = await Tail.start("x", "--url", hub.url + "/nothing/here")
    assert await tail.end() == 2
    assert "404" in tail.err
    assert len(tail.err.splitlines()) == 1


async def test_a_reader_that_goes_away(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rowcast.cli", "tail", session, "--url", hub.url), stdout=write, stderr=asyncio.subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert err == b""


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J [bold]mark[/bold] \u202eturned\r\nnext"


async def test_without_a_terminal_there_are_plain_lines(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    tail = await Tail.start(session, "--url", hub.url)
    await until(lambda: "caught_up" in tail.out)
    id = await writer.message(session, HOSTILE)
    await writer.update("message", id, status="completed")
    await job(writer, session_id=session, name=HOSTILE)
    await until(lambda: "ingest.job.created" in tail.out)
    assert await tail.interrupt() == 130
    assert [line.split()[1] for line in tail.out.splitlines()] == [
        "connected", "caught_up", "agent.message.appended", "message.completed", "ingest.job.created",
    ]  # fmt: skip
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", tail.out)
    assert "[bold]mark[/bold]" in tail.out


async def test_json_holds_what_was_sent(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    tail = await Tail.start(session, "--url", hub.url, "--json")
    await until(lambda: "caught_up" in tail.types())
    await writer.message(session, HOSTILE)
    await until(lambda: "agent.message.appended" in tail.types())
    assert await tail.interrupt() == 130
    assert tail.events[-1]["data"]["message"]["text"] == HOSTILE
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", tail.out)


async def test_text_grows_in_place(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with Terminal(session, "--url", hub.url) as terminal:
        await terminal.shows("caught_up")
        id = await writer.message(session, "Hello 🎯")
        await terminal.shows("^assistant: Hello 🎯$".replace("^", "(?m)^"))
        for piece in (", wor", "ld, 用中文"):
            await writer.db.execute("UPDATE message SET text = text || $2 WHERE id = $1", id, piece)
        await terminal.shows("assistant: Hello 🎯 ?, world, 用")
        await writer.db.execute("UPDATE message SET text = text || ' it ends', status = 'completed' WHERE id = $1", id)
        await writer.insert("request", session_id=session)
        await terminal.shows("it ends\n.*request_update")
        assert terminal.text.count("assistant:") == 1
        assert "delta" not in terminal.text


async def test_a_long_text_shows_its_end_until_it_is_whole(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with Terminal(session, "--url", hub.url) as terminal:
        await terminal.shows("caught_up")
        id = await writer.message(session, "\n".join(f"line {n}" for n in range(100)))
        await terminal.shows("line 99")
        assert "line 80" not in terminal.text
        for n in range(100, 105):
            await writer.db.execute("UPDATE message SET text = text || $2 WHERE id = $1", id, f"\nline {n}")
            await terminal.shows(f"line {n}$")
        assert terminal.text.count("line 99") == 1
        await writer.update("message", id, status="completed")
        await writer.insert("request", session_id=session)
        await terminal.shows("line 104\n.*request_update")
    assert terminal.raw.count(b"line 3\r\n") == 1  # all of it, once


async def test_a_job_is_a_bar(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with Terminal(session, "--url", hub.url) as terminal:
        await terminal.shows("caught_up")
        first = await job(writer, session_id=session, progress=25, stage="reading")
        second = await job(writer, session_id=session, name="other.pdf", progress=50)
        await terminal.shows(r"report.pdf ━+.* 25% reading\nother.pdf +━+.* 50% running")
        await writer.update("job", first, progress=75, message="3 of 4 pages")
        await terminal.shows(r"report.pdf ━+.* 75% 3 of 4 pages")
        await writer.update("job", second, status="failed", error="no such file")
        await terminal.shows(r"other.pdf .* failed\nno such file\nreport.pdf ━+.* 75%")
        await writer.update("job", first, progress=100, status="completed")
        await terminal.shows(r"no such file\nreport.pdf ━+ 100% completed$")
        assert terminal.text.count("report.pdf") == 1


async def test_a_task_is_a_bar_that_ends(hub: Hub, writer: Writer) -> None:
    id = await job(writer, kind="task", name="index", message="starting")
    async with Terminal(f"task:{id}", "--url", hub.url) as terminal:
        await terminal.shows("  0% starting")
        await writer.update("job", id, progress=60, message="counting")
        await terminal.shows(" 60% counting")
        await writer.update("job", id, progress=100, status="completed")
        assert await terminal.end() == 0
        await terminal.shows(r"index ━+ 100% completed$")
        assert len(terminal.text.splitlines()) == 1


async def test_ctrl_c_leaves_the_terminal_as_it_was(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with Terminal(session, "--url", hub.url) as terminal:
        await terminal.shows("caught_up")
        await writer.message(session, "unfinished")
        await terminal.shows("assistant: unfinished")
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.end() == 130
        assert not terminal.screen.cursor.hidden
        assert "assistant: unfinished" in terminal.text
        assert "Traceback" not in terminal.text


async def test_a_terminal_obeys_no_text_of_others(hub: Hub, writer: Writer) -> None:
    session = await writer.session()
    async with Terminal(session, "--url", hub.url) as terminal:
        await terminal.shows("caught_up")
        await writer.message(session, HOSTILE, status="completed", role=HOSTILE)
        await writer.message(session, HOSTILE)
        await job(writer, session_id=session, name=HOSTILE, message=HOSTILE)
        await job(writer, session_id=session, name="last", status="failed", error=HOSTILE)
        await terminal.shows("last .* failed", r"�\[31mred�\]0;title�", r"\[bold\]mark\[/bold\]")
        assert terminal.screen.title == ""
    for code in (b"\x1b[31mred", b"\x07", b"\x1b]", "\x9b".encode(), "\u202e".encode()):
        assert code not in terminal.raw


def test_texts_join_by_code_points() -> None:
    message = Message("a🎯")
    message.grow(2, "b")
    message.grow(2, "bc")  # again, and more
    assert message.text == "a🎯bc"
    message.grow(9, "later")
    assert (message.start, message.text) == (9, "later")
    assert message.shown().plain == "message: …later"
    message.grow(0, "from the start")
    assert message.text == "from the start"


def test_harmless() -> None:
    assert harmless("tab\tline\nnext\r\nlast") == "tab\tline\nnext\nlast"
    assert harmless("\x1b\x9b\x7f\u202e\ud800\r") == "�" * 6


def test_topics_become_an_address() -> None:
    def address(*topics: str, **more: Any) -> str:
        return Target("http://hub/", list(topics), **more).address

    assert address("a b") == "http://hub/api/stream?topic=session%3Aa+b&from=recent&until=never"
    assert address("user:me", "table:x", since="now") == "http://hub/api/stream?topic=user%3Ame&topic=table%3Ax&from=now&until=never"
    assert address("job:1") == "http://hub/api/stream?topic=job%3A1&from=snapshot&until=end"
    assert address("task:1/2") == "http://hub/api/v1/tasks/1%2F2/stream"
