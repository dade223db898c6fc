"""Fewer events that say the same: for clients that asked for batches."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from .events import Event

_NOUNS = ("job", "run", "step", "nodeState", "message")


def merge(events: Iterable[Event]) -> list[Event]:
    """Successive deltas of a message become one; of successive `updated` or `progress` of one thing the last
    stays. A thing's events keep their order, and nothing is merged across the end of a job or a request."""
    merged: dict[int, Event] = {}
    latest: dict[str, Event] = {}
    for event in events:
        fields = event.fields
        thing = _thing(event.type, fields)
        if event.terminal:
            latest.clear()
        elif thing:
            before = latest.get(thing)
            if before is not None and (one := _one(before, event, fields)):
                del merged[before.position]
                event = one
            latest[thing] = event
        merged[event.position] = event
    return list(merged.values())


def _thing(type: str, fields: dict[str, Any]) -> str | None:
    """Which thing an event is about, as far as its payload says so."""
    if "message_id" in fields:
        return f"message {fields['message_id']}"
    for noun in _NOUNS:
        row = fields.get(noun)
        if isinstance(row, dict) and "id" in row:
            return f"{noun} {row['id']}"
    key = fields.get("key")
    return f"{type.rpartition('.')[0]} {msgspec.json.encode(key).decode()}" if isinstance(key, dict) else None


def _one(before: Event, event: Event, fields: dict[str, Any]) -> Event | None:
    """What says the same as both, if anything does."""
    if before.type != event.type or before.audience != event.audience:
        return None
    if event.type == "message.delta":
        return _grown(before.fields, event, fields)
    if event.type.endswith((".updated", ".progress")) and not _has_text(before.fields):
        return event
    return None


def _grown(before: dict[str, Any], event: Event, fields: dict[str, Any]) -> Event | None:
    try:
        follows = fields["offset"] == before["offset"] + len(before["delta"])
    except (KeyError, TypeError):
        return None  # too large to be in an event
    if not follows or fields["delta"] is None:
        return None
    delta = {**fields, "offset": before["offset"], "delta": before["delta"] + fields["delta"]}
    return replace(event, payload=msgspec.json.encode(delta))


def _has_text(fields: dict[str, Any]) -> bool:
    """Nothing that carries text may be left out."""
    message = fields.get("message")
    return "delta" in fields or (isinstance(message, dict) and "text" in message)
