"""Fewer events that say the same: for clients that asked for batches."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from .events import Event

_NOUNS = ("job", "run", "step", "nodeState", "message")

Decoded = tuple[Event, dict[str, Any]]
"""An event and its payload."""


def merge(events: Iterable[Event]) -> list[Event]:
    """Successive deltas of a message become one; of successive `updated` or `progress` of one thing the last
    stays. A thing's events keep their order, and nothing is merged across the end of a job or a request."""
    alike: list[list[Decoded]] = []
    latest: dict[str, list[Decoded]] = {}
    for event in events:
        decoded = event, event.fields
        thing = _thing(*decoded)
        before = latest.get(thing) if thing else None
        if before and not event.ends and _merge(before[-1], decoded):
            before.append(decoded)
            continue
        alike.append([decoded])
        if event.ends:
            latest.clear()
        elif thing:
            latest[thing] = alike[-1]
    return sorted(map(_one, alike), key=lambda event: event.position)


def _thing(event: Event, fields: dict[str, Any]) -> str | None:
    """Which thing an event is about, as far as its payload says so."""
    if "message_id" in fields:
        return f"message {fields['message_id']}"
    for noun in _NOUNS:
        row = fields.get(noun)
        if isinstance(row, dict) and "id" in row:
            return f"{noun} {row['id']}"
    key, row = fields.get("key"), fields.get("row")
    if isinstance(key, dict) and isinstance(row, dict) and key.keys() != row.keys():  # else there may be no primary key
        return f"{event.type.rpartition('.')[0]} {msgspec.json.encode(key).decode()}"
    return None


def _merge(before: Decoded, after: Decoded) -> bool:
    """Whether one event can say the same as both."""
    (old, was), (new, fields) = before, after
    if old.type != new.type or old.audience != new.audience:
        return False
    if new.type == "message.delta":
        match was, fields:
            case {"offset": int(offset), "delta": str(delta)}, {"offset": int(following), "delta": str()}:
                return following == offset + len(delta)
        return False  # too large to be in an event
    return new.type.endswith((".updated", ".progress")) and not _has_text(was)


def _has_text(fields: dict[str, Any]) -> bool:
    """Nothing that carries text may be left out."""
    message = fields.get("message")
    return "delta" in fields or (isinstance(message, dict) and "text" in message)


def _one(alike: list[Decoded]) -> Event:
    event, fields = alike[-1]
    if len(alike) == 1 or event.type != "message.delta":
        return event
    delta = {**fields, "offset": alike[0][1]["offset"], "delta": "".join(fields["delta"] for _, fields in alike)}
    return replace(event, payload=msgspec.json.encode(delta))
