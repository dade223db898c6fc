"""What is asked of the database: functions of the schema `rowcast`, which any program may call. See docs/schema.md.

Arguments are text, numbers and booleans, so that every driver passes them alike.
"""

import json
from datetime import date, time
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

from .connections import Database, Row
from .draft import clean

_LEASE = "make_interval(secs => CAST({} AS double precision))"
_GIVEN = f"CAST(CAST($1 AS text) AS jsonb), {_LEASE.format('$2')}, CAST($3 AS boolean)"

_WRITE = {
    "message": f"SELECT CAST(id AS text), outcome FROM rowcast.message_write({_GIVEN})",
    "job": f"SELECT CAST(id AS text), outcome, cancel_requested FROM rowcast.job_write({_GIVEN})",
    "job_step": "SELECT CAST(id AS text), outcome FROM rowcast.job_step_write(CAST(CAST($1 AS text) AS jsonb), CAST($2 AS boolean))",
    "request": f"SELECT CAST(id AS text), outcome FROM rowcast.request_write({_GIVEN})",
}

ORDER = ("job_step", "job", "request", "message")
"""In which tables are written: steps cannot change once their job has ended."""


LOST = {"RC010": "gone", "RC011": "expired", "RC012": "taken", "RC013": "ended"}
"""What SQLSTATEs of these functions mean: see errors.REASONS."""


async def write_rows(database: Database, table: str, writes: list[dict[str, Any]], lease: float, durable: bool) -> dict[UUID, Row]:
    """Of each row its outcome, and of a job whether its end was asked for. `lease` in seconds."""
    given = (json.dumps(writes), durable) if table == "job_step" else (json.dumps(writes), lease, durable)
    return {UUID(id): more for id, *more in await database.call(_WRITE[table], *given)}


_UUID = "CAST(CAST({} AS text) AS uuid)"
_TEXT = "CAST({} AS text)"
_JSON = "CAST(CAST({} AS text) AS jsonb)"
_KINDS = {"uuid": _UUID, "text": _TEXT, "json": _JSON, "lease": _LEASE}

_START = {
    "message": ("length", {"session_id": "uuid", "text": "text", "job_id": "uuid", "role": "text", "metadata": "json"}),
    "job": ("cancel_requested", {"kind": "text", "session_id": "uuid", "project_id": "uuid", "name": "text"}),
    "request": ("id", {"session_id": "uuid", "request": "text"}),
}


async def start_row(database: Database, table: str, id: UUID, fence: UUID, lease: float, **values: Any) -> Any:
    """Create the row, or take it where it is there. Of a message the length of its text, of a job whether its end was asked for."""
    answer, columns = _START[table]
    columns = {**columns, "id": "uuid", "fence": "uuid", "lease": "lease"}
    given = ", ".join(f"{name} => {_KINDS[kind].format(f'${n}')}" for n, (name, kind) in enumerate(columns.items(), 1))
    values = {**values, "id": id, "fence": fence}
    arguments = [lease if kind == "lease" else _plain(values.get(name), kind) for name, kind in columns.items()]
    rows = await database.call(f"SELECT {answer} FROM rowcast.{table}_start({given})", *arguments)
    return rows[0][0]


def _plain(value: Any, kind: str) -> Any:
    if value is None:
        return None
    return json.dumps(value) if kind == "json" else clean(str(value))


def as_json(value: Any) -> Any:
    """A copy of it that PostgreSQL's jsonb can hold; ids, times and the like as text. TypeError or ValueError for what is
    no JSON (RFC 8259)."""
    try:
        return _cleaned(json.loads(json.dumps(value, allow_nan=False, default=_as_text)))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _as_text(value: Any) -> str:
    if isinstance(value, UUID | date | time | Decimal | PurePath):
        return value.isoformat() if isinstance(value, date | time) else str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def as_object(value: Any, what: str) -> dict[str, Any]:
    """As as_json(), of a JSON object."""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is to be a dict, not {type(value).__name__}")
    plain: dict[str, Any] = as_json(value)
    return plain


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case list():
            return [_cleaned(one) for one in value]
        case dict():
            return {clean(name): _cleaned(one) for name, one in value.items()}
    return value
