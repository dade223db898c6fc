"""What a node or a tool gave, as JSON that is bounded in size."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

STATE = 65_536
"""Characters of a state, about. What is more is left out, and `…` stands in its place."""
TEXT = 10_000
"""Characters of one text in it."""
NAME = 200
DEPTH = 10
CUT = "…"


def as_state(value: Any) -> dict[str, Any] | None:
    """As the state of a step: what a node gives is an object already, all else becomes `{"output": …}`."""
    kept = plain(value)
    return kept if kept is None or isinstance(kept, dict) else {"output": kept}


def plain(value: Any) -> Any:
    """As JSON, bounded in size: messages as `{"type", "content"}`, anything odd as its repr."""
    try:
        return Plain().of(value)
    except Exception as error:  # as when another thread changes it meanwhile
        return f"<{type(value).__name__}: {type(error).__name__}>"


class Plain:
    def __init__(self) -> None:
        self._left = STATE

    def of(self, value: Any, depth: int = 0) -> Any:
        self._left -= 4
        if depth > DEPTH:
            return CUT
        match value:
            case None | bool():
                return value
            case int() if -(2**63) <= value < 2**63:
                return value
            case float() if math.isfinite(value):
                return value
            case str():
                return self._text(value)
            case Mapping():
                return self._object(value.items(), len(value), depth)
            case list() | tuple() | set() | frozenset():
                return self._list(value, depth)
            case UUID() | date() | Decimal() | PurePath():
                return self._text(str(value))
        try:
            return self._odd(value, depth)
        except Exception as error:  # whatever it does when it is looked at
            return f"<{type(value).__name__}: {type(error).__name__}>"

    def _odd(self, value: Any, depth: int) -> Any:
        if isinstance(getattr(value, "type", None), str) and hasattr(value, "content"):
            return self._object([("type", value.type), ("content", value.content)], 2, depth)
        if hasattr(value, "goto") and hasattr(value, "update"):  # a Command
            return self.of(value.update, depth)
        if names := fields(value):
            return self._object(((name, getattr(value, name)) for name in names), len(names), depth)
        return self._text(repr(value))

    def _text(self, text: str) -> str:
        return self._cut(text, max(min(TEXT, self._left), 0))

    def _cut(self, text: str, most: int) -> str:
        self._left -= min(len(text), most)
        return text[:] if len(text) <= most else text[:most] + CUT

    def _object(self, items: Iterable[tuple[Any, Any]], length: int, depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for n, (name, value) in enumerate(items):
            if self._left <= 0:
                kept[CUT] = length - n
                break
            kept[self._cut(str(name), NAME)] = self.of(value, depth + 1)
        return kept

    def _list(self, values: Collection[Any], depth: int) -> list[Any]:
        kept: list[Any] = []
        for value in values:
            if self._left <= 0:
                kept.append(CUT)
                break
            kept.append(self.of(value, depth + 1))
        return kept


def fields(value: Any) -> list[str]:
    """Of a dataclass or a Pydantic model."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [one.name for one in dataclasses.fields(value)]
    return list(getattr(type(value), "model_fields", {}))
