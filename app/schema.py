"""The schema's version, and the migrations that bring it there."""

import asyncio
import logging
import random
from pathlib import Path

import asyncpg
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from alembic import command, context, op

from . import settings
from .database import Connection as DriverConnection
from .database import Pool, connected, create_engine, explain
from .errors import ConfigurationError, DatabaseUnavailable, SchemaMismatch
from .models import Base

logger = logging.getLogger(__name__)

LOCK = (7499639, 5)
"""The advisory lock that serialises migrations, beside those named in sequencer.py."""

LOCK_TIMEOUT = "2s"
ATTEMPTS = 30
WAITED_TOO_LONG = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)

_HERE = Path(__file__).parent
SCRIPTS = next(path for path in (_HERE / "alembic", _HERE.parent / "alembic") if path.is_dir())
"""Beside app/ in a checkout, inside the package where it is installed."""


def latest() -> int:
    """The version that this program was written for."""
    head = ScriptDirectory(str(SCRIPTS)).get_current_head()
    assert head is not None
    return int(head)


async def version(connection: DriverConnection | Pool) -> int | None:
    """The version in the database: 0 after a downgrade to nothing, None before the first upgrade."""
    if await connection.fetchval("SELECT to_regclass('rowcast.alembic_version')") is None:
        return None
    return int(await connection.fetchval("SELECT version_num FROM rowcast.alembic_version") or 0)


async def check(connection: DriverConnection | Pool) -> None:
    """SchemaMismatch unless the schema is at most one version older or newer than this program."""
    found, wanted = await version(connection), latest()
    if not found:
        raise SchemaMismatch("the database has no Rowcast schema: run `rowcast migrate up`")
    if found < wanted - 1:
        raise SchemaMismatch(f"the schema is at version {found} and this Rowcast needs {wanted}: run `rowcast migrate up`")
    if found < wanted:
        logger.warning("the schema is at version %d, this Rowcast knows %d: run `rowcast migrate up`", found, wanted)
    if found > wanted + 1:
        raise SchemaMismatch(f"the schema is at version {found}, this Rowcast knows {wanted}: install a newer Rowcast")


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = url
    return config


async def migrate(url: str, target: str) -> None:
    """Upgrade or downgrade: `head`, `+1`, `-1`, `base` or a version."""
    async with connected(url, "rowcast migrate") as connection:
        found = await version(connection) or 0
    if target.isdigit():
        target = f"{int(target):04}" if int(target) else "base"
    down = target == "base" or target.startswith("-") or (target.isdigit() and int(target) < found)
    if down and not found:
        return
    try:
        await asyncio.to_thread(command.downgrade if down else command.upgrade, alembic_config(url), target)
    except CommandError as error:
        raise ConfigurationError(str(error)) from error
    except DBAPIError as error:
        raise DatabaseUnavailable(explain((error.orig and error.orig.__cause__) or error)) from error


def run(url: str) -> None:
    """What alembic/env.py does online: one upgrade at a time, never queueing writers behind DDL."""
    asyncio.run(_run(url))


async def _run(url: str) -> None:
    engine = create_engine(url)
    try:
        async with engine.connect() as connection:
            # Held for the session: several replicas that start at once upgrade one after the other.
            await connection.execute(text(f"SELECT pg_advisory_lock({LOCK[0]}, {LOCK[1]})"))
            await connection.execute(text("CREATE SCHEMA IF NOT EXISTS rowcast"))
            await connection.execute(text("SET search_path = public"))
            await connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
            await connection.commit()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await connection.run_sync(_migrate)
                    await connection.commit()
                    return
                except DBAPIError as error:
                    if not isinstance(error.orig.__cause__ if error.orig else None, WAITED_TOO_LONG) or attempt == ATTEMPTS:
                        raise
                    await connection.rollback()
                    logger.warning("a table is in use, trying again (%d of %d)", attempt, ATTEMPTS)
                    await asyncio.sleep(random.uniform(0.2, 1.0))
    finally:
        await engine.dispose()


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table_schema="rowcast",
        include_schemas=True,
        include_name=_is_ours,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _is_ours(name: str | None, type: str, parents: object) -> bool:
    """Autogenerate looks at our tables alone; a user's own stand beside them."""
    if type == "schema":
        return name in (None, "public", "rowcast")
    if type == "table":
        return name in {table.name for table in Base.metadata.tables.values()}
    return True


def create(*names: str, **fields: str) -> None:
    """In a migration: run `alembic/sql/<name>.sql` for each, one statement a file, with `{field}` filled in."""
    for name in names:
        text = (SCRIPTS / "sql" / f"{name}.sql").read_text()
        for field, value in fields.items():
            text = text.replace(f"{{{field}}}", value)
        op.get_bind().exec_driver_sql(text)


def execute(*statements: str) -> None:
    """In a migration: run statements as they stand (`op.execute` takes ` :name` for a parameter)."""
    for statement in statements:
        op.get_bind().exec_driver_sql(statement)


def exists(function: str) -> bool:
    """In a migration: whether there is such a function, `schema.name(types)`."""
    return op.get_bind().scalar(text("SELECT to_regprocedure(:name)"), {"name": function}) is not None


def wants_reference_tables() -> bool:
    """In a migration: whether ROWCAST_REFERENCE_TABLES is on."""
    return settings.load(database_url="postgresql://").reference_tables == "on"


def refuse_existing(*names: str, way_out: str = "set ROWCAST_REFERENCE_TABLES=off to leave them alone") -> None:
    """In a migration: stop with one line if somebody else's tables or indexes have our names."""
    found = op.get_bind().scalars(
        text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY(:names) ORDER BY 1"),
        {"names": list(names)},
    )
    if taken := ", ".join(found):
        raise ConfigurationError(f"tables or indexes named {taken} exist already: {way_out}")
