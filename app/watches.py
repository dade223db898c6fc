"""Watching tables from the command line; what it does is in SQL, see docs/watch.md."""

import csv
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

from . import schema
from .database import connected, explain
from .errors import ConfigurationError

LOCK_TIMEOUT = "5s"
"""How long a busy table is waited for: writers queue behind us meanwhile."""

MIGRATION = '''"""{title}"""

from alembic import op

revision = "{revision}"
down_revision = {revises}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute({upgrade})


def downgrade() -> None:
    op.execute({downgrade})
'''


@dataclass(frozen=True)
class Watch:
    """What to watch, and who follows it: the arguments of the SQL function `rowcast.watch`."""

    table: str
    columns: list[str]
    name: str | None = None
    session: str | None = None
    project: str | None = None
    job: str | None = None
    user: str | None = None
    channel: str | None = None

    def named(self) -> Iterator[tuple[str, str]]:
        names = {"name": self.name, "channel": self.channel}
        audience = {"session_column": self.session, "project_column": self.project, "job_column": self.job, "user_column": self.user}
        yield from ((name, value) for name, value in {**names, **audience}.items() if value is not None)

    def sql(self) -> str:
        columns = ", ".join(map(literal, self.columns))
        named = "".join(f", {name} => {literal(value)}" for name, value in self.named())
        return f"SELECT rowcast.watch({literal(self.table)}, ARRAY[{columns}]::text[]{named})"

    def migration(self, revises: str | None) -> str:
        """A whole file for a user's own Alembic."""
        return MIGRATION.format(
            title=f"Watch {self.table}.".replace("\\", "").replace('"""', ""),
            revision=secrets.token_hex(6),
            revises=repr(revises),
            upgrade=for_alembic(self.sql()),
            downgrade=for_alembic(unwatching(self.table)),
        )


def split(columns: str) -> list[str]:
    """`status,"odd, name"` as two names."""
    return [name.strip() for name in next(csv.reader([columns], skipinitialspace=True), [])]


def literal(text: str) -> str:
    """As SQL has it, whatever standard_conforming_strings says."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return f" E{quoted}" if "\\" in text else quoted


def unwatching(table: str) -> str:
    return f"SELECT rowcast.unwatch({literal(table)})"


def for_alembic(statement: str) -> str:
    """`op.execute` takes ` :name` for a parameter."""
    return repr(statement.replace(":", "\\:"))


async def run(url: str, statement: str) -> None:
    """ConfigurationError with what PostgreSQL says: it names what is wrong, and what to do."""
    async with connected(url, "rowcast watch") as connection:
        await schema.check(connection)
        await connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        try:
            await connection.execute(statement)
        except asyncpg.LockNotAvailableError as error:
            raise ConfigurationError(f"a transaction holds the table for more than {LOCK_TIMEOUT}: try again when it has ended") from error
        except asyncpg.PostgresError as error:
            raise ConfigurationError(explain(error)) from error


async def listed(url: str) -> list[asyncpg.Record]:
    """The rows of rowcast.watches."""
    async with connected(url, "rowcast watch") as connection:
        await schema.check(connection)
        return list(await connection.fetch("SELECT *, target::text AS target FROM rowcast.watches ORDER BY name, target::text"))
