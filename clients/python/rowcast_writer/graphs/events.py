"""What an event of `astream_events()` says, of version 2 or 1, given as a dict."""

from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]

INTERRUPT = "__interrupt__"
"""The key under which LangGraph tells that a run waits for a human, and what it asks."""


def run_id(event: Event) -> str:
    return str(event.get("run_id"))


def tags(event: Event) -> list[str]:
    return event.get("tags") or []


def parents(event: Event) -> tuple[str, ...]:
    """From the outside in. Version 1 has none."""
    return tuple(map(str, event.get("parent_ids") or ()))


def within(those: tuple[str, ...], event: Event) -> bool:
    """Whether what has those parents runs where the event's run does."""
    own = parents(event)
    return bool(own) and those[: len(own)] == own


def about(event: Event) -> Mapping[str, Any]:
    return event.get("metadata") or {}


def task_of(event: Event) -> str:
    return str(about(event).get("langgraph_checkpoint_ns") or "")


def data(event: Event) -> Mapping[str, Any]:
    given = event.get("data")
    return given if isinstance(given, Mapping) else {}


def interrupts(chunk: Any) -> list[Any] | None:
    """What a human is asked by a chunk of a graph's stream, in any of its modes; None if nobody is."""
    if isinstance(chunk, tuple | list) and chunk:
        chunk = chunk[-1]  # (mode, chunk), (namespace, chunk) or (namespace, mode, chunk)
    if not isinstance(chunk, Mapping) or INTERRUPT not in chunk:
        return None
    return list(chunk[INTERRUPT] or ())


def is_no_failure(error: Any) -> bool:
    """LangGraph raises what waits for a human, and what hands over to another graph's node."""
    return any(one.__name__ == "GraphBubbleUp" for one in type(error).__mro__)


def text_of(value: Any) -> str:
    """The text of a message, a chunk, a generation or a whole result, be it an object or a dict. Neither reasoning nor tool calls."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(map(_text_of_part, value))
    for name in ("generations", "message", "content", "text"):
        inner = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if name == "generations" and inner:
            return text_of(inner[0][0] if isinstance(inner[0], list) else inner[0]) if inner[0] else ""
        if inner is not None and not callable(inner):
            return text_of(inner)
    return ""


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping):
        text = part.get("text") if part.get("type", "text") == "text" else None
        return text if isinstance(text, str) else ""
    return part if isinstance(part, str) else ""
