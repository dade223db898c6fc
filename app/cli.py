"""The command `rowcast`."""

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from dotenv import dotenv_values
from rich.console import Console
from rich.markup import escape

from . import __version__, schema, server, settings, tokens, watches
from . import doctor as doctor_module
from . import tail as tail_module
from .database import TROUBLE, connected, explain
from .embedded import EmbeddedPostgres
from .errors import ConfigurationError, RowcastError
from .process import Child, keep_running

app = typer.Typer(
    help="Turns committed PostgreSQL rows into live browser streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
migrations = typer.Typer(help="The database schema.", no_args_is_help=True)
app.add_typer(migrations, name="migrate")
out = Console(highlight=False, soft_wrap=True)

DEV_TOKEN = 7 * 86400.0
"""Seconds that the token of `rowcast dev` is good, if it runs that long."""

Port = Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [ROWCAST_PORT, 8000]")]


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"rowcast {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say which version this is.")] = False,
) -> None: ...


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. [ROWCAST_HOST, 127.0.0.1]")] = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [ROWCAST_WORKERS, 1]")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody read everything; on loopback only.")] = False,
) -> None:
    """Stream what is committed to DATABASE_URL."""
    configured = settings.load(host=host, port=port, workers=workers, no_auth=no_auth or None)
    configure_logging(configured.log_level)
    server.serve(configured)


@app.command()
def key() -> None:
    """Make a secret for ROWCAST_KEY."""
    print(tokens.new_secret())


@app.command()
def token(
    subject: Annotated[str, typer.Argument(help="Whose it is: the sub of the token.")],
    session: Annotated[list[str] | None, typer.Option(help="A session that it names; may be a prefix such as team-*, or *.")] = None,
    project: Annotated[list[str] | None, typer.Option(help="A project, likewise.")] = None,
    right: Annotated[list[str] | None, typer.Option(help="stream, cancel or admin.")] = None,
    types: Annotated[list[str] | None, typer.Option("--type", help="A type of events, or a prefix such as message.*")] = None,
    minutes: Annotated[float, typer.Option(help="How long it is good.", min=0.01, max=525_600)] = 60,
) -> None:
    """Make a token, signed with the secret in ROWCAST_KEY. Without sessions and projects, ownership decides what it opens."""
    allowed = {"sessions": session, "projects": project, "rights": right, "types": types}
    print(tokens.make(settings.load(database_url="postgresql://"), subject, allowed, minutes * 60))


@app.command()
def revoke(
    subject: Annotated[str | None, typer.Argument(help="Whose tokens are no longer taken.")] = None,
    token_id: Annotated[str | None, typer.Option(help="Only the one token with this jti, or those of the login with this sid.")] = None,
    session: Annotated[str | None, typer.Option(help="A session that nobody's token of before opens any more.")] = None,
) -> None:
    """End live streams, and refuse tokens that were issued before now."""
    if subject is None and token_id is None and session is None:
        raise ConfigurationError("say what to revoke: rowcast revoke SUBJECT, or --token-id, or --session")
    asyncio.run(_revoke(settings.load().database_url, subject, token_id, session))
    out.print("revoked", markup=False)


async def _revoke(url: str, *what: str | None) -> None:
    async with connected(url, "rowcast revoke") as connection:
        await connection.execute("SELECT rowcast.revoke($1, $2, $3)", *what)


@app.command(hidden=True)
def worker(fd: int) -> None:
    """One process of several, on an inherited socket."""
    configured = settings.load()
    configure_logging(configured.log_level)
    server.serve_socket(configured, socket.socket(fileno=fd))


@migrations.command("up")
def migrate_up(target: Annotated[str, typer.Argument(help="A version, +1 or head.")] = "head") -> None:
    """Bring the schema to the newest version. Safe to run from several places at once."""
    _migrate(target)


@migrations.command("down", context_settings={"ignore_unknown_options": True})  # -1 is none
def migrate_down(target: Annotated[str, typer.Argument(help="A version, -1, or base for nothing at all.")] = "-1") -> None:
    """Take back migrations, with what they hold."""
    _migrate(target)


@migrations.command("status")
def migrate_status() -> None:
    """Say which version the database is at."""
    found = asyncio.run(_version(settings.load().database_url))
    wanted = schema.latest()
    out.print(f"database: {found or 'nothing'}, this program: {wanted}")
    if found != wanted:
        raise typer.Exit(1)


def _migrate(target: str) -> None:
    configured = settings.load()
    configure_logging(configured.log_level)
    asyncio.run(schema.migrate(configured.database_url, target))
    out.print(f"schema version {asyncio.run(_version(configured.database_url)) or 'nothing'}")


async def _version(url: str) -> int | None:
    async with connected(url, "rowcast migrate") as connection:
        return await schema.version(connection)


@app.command()
def dev(
    port: Port = None, folder: Annotated[Path, typer.Option(help="Where the private database keeps its data.")] = Path(".rowcast")
) -> None:
    """A database (unless DATABASE_URL is set), migrations, the hub, and a pipeline that writes rows."""
    given = os.environ.get("DATABASE_URL") or dotenv_values(".env").get("DATABASE_URL")
    configured = settings.load(port=port, database_url=given or "postgresql://", host="127.0.0.1", log_level="warning", **tokens.own_key())
    configure_logging("warning")
    if given:
        _dev(configured, port)
        return
    with EmbeddedPostgres(folder) as postgres:
        _dev(configured.model_copy(update={"database_url": postgres.url}), port)


def _dev(configured: settings.Settings, port: int | None) -> None:
    url = configured.database_url
    asyncio.run(schema.migrate(url, "head"))
    try:
        sock = server.bind(configured.host, configured.port)
    except ConfigurationError:
        if port is not None:
            raise
        sock = server.bind(configured.host, 0)
    host, bound = sock.getsockname()[:2]
    token = tokens.make(configured, "dev", {"rights": ["admin"]}, DEV_TOKEN)
    out.print(f"\n  [bold]http://{host}:{bound}/#token={token}[/bold]\n  the page; its token opens everything while this runs\n")
    out.print(f"  export ROWCAST_TOKEN={token}\n  the same for curl and rowcast tail\n")
    out.print(f"  psql '{url}'\n  the database; Ctrl-C ends it all\n")

    def tell(child: Child) -> None:
        if child.process and child.name == "hub":
            out.print(f"  the hub is process {child.process.pid}; the page survives: kill -9 {child.process.pid}")

    pipeline = Child("pipeline", [sys.executable, "-m", "rowcast.demo"], {"DATABASE_URL": url})
    keep_running([server.worker(configured, sock, "hub"), pipeline], tell)


@app.command()
def tail(
    topics: Annotated[list[str], typer.Argument(help="session:<id>, project:, job:, request:, user:, table: or task:<id>.")],
    url: Annotated[str, typer.Option(help="Where the hub is.")] = "http://127.0.0.1:8000",
    after: Annotated[str | None, typer.Option(help="Begin after this cursor.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="Without a cursor: recent, start, now or snapshot.")] = None,
    until_end: Annotated[
        bool | None, typer.Option("--until-end/--no-until-end", help="End with the job or request. [for one task, job or request]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON an event.")] = False,
    token: Annotated[str | None, typer.Option(envvar="ROWCAST_TOKEN", help="What the hub lets us in for.", show_default=False)] = None,
) -> None:
    """Follow topics in the terminal, through restarts of the hub.

    The exit status is that of what ended: 0 completed, 1 failed, 3 cancelled.
    """
    raise typer.Exit(tail_module.tail(tail_module.Target(url, topics, after, since, until_end, token), json))


@app.command()
def watch(
    table: Annotated[str | None, typer.Argument(help="A table, as schema.name.")] = None,
    columns: Annotated[str | None, typer.Option(help="What to tell, separated by commas; * is every column.")] = None,
    session: Annotated[str | None, typer.Option(help="The column that names the session.")] = None,
    project: Annotated[str | None, typer.Option(help="The column that names the project.")] = None,
    job: Annotated[str | None, typer.Option(help="The column that names the job.")] = None,
    user: Annotated[str | None, typer.Option(help="The column that names the user.")] = None,
    name: Annotated[str | None, typer.Option(help="What event types begin with; the table's name if not given.")] = None,
    channel: Annotated[str | None, typer.Option(help="A NOTIFY channel that gets the payloads as well.")] = None,
    migration: Annotated[bool, typer.Option("--migration", help="Print an Alembic migration, and do nothing.")] = False,
    revises: Annotated[str | None, typer.Option(help="The revision that the migration follows.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show what is watched, and what is wrong there.")] = False,
) -> None:
    """Have every change of a table told."""
    if show:
        _list_watches()
        return
    if table is None or columns is None:
        raise ConfigurationError("say what to watch: rowcast watch TABLE --columns a,b (or --columns '*' for all)")
    wanted = watches.Watch(table, watches.split(columns), name, session, project, job, user, channel)
    if migration:
        print(wanted.migration(revises), end="")
        return
    asyncio.run(watches.run(settings.load().database_url, wanted.sql()))
    out.print(f"watching {table}", markup=False)


def _list_watches() -> None:
    rows = asyncio.run(watches.listed(settings.load().database_url))
    for row in rows:
        kinds = ("session", "project", "job", "user")
        told = [f"{kind} {row[f'{kind}_column']}" for kind in kinds if row[f"{kind}_column"]] or [f"table:{row['name']}"]
        channel = f"; channel {row['channel']}" if row["channel"] else ""
        out.print(f"{row['target']} as {row['name']}: {', '.join(row['columns'])}; to {', '.join(told)}{channel}", markup=False)
        for problem in row["problems"]:
            out.print(f"  wrong: {problem}", markup=False)
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@app.command()
def unwatch(table: Annotated[str, typer.Argument(help="A table, as schema.name.")]) -> None:
    """Have changes of a table told no more."""
    asyncio.run(watches.run(settings.load().database_url, watches.unwatching(table)))
    out.print(f"not watching {table}", markup=False)


@app.command()
def doctor() -> None:
    """Look at the database and name what is wrong."""
    findings = asyncio.run(doctor_module.examine(settings.load().database_url))
    for finding in findings:
        out.print(("[green]ok[/green]    " if finding.ok else "[red]wrong[/red] ") + escape(finding.text), markup=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def configure_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", force=True)
    for chatty in ("alembic", "uvicorn.error", "asyncio", "sse_starlette"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def fail(problem: str) -> NoReturn:
    print(f"rowcast: {problem}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except RowcastError as error:
        fail(" ".join(str(error).split()))
    except TROUBLE as error:
        fail(f"the database at DATABASE_URL: {explain(error)}")


if __name__ == "__main__":
    main()
