"""The writer over Directus's REST interface: against a stand-in, and where TEST_DIRECTUS names a folder that has
node_modules/directus, against a real one too."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from rowcast_writer import Lost, NotSaved, Refused, WriterError
from rowcast_writer.directus import DirectusMessage, DirectusMessages, items, rest
from websockets.asyncio.client import connect

from .conftest import at
from .directus_stand_in import ADMIN, COLLECTIONS, WRITER, Fault, StandIn, definition
from .rig import Hub, on_database, until
from .rig import Writer as Rows

SESSION = "session-1"
SORRY = "Sorry, that did not work."


def call(url: str, method: str, path: str, body: Any = None, token: str = ADMIN, content: bytes | None = None) -> tuple[int, Any]:
    """One request of somebody else."""
    data = content if content is not None else None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": token if " " in token else f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class RealDirectus:
    """Directus in a process of its own, on a database of its own that has Rowcast's tables too."""

    def __init__(self, program: Path, database: str, folder: Path) -> None:
        self.database = database
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        self._command = [str(program)]
        for name in ("uploads", "extensions"):
            (folder / name).mkdir()
        (folder / "package.json").write_text('{"name": "of-a-test"}')
        given = {
            "DB_CLIENT": "pg",
            "DB_CONNECTION_STRING": database,
            "SECRET": "of-a-test",
            "ADMIN_EMAIL": "admin@example.com",
            "ADMIN_PASSWORD": "of-a-test",
            "ADMIN_TOKEN": ADMIN,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WEBSOCKETS_ENABLED": "true",
            "TELEMETRY": "false",
            # A busy machine is not what is tested.
            "PRESSURE_LIMITER_ENABLED": "false",
        }
        self._options: dict[str, Any] = {"cwd": folder, "env": {**os.environ, **given}, "stdin": subprocess.DEVNULL}

    def __enter__(self) -> "RealDirectus":
        with self._log.open("wb") as log:
            subprocess.run([*self._command, "bootstrap"], check=True, timeout=120, stdout=log, stderr=log, **self._options)
            self._process = subprocess.Popen([*self._command, "start"], stdout=log, stderr=log, **self._options)
        deadline = time.monotonic() + 60
        while not self._is_healthy():
            assert time.monotonic() < deadline, self._log.read_text()
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        self._prepare()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _is_healthy(self) -> bool:
        with suppress(OSError):
            return call(self.url, "GET", "/server/health")[0] == 200
        return False

    def _prepare(self) -> None:
        """The collections, and a user who may create and update items, and read none."""
        for collection in COLLECTIONS:
            self.call("POST", "/collections", definition(collection))
        self.call("PATCH", "/collections/message", {"meta": {}})
        role = self.call("POST", "/roles", {"name": "writer"})["data"]["id"]
        self.call("POST", "/users", {"email": "writer@example.com", "password": "of-a-test", "role": role, "token": WRITER})
        for collection in COLLECTIONS:
            for action in ("create", "update"):
                allowed = {"role": role, "collection": collection, "action": action, "fields": ["*"], "permissions": {}, "validation": {}}
                self.call("POST", "/permissions", allowed)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = call(self.url, method, path, body)
        assert status in (200, 204), (path, answer)
        return answer


@dataclass
class Server:
    """Either kind, and what this test has asked of it."""

    url: str
    stand_in: StandIn | None = None
    sent: list[tuple[str, Any]] = field(default_factory=list)
    """Method and body of each request."""
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def messages(self, token: str = ADMIN, **options: Any) -> DirectusMessages:
        async def note(request: httpx.Request) -> None:
            self.sent.append((request.method, json.loads(request.content) if request.content else None))

        client = httpx.AsyncClient(timeout=None, event_hooks={"request": [note]})
        self.clients.append(client)
        return DirectusMessages(self.url, token, **{"interval": 0.05, "patience": 15.0, "user_text": SORRY, "client": client, **options})

    def of(self, method: str) -> list[Any]:
        return [body for sent, body in self.sent if sent == method]

    def item(self, id: Any, collection: str = "messages") -> dict[str, Any]:
        status, answer = call(self.url, "GET", f"/items/{collection}/{id}")
        assert status == 200, answer
        item: dict[str, Any] = answer["data"]
        return item

    async def until_text(self, id: Any, text: str) -> None:
        async def get() -> str:
            return (await asyncio.to_thread(self.item, id))["messageText"]  # type: ignore[no-any-return]

        deadline = time.monotonic() + 10
        while await get() != text:
            assert time.monotonic() < deadline, await get()
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def real(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDirectus]:
    folder = os.environ.get("TEST_DIRECTUS")
    if not folder:
        pytest.skip("TEST_DIRECTUS names no folder with node_modules/directus")
    if shutil.which("node") is None:
        pytest.skip("Directus needs node")
    name = f"rowcast_directus_{os.getpid()}"
    asyncio.run(on_database(server_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        program = Path(folder) / "node_modules" / ".bin" / "directus"
        with RealDirectus(program, at(server_url, name), tmp_path_factory.mktemp("directus")) as directus:
            yield directus
    finally:
        asyncio.run(on_database(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture(params=["stand-in", "real"])
def server(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Server]:
    if request.param == "real":
        server = Server(request.getfixturevalue("real").url)
    else:
        stand_in = request.getfixturevalue("stand_in")
        server = Server(stand_in.url, stand_in)
    yield server
    for client in server.clients:
        runner.run(client.aclose())


@pytest.fixture
def failing(stand_in: StandIn, runner: asyncio.Runner) -> Iterator[Server]:
    """The one that fails on demand."""
    server = Server(stand_in.url, stand_in)
    yield server
    for client in server.clients:
        runner.run(client.aclose())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "backoff", lambda failures: 0.02)


# On both: how a message looks


async def test_a_message_is_created_grows_and_completes(server: Server) -> None:
    async with server.messages() as directus, directus.message(SESSION, metadata={"model": "m"}, trace_id="trace-1") as message:
        created = server.item(message.id)
        assert created == {
            "id": message.id,
            "session_id": SESSION,
            "role": "assistant",
            "status": "streaming",
            "messageText": "",
            "metadata": {"source": "rowcast-writer", "model": "m", "trace_id": "trace-1"},
        }
        await message.write("Hello")
        await server.until_text(message.id, "Hello")
        await message.write(", world")
        await server.until_text(message.id, "Hello, world")
        assert server.item(message.id) == {**created, "messageText": "Hello, world"}
        await message.complete(metadata={"quality_score": 0.5, "referenced_ids": ["a"]})
    ended = server.item(message.id)
    assert ended["status"] == "completed"
    assert ended["messageText"] == "Hello, world"
    assert ended["metadata"] == {**created["metadata"], "quality_score": 0.5, "referenced_ids": ["a"]}
    assert message.result == {"assistant_message_id": message.id, "trace_id": "trace-1"}
    assert UUID(str(message.id))
    assert [method for method, _ in server.sent] == ["POST", "PATCH", "PATCH", "PATCH"]


@pytest.mark.parametrize("interval", [0.2, 0.05])
async def test_ten_chunks_within_100_ms_give_fewer_than_five_patches(server: Server, interval: float) -> None:
    chunks = [f"chunk {n} " for n in range(10)]
    async with server.messages(interval=interval) as directus, directus.message(SESSION) as message:
        for chunk in chunks:
            await message.write(chunk)
            await asyncio.sleep(0.01)
    patches = server.of("PATCH")
    assert len(patches) < 5
    assert patches[0] == {"messageText": chunks[0]}, "the first chunk goes at once"
    assert patches[-1]["messageText"] == server.item(message.id)["messageText"] == "".join(chunks)
    assert patches[-1].keys() == {"messageText", "status", "metadata"}


async def test_text_comes_in_the_place_of_an_acknowledgement(server: Server) -> None:
    async with server.messages() as directus, directus.message(SESSION) as message:
        await message.acknowledge("One moment")
        await server.until_text(message.id, "One moment")
        await message.progress("Reading")
        await server.until_text(message.id, "Reading")
        await message.write("Text")
        await message.progress("too late")
        await server.until_text(message.id, "Text")
    assert server.item(message.id)["messageText"] == "Text"


async def test_only_real_text_is_there_at_the_end(server: Server) -> None:
    async with server.messages() as directus:
        async with directus.message(SESSION) as silent:
            await silent.acknowledge("One moment")
        async with directus.message(SESSION) as other:
            await other.write("draft")
            await other.complete("The whole text")
        assert server.item(silent.id)["messageText"] == ""
        assert server.item(other.id)["messageText"] == "The whole text"


async def test_nothing_is_sent_where_nothing_changed(server: Server) -> None:
    async with server.messages() as directus, directus.message(SESSION) as message:
        await message.write("")
        await message.write("same")
        await server.until_text(message.id, "same")
        for _ in range(3):
            await message.write("")
            await asyncio.sleep(0.06)
        assert server.of("PATCH") == [{"messageText": "same"}]


async def test_an_exception_completes_it_with_what_a_user_may_read(server: Server) -> None:
    async with server.messages() as directus:
        with pytest.raises(KeyError):
            async with directus.message(SESSION) as message:
                await message.write("Half of the ans")
                raise KeyError
        with pytest.raises(KeyError):
            async with directus.message(SESSION) as silent:
                await silent.acknowledge("One moment")
                raise KeyError
        async with directus.message(SESSION) as told:
            await told.fail("The model is busy.")
    ended = server.item(message.id)
    assert (ended["status"], ended["messageText"]) == ("completed", f"Half of the ans\n\n{SORRY}")
    assert ended["metadata"] == {"source": "rowcast-writer", "trace_id": message.trace_id, "error": True}
    assert server.item(silent.id)["messageText"] == SORRY
    assert server.item(told.id)["messageText"] == "The model is busy."
    assert server.item(told.id)["metadata"]["error"] is True


async def test_the_first_end_counts(server: Server) -> None:
    async with server.messages() as directus:
        message = await directus.message(SESSION).start()
        await message.complete("done")
        await message.fail()
        await message.complete("other")
        with pytest.raises(WriterError, match="has ended"):
            await message.write("more")
    assert server.item(message.id)["messageText"] == "done"
    assert "error" not in server.item(message.id)["metadata"]


async def test_what_no_text_can_hold_is_left_out(server: Server) -> None:
    async with server.messages() as directus, directus.message(SESSION, metadata={"a\0": "b\0\ud800"}) as message:
        await message.write("a\0b\ud83d")
        await message.write("\ude00c\udc00")
        await message.write("é„𝄞")
    assert server.item(message.id)["messageText"] == "ab😀cé„𝄞"
    assert server.item(message.id)["metadata"]["a"] == "b"


async def test_names_of_the_collection(server: Server) -> None:
    fields = {"text": "content", "trace_id": "trace", "metadata": None, "role": None}
    async with server.messages(collection="numbered", fields=fields) as directus, directus.message(SESSION) as message:
        await message.write("Hello")
    item = server.item(message.id, "numbered")
    assert (item["content"], item["trace"], item["metadata"], item["role"]) == ("Hello", message.trace_id, None, None)


@pytest.mark.parametrize("told", [{}, {"id": None}])
async def test_where_directus_gives_numbers(server: Server, told: dict[str, None]) -> None:
    async with server.messages(collection="numbered", fields={"text": "content", **told}) as directus:
        async with directus.message(SESSION) as first:
            assert type(first.id) is int
            await first.write("first")
        async with directus.message(SESSION) as second:
            await second.write("second")
    assert first.result["assistant_message_id"] == first.id
    assert server.item(first.id, "numbered")["content"] == "first"
    assert server.item(second.id, "numbered")["status"] == "completed"
    assert len(server.of("POST")) == (2 if told else 3), "it is found out once"


async def test_an_id_that_is_given(server: Server) -> None:
    id = uuid4()
    async with server.messages() as directus:
        async with directus.message(SESSION, id=id) as message:
            await message.write("Hello")
        assert server.item(id)["messageText"] == "Hello"
        with pytest.raises(Refused, match="has to be unique"):
            await directus.message(SESSION, id=id).start()
    assert message.id == str(id)
    assert server.item(id)["messageText"] == "Hello"


async def test_two_messages_at_once(server: Server) -> None:
    async def one(directus: DirectusMessages, name: str) -> DirectusMessage:
        async with directus.message(SESSION) as message:
            for n in range(20):
                await message.write(f"{name}{n} ")
                await asyncio.sleep(0.01)
        return message

    async with server.messages() as directus:
        for name, message in zip("abc", await asyncio.gather(*(one(directus, name) for name in "abc")), strict=True):
            assert server.item(message.id)["messageText"] == "".join(f"{name}{n} " for n in range(20))


# On both: what Directus refuses


@pytest.mark.parametrize(
    ("options", "session", "code", "message"),
    [
        ({"token": "wrong"}, SESSION, "401", "Invalid user credentials."),
        ({"collection": "nothing"}, SESSION, "403", "You don't have permission to access this."),
        ({"fields": {"session_id": None}}, SESSION, "400", 'Validation failed for field "session_id". Value is required.'),
        ({}, "x" * 300, "400", 'Value in collection "messages" is too long.'),
    ],
    ids=["token", "collection", "field", "value"],
)
async def test_what_directus_refuses_is_raised_at_once(server: Server, options: Any, session: str, code: str, message: str) -> None:
    async with server.messages(**options) as directus:
        with pytest.raises(Refused) as caught:
            await directus.message(session).start()
        assert message in str(caught.value)
        assert caught.value.code == code
        assert len(server.of("POST")) == 1
        assert not directus.open


async def test_a_field_that_is_not_there_is_noticed(server: Server) -> None:
    """Directus ignores unknown fields: every text would be lost without a word."""
    async with server.messages(fields={"text": "mesageText"}) as directus:
        with pytest.raises(Refused, match="messages has no mesageText that this token may read"):
            await directus.message(SESSION, id=(id := str(uuid4()))).start()
    assert server.item(id)["status"] == "completed"


async def test_a_token_that_may_only_write(server: Server) -> None:
    async with server.messages(WRITER) as directus:
        async with directus.message(SESSION) as message:
            await message.write("Hello")
            await server.until_text(message.id, "Hello")
            await message.write(" there")
        assert server.item(message.id)["messageText"] == "Hello there"
        numbered = server.messages(WRITER, collection="numbered", fields={"id": None, "text": "content"})
        with pytest.raises(Refused, match="may not read the items"):
            await numbered.message(SESSION).start()


@pytest.mark.parametrize("token", [ADMIN, WRITER])
async def test_a_message_that_is_deleted(server: Server, token: str, real_or_not: Callable[[Server, Any], None]) -> None:
    async with server.messages(token) as directus:
        message = await directus.message(SESSION).start()
        real_or_not(server, message.id)
        await message.write("Hello")
        await until(lambda: message.error)
        with pytest.raises(Lost if token == ADMIN else Refused, match="it was deleted" if token == ADMIN else "permission"):
            await message.write("more")
        assert len(server.of("PATCH")) == 1


@pytest.fixture
def real_or_not() -> Callable[[Server, Any], None]:
    def delete(server: Server, id: Any) -> None:
        if server.stand_in:
            del server.stand_in.items["messages"][id]
        else:
            assert call(server.url, "DELETE", f"/items/messages/{id}")[0] == 204

    return delete


async def test_a_text_that_is_too_long_for_directus(server: Server) -> None:
    async with server.messages() as directus:
        with pytest.raises(Refused, match="request entity too large"):
            async with directus.message(SESSION) as message:
                await message.write("Hello")
                await server.until_text(message.id, "Hello")
                await message.write("x" * 1_048_576)
        ended = server.item(message.id)
        assert (ended["status"], ended["messageText"], ended["metadata"]["error"]) == ("completed", "Hello", True)
        plain = await directus.message(SESSION).start()
        with pytest.raises(Refused, match="request entity too large"):
            await plain.complete("x" * 1_048_576)
        assert server.item(plain.id)["status"] == "completed"


# On both: nothing is left streaming


async def test_a_task_that_is_cancelled(server: Server) -> None:
    async def write(directus: DirectusMessages, started: asyncio.Future[DirectusMessage]) -> None:
        async with directus.message(SESSION) as message:
            started.set_result(message)
            while True:
                await message.write("more ")
                await asyncio.sleep(0.01)

    async with server.messages() as directus:
        started: asyncio.Future[DirectusMessage] = asyncio.Future()
        task = asyncio.create_task(write(directus, started))
        message = await started
        await until(lambda: len(server.of("PATCH")) > 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended = server.item(message.id)
        assert ended["status"] == "completed"
        assert ended["metadata"]["error"] is True
        assert ended["messageText"].endswith(f"more \n\n{SORRY}")


async def test_what_is_still_open_is_failed_at_the_end(server: Server) -> None:
    async with server.messages() as directus:
        message = await directus.message(SESSION).start()
        await message.write("Hello")
    assert server.item(message.id)["status"] == "completed"
    assert server.item(message.id)["messageText"] == f"Hello\n\n{SORRY}"
    assert repr(directus).endswith("0 open, closed>")
    with pytest.raises(WriterError, match="closed"):
        await directus.message(SESSION).start()


ENDING = """
import asyncio, sys
from rowcast_writer.directus import DirectusMessages

async def stream(directus):
    async with directus.message("session-1", id=sys.argv[3]) as message:
        while True:
            await message.write("more ")
            await asyncio.sleep(0.01)

async def main():
    directus = DirectusMessages(sys.argv[1], sys.argv[2], interval=0.05, user_text="Sorry.")
    task = asyncio.create_task(stream(directus))
    await asyncio.sleep(0.5)
    # The program ends, and asyncio.run() cancels all tasks.

asyncio.run(main())
"""


@pytest.mark.parametrize("slow", [False, True], ids=["idle", "under way"])
async def test_a_program_that_ends(server: Server, slow: bool) -> None:
    if slow and server.stand_in:
        server.stand_in.fail(Fault(before=1.0))
    elif slow:
        pytest.skip("a real one is not slow on demand")
    id = str(uuid4())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", ENDING, server.url, ADMIN, id, stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    ended = server.item(id)
    assert ended["status"] == "completed"
    assert ended["metadata"]["error"] is True
    assert ended["messageText"].endswith("more \n\nSorry.")
    if server.stand_in:
        assert server.stand_in.busiest == 1
        assert all(seen.answered == 200 for seen in server.stand_in.seen if seen.path.endswith(id)), "none was cut"


# On the stand-in: what goes wrong on the way


TROUBLES = {
    "503": Fault(status=503),
    "502 of a proxy": Fault(status=502, body=b"<html>Bad Gateway</html>"),
    "500": Fault(status=500),
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "reset": Fault(cut="before"),
    "answer lost": Fault(cut="after"),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_it_tries_again(failing: Server, trouble: Fault) -> None:
    assert failing.stand_in
    failing.stand_in.fail(Fault(**{**vars(trouble), "method": "POST"}))
    async with failing.messages() as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(trouble, times=3)
        await message.write("Hello")
        await failing.until_text(message.id, "Hello")
        failing.stand_in.fail(trouble, times=3)
        await message.write(", world")
    assert not failing.stand_in.faults
    assert list(failing.stand_in.items["messages"]) == [message.id], "it is created once"
    ended = failing.stand_in.item(message.id)
    assert (ended["messageText"], ended["status"]) == ("Hello, world", "completed")
    assert "error" not in ended["metadata"]


async def test_the_answer_to_the_create_is_lost(failing: Server) -> None:
    """It looks before it creates again; and where the first is still under way, that one counts."""
    assert failing.stand_in
    failing.stand_in.fail(Fault("POST", cut="after"))
    async with failing.messages() as directus:
        await directus.message(SESSION).start()
        assert [seen.method for seen in failing.stand_in.seen] == ["POST", "GET"]
        failing.stand_in.seen.clear()
        failing.stand_in.fail(Fault("POST", cut="after"), Fault("GET", status=403))
        message = await directus.message(SESSION).start()
        assert [(seen.method, seen.answered) for seen in failing.stand_in.seen] == [("POST", None), ("GET", 403), ("POST", 400)]
        await message.complete("Hello")
    assert failing.stand_in.item(message.id)["messageText"] == "Hello"


async def test_it_waits_as_long_as_directus_asks(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages() as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(Fault(status=429, headers={"Retry-After": "1"}))
        await message.write("Hello")
    first, second, *_ = failing.stand_in.of("PATCH")
    assert second.at - first.at >= 1.0


def test_what_retry_after_says() -> None:
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert [rest._retry_after(header) for header in ("", "soon", "0", "7", "-1")] == [0, 0, 0, 7, 0]
    assert 50 < rest._retry_after(in_a_minute) <= 60
    assert rest._retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0


async def test_a_slow_directus_gets_one_patch_at_a_time(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages(interval=0.01) as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(Fault(after=0.2), times=4)
        for n in range(40):
            await message.write(f"{n} ")
            await asyncio.sleep(0.01)
    assert failing.stand_in.busiest == 1
    patches = failing.stand_in.of("PATCH")
    assert len(patches) <= 5
    texts = [patch.body["messageText"] for patch in patches]
    assert texts == sorted(texts, key=len)
    assert failing.stand_in.item(message.id)["messageText"] == "".join(f"{n} " for n in range(40))


async def test_the_end_waits_for_the_patch_under_way(failing: Server) -> None:
    """Also when it is cancelled meanwhile."""
    assert failing.stand_in
    async with failing.messages() as directus:
        for cancelled in (False, True):
            failing.stand_in.seen.clear()
            failing.stand_in.fail(Fault(before=0.3))
            message = await directus.message(SESSION).start()
            task = asyncio.create_task(whole(message, cancelled))
            await until(lambda: failing.stand_in.of("PATCH"))  # type: ignore[union-attr]
            if cancelled:
                task.cancel()
            await asyncio.wait([task])
            first, last = failing.stand_in.of("PATCH")
            assert first.answered == last.answered == 200, "none was cut"
            assert first.body == {"messageText": "Hello"}
            assert last.at - first.at >= 0.3
            assert failing.stand_in.item(message.id)["messageText"] == (f"Hello\n\n{SORRY}" if cancelled else "Hello")
            assert failing.stand_in.busiest == 1


async def test_the_end_does_not_wait_for_the_interval(server: Server) -> None:
    async with server.messages(interval=600.0) as directus, directus.message(SESSION) as message:
        await message.write("Hello")
        await server.until_text(message.id, "Hello")
        await message.write(", world")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await message.complete()
    assert server.item(message.id)["messageText"] == "Hello, world"


async def test_what_is_cancelled_while_it_completes_is_completed(failing: Server) -> None:
    assert failing.stand_in

    async def complete(message: DirectusMessage) -> None:
        async with message:
            await message.complete("Hello")

    async with failing.messages() as directus:
        message = await directus.message(SESSION).start()
        failing.stand_in.fail(Fault(before=0.2))
        task = asyncio.create_task(complete(message))
        await until(lambda: failing.stand_in.of("PATCH"))  # type: ignore[union-attr]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (patch,) = failing.stand_in.of("PATCH")
    assert patch.answered == 200
    assert failing.stand_in.item(message.id)["messageText"] == "Hello"
    assert "error" not in failing.stand_in.item(message.id)["metadata"]


async def whole(message: DirectusMessage, endless: bool) -> None:
    async with message:
        await message.write("Hello")
        await asyncio.sleep(60 if endless else 0.1)


async def test_no_answer_in_time(failing: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing.stand_in
    monkeypatch.setattr(rest, "REQUEST_TIMEOUT", 0.2)
    failing.stand_in.fail(Fault("POST", before=0.5))
    async with failing.messages() as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(Fault(after=0.5))
        await message.write("Hello")
    assert list(failing.stand_in.items["messages"]) == [message.id]
    assert failing.stand_in.item(message.id)["messageText"] == "Hello"
    assert len(failing.of("POST")) + len(failing.of("GET")) > 1
    assert len(failing.of("PATCH")) > 1


async def test_the_end_is_looked_at_where_something_older_may_have_come_after_it(failing: Server) -> None:
    assert failing.stand_in

    def overwrite(server: StandIn) -> None:
        for item in server.items["messages"].values():
            item["messageText"] = "older"

    async with failing.messages() as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(Fault(cut="after"), Fault(then=lambda server: None), Fault(then=overwrite))
        await message.write("Hello")
        await failing.until_text(message.id, "Hello")
        await until(lambda: len(failing.stand_in.faults) == 1)  # type: ignore[union-attr]
    assert failing.stand_in.item(message.id)["messageText"] == "Hello"
    assert len(failing.of("PATCH")) == 4


async def test_its_patience_ends(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages(patience=0.3) as directus:
        message = await directus.message(SESSION).start()
        failing.stand_in.fail(Fault(status=503), times=1000)
        await message.write("Hello")
        await until(lambda: message.error)
        with pytest.raises(NotSaved, match=r"not stored within 0\.3 s: .* answers 503: Under pressure\."):
            await message.write("more")
        tried = len(failing.of("PATCH"))
        assert tried > 3
        with pytest.raises(NotSaved):
            await message.complete()
        assert len(failing.of("PATCH")) == tried + 1, "an end that follows is tried once"
        failing.stand_in.faults.clear()
        await message.complete()
        assert failing.stand_in.item(message.id)["messageText"] == "Hello"
        failing.stand_in.fail(Fault("POST", status=503), times=1000)
        with pytest.raises(NotSaved):
            await directus.message(SESSION).start()
        assert not directus.open


async def test_patience_is_for_one_trouble_after_another(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages(patience=0.3, interval=0.01) as directus, directus.message(SESSION) as message:
        for n in range(6):
            failing.stand_in.fail(Fault(status=503), times=4)
            await message.write(f"{n} ")
            await failing.until_text(message.id, "".join(f"{k} " for k in range(n + 1)))


async def test_an_exception_is_not_hidden_by_a_directus_that_is_away(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages(patience=0.1) as directus:
        with pytest.raises(KeyError) as caught:
            async with directus.message(SESSION):
                failing.stand_in.fail(Fault(status=503), times=1000)
                raise KeyError
    assert "not stored within 0.1 s" in caught.value.__notes__[0]


async def test_nobody_listens(runner: asyncio.Runner) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with DirectusMessages(f"http://127.0.0.1:{taken.getsockname()[1]}", ADMIN, patience=0.2) as directus:
            with pytest.raises(NotSaved, match="connection"):
                await directus.message(SESSION).start()


async def test_write_waits_where_too_much_is_unsent(failing: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing.stand_in
    monkeypatch.setattr(items, "BUFFER", 1000)
    async with failing.messages() as directus, directus.message(SESSION) as message:
        failing.stand_in.fail(Fault(status=503), times=100_000)
        task = asyncio.create_task(fill(message))
        await until(lambda: message._unsent > 1000)
        await asyncio.sleep(0.1)
        assert not task.done()
        assert message._unsent <= 1100
        failing.stand_in.faults.clear()
        await task
    assert failing.stand_in.item(message.id)["messageText"] == "x" * 5000


async def fill(message: DirectusMessage) -> None:
    for _ in range(50):
        await message.write("x" * 100)


async def test_it_is_refused_in_the_middle(failing: Server) -> None:
    assert failing.stand_in
    gone = b'{"errors":[{"message":"Invalid user credentials.","extensions":{"code":"INVALID_CREDENTIALS"}}]}'
    async with failing.messages() as directus:
        with pytest.raises(Refused, match=r"answers 401: Invalid user credentials\.") as caught:
            async with directus.message(SESSION) as message:
                failing.stand_in.fail(Fault(status=401, body=gone), times=1)
                await message.write("Hello")
                await until(lambda: message.error)
                await message.write("more")
        assert caught.value.code == "401"
    assert [seen.answered for seen in failing.stand_in.of("PATCH")] == [401, 200]
    assert failing.stand_in.item(message.id)["status"] == "completed"


async def test_what_answers_is_not_directus(failing: Server) -> None:
    assert failing.stand_in
    failing.stand_in.fail(Fault("POST", status=200, body=b"<html>hello</html>"), Fault("POST", status=301, body=b""))
    async with failing.messages() as directus:
        with pytest.raises(Refused, match="does not answer as Directus does: is the address right"):
            await directus.message(SESSION).start()
        with pytest.raises(Refused, match="answers 301: Moved Permanently"):
            await directus.message(SESSION).start()


async def test_a_start_that_is_cancelled(failing: Server) -> None:
    assert failing.stand_in
    async with failing.messages() as directus:
        failing.stand_in.fail(Fault("POST", after=0.3))
        task = asyncio.create_task(whole(directus.message(SESSION), True))
        await until(lambda: failing.stand_in.items["messages"])  # type: ignore[union-attr]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not directus.open)
        (item,) = failing.stand_in.items["messages"].values()
        assert (item["status"], item["messageText"], item["metadata"]["error"]) == ("completed", SORRY, True)
        failing.stand_in.fail(Fault("POST", status=503), times=1000)
        task = asyncio.create_task(whole(directus.message(SESSION), True))
        await until(lambda: len(failing.of("POST")) > 3)
        task.cancel()
        await until(lambda: not directus.open, patience=5)
        assert len(failing.stand_in.items["messages"]) == 1, "what nobody saw needs no end"


async def test_the_token_is_told_nobody(failing: Server) -> None:
    assert failing.stand_in
    body = json.dumps({"errors": [{"message": f"no {ADMIN}", "extensions": {"code": "X"}}]}).encode()
    failing.stand_in.fail(Fault("POST", status=400, body=body))
    async with failing.messages() as directus:
        message = directus.message(SESSION)
        with pytest.raises(Refused) as caught:
            await message.start()
        assert "no …" in str(caught.value)
        assert ADMIN not in f"{caught.value!r} {directus!r} {message!r} {directus.rest!r} {vars(directus)} {vars(message)}"


# Without a server


def test_what_cannot_be_meant() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"url": "directus.example.com"}, "the address of Directus"),
        ({"url": "ftp://directus.example.com"}, "the address of Directus"),
        ({"token": ""}, "token"),
        ({"token": "geheim\n1"}, "token"),
        ({"token": "geheim é"}, "token"),
        ({"fields": {"texts": "x"}}, "there is no 'texts', but id, session_id"),
        ({"fields": {"text": None}}, "text cannot be left out"),
        ({"interval": 0}, "interval"),
        ({"patience": float("nan")}, "patience"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            DirectusMessages(**{"url": "https://directus.example.com", "token": "t", **given})
        assert "geheim" not in str(caught.value)


def test_httpx_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ModuleNotFoundError, match=r"^DirectusMessages needs httpx: pip install 'rowcast-writer\[directus\]'$"):
        DirectusMessages("http://127.0.0.1", "token")


async def test_a_message_must_be_started(runner: asyncio.Runner) -> None:
    async with DirectusMessages("http://127.0.0.1:1", "token") as directus:
        message = directus.message(SESSION)
        for do in (message.write("x"), message.complete(), message.fail(), message.acknowledge("x")):
            with pytest.raises(WriterError, match="is not started"):
                await do
        with pytest.raises(TypeError):
            directus.message(SESSION, metadata=5)  # type: ignore[arg-type]


# The stand-in, and only the real one


ASKED: list[tuple[str, str, Any, str]] = [
    ("POST", "/items/messages", {"session_id": "s", "nothing": 1, "metadata": {"a": [1]}, "messageText": "é"}, ADMIN),
    ("POST", "/items/messages?fields=session_id,nothing", {"session_id": "s"}, ADMIN),
    ("POST", "/items/messages", {"id": "5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", "session_id": "s"}, ADMIN),
    ("POST", "/items/messages", {"id": "5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", "session_id": "s"}, ADMIN),
    ("POST", "/items/messages", {"id": "5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", "session_id": "s"}, WRITER),
    ("POST", "/items/messages", {"session_id": "s"}, WRITER),
    ("POST", "/items/messages", {"id": "odd", "session_id": "s"}, ADMIN),
    ("POST", "/items/messages", {"id": 5, "session_id": "s"}, ADMIN),
    ("POST", "/items/messages", {}, ADMIN),
    ("POST", "/items/messages", {"session_id": None}, ADMIN),
    ("POST", "/items/messages", {"session_id": "s", "status": "x" * 21}, ADMIN),
    ("POST", "/items/messages?fields=messageText", {"session_id": "s", "messageText": {"a": 1}}, ADMIN),
    ("POST", "/items/messages?fields=metadata", {"session_id": "s", "metadata": '{"a": 1}'}, ADMIN),
    ("POST", "/items/messages", {"session_id": "s"}, "wrong"),
    ("POST", "/items/messages", {"session_id": "s"}, ""),
    ("POST", "/items/messages", {"session_id": "s"}, "Basic eDp5"),
    ("POST", "/items/nothing", {"session_id": "s"}, ADMIN),
    ("POST", "/items/numbered?fields=status", {"status": "streaming"}, ADMIN),
    ("POST", "/items/numbered", {"id": "5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001"}, ADMIN),
    ("POST", "/items/numbered", {"id": "5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001"}, WRITER),
    ("POST", "/items/numbered", {"id": 1_000_001, "status": "a"}, ADMIN),
    ("POST", "/items/numbered", {"id": 1_000_001, "status": "a"}, ADMIN),
    ("POST", "/items/numbered", {"status": "a"}, WRITER),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "a", "metadata": {"a": 1}}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"metadata": {"b": 1}}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001?fields=id", {"nothing": 1}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"session_id": None}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "x" * 1_048_576}, ADMIN),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "b"}, WRITER),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "b"}, "wrong"),
    ("PATCH", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "b"}, ""),
    ("PATCH", "/items/messages/00000000-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "b"}, ADMIN),
    ("PATCH", "/items/messages/00000000-5a5f-4d7e-8f43-0a8a54f3a001", {"messageText": "b"}, WRITER),
    ("PATCH", "/items/messages/odd", {"messageText": "b"}, ADMIN),
    ("PATCH", "/items/nothing/1", {"messageText": "b"}, ADMIN),
    ("PATCH", "/items/numbered/odd", {"status": "b"}, ADMIN),
    ("PATCH", "/items/numbered/1000001?fields=id,status", {"status": "b"}, ADMIN),
    ("GET", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", None, ADMIN),
    ("GET", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001?fields=status,nothing", None, ADMIN),
    ("GET", "/items/messages/5c6b0c0e-5a5f-4d7e-8f43-0a8a54f3a001", None, WRITER),
    ("GET", "/items/messages/00000000-5a5f-4d7e-8f43-0a8a54f3a001", None, ADMIN),
    ("GET", "/items/messages/odd", None, ADMIN),
    ("GET", "/items/nothing/1", None, ADMIN),
    ("GET", "/fields/messages/id", None, WRITER),
    ("GET", "/fields/messages/nothing", None, ADMIN),
    ("GET", "/fields/nothing/id", None, ADMIN),
    ("GET", "/nothing/1", None, ADMIN),
]


def comparable(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Without what is made anew each time."""
    status, body = answer
    match body:
        case {"data": {"id": str(id)}} if not id.startswith("5c6b"):
            del body["data"]["id"]
    return status, body


def test_the_stand_in_answers_as_directus_does(stand_in: StandIn, real: RealDirectus) -> None:
    for method, path, body, token in ASKED:
        answers = [comparable(call(url, method, path, body, token)) for url in (stand_in.url, real.url)]
        assert answers[0] == answers[1], f"{method} {path} {str(body)[:100]} as {token}"
    for collection in COLLECTIONS:
        for one in COLLECTIONS[collection]:
            described = [call(url, "GET", f"/fields/{collection}/{one.name}") for url in (stand_in.url, real.url)]
            assert described[0][1]["data"]["type"] == described[1][1]["data"]["type"]
    nul = {"session_id": "s", "messageText": "a\0b"}
    assert [call(url, "POST", "/items/messages", nul)[0] for url in (stand_in.url, real.url)] == [500, 500]
    odd = [call(url, "POST", "/items/messages", content=b"{odd") for url in (stand_in.url, real.url)]
    assert [(status, body["errors"][0]["extensions"]["code"]) for status, body in odd] == [(400, "INVALID_PAYLOAD")] * 2


async def test_a_subscriber_of_directus_sees_the_growth(real: RealDirectus) -> None:
    async with subscribed(real, "messages") as events, DirectusMessages(real.url, ADMIN, interval=0.05) as directus:
        async with directus.message(SESSION) as message:
            assert await seen(events) == ("create", "streaming", "")
            await message.write("Hello")
            assert await seen(events) == ("update", "streaming", "Hello")
            await message.write(", world")
            assert await seen(events) == ("update", "streaming", "Hello, world")
        assert await seen(events) == ("update", "completed", "Hello, world")


@asynccontextmanager
async def subscribed(real: RealDirectus, collection: str) -> AsyncIterator[Any]:
    async with connect(real.url.replace("http", "ws", 1) + "/websocket") as socket:
        await socket.send(json.dumps({"type": "auth", "access_token": ADMIN}))
        assert json.loads(await socket.recv())["status"] == "ok"
        await socket.send(json.dumps({"type": "subscribe", "collection": collection, "query": {"fields": ["*"]}}))
        assert json.loads(await socket.recv())["event"] == "init"
        yield socket


async def seen(socket: Any) -> tuple[str, str, str]:
    async with asyncio.timeout(10):
        event = json.loads(await socket.recv())
    (item,) = event["data"]
    return event["event"], item["status"], item["messageText"]


async def test_what_is_written_through_directus_reaches_browsers_too(real: RealDirectus) -> None:
    """Over Rowcast's own table."""
    db = await asyncpg.connect(real.database)
    try:
        session = await Rows(db).session()
    finally:
        await db.close()
    async with Hub(real.database) as hub:
        stream = await hub.follow(session, from_="now")
        await stream.expect("connected", "caught_up")
        async with (
            DirectusMessages(real.url, ADMIN, collection="message", fields={"text": "text"}, interval=0.05) as directus,
            directus.message(session) as message,
        ):
            await message.write("Hello")
            created, grown = await stream.expect("agent.message.appended", "message.delta")
            await message.write(", world")
        (ended,) = await stream.expect("message.completed")
        assert created.data["message"]["id"] == message.id
        assert (grown.data["delta"], ended.data["delta"]) == ("Hello", ", world")
