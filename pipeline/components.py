"""Finding components by name: ``pipeline/<room>/<kind>.py`` is all it takes to add one."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal

Room = Literal["models", "attacks", "defences", "datasets"]
_ENTRY_POINT: dict[Room, str] = {
    "models": "build",
    "attacks": "attack",
    "defences": "loss",
    "datasets": "load",
}


class UnknownComponentError(ValueError):
    """No component of that name; the message names the nearest known one."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: the nearest known name and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(names)}"


def kinds(room: Room) -> list[str]:
    """Names of all components of a room: its modules that define the entry point (helpers beside them do not)."""
    package = importlib.import_module(f"pipeline.{room}")
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg)
    return [name for name in names if hasattr(importlib.import_module(f"pipeline.{room}.{name}"), _ENTRY_POINT[room])]


def load(room: Room, kind: str) -> Any:
    """The component's module.

    Raises:
        UnknownComponentError: ``kind`` is no component of this room; nothing outside the room can be named.
    """
    # iter_modules first: a name with dots or slashes never reaches the import system.
    package = importlib.import_module(f"pipeline.{room}")
    if kind in {info.name for info in pkgutil.iter_modules(package.__path__)}:
        module: ModuleType = importlib.import_module(f"pipeline.{room}.{kind}")
        if hasattr(module, _ENTRY_POINT[room]):
            return module
    raise UnknownComponentError(f"unknown kind {kind!r}; {nearest(kind, kinds(room))}")
