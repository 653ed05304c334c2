"""What there is to name in params.yaml, in the components' own words: their docstrings and their Configs."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import textwrap
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline import components
from pipeline.components import Room
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.fields import Range
from pipeline.settings import Component

WIDTH = 120
TITLES: dict[Room, str] = {
    "models": "architectures",
    "attacks": "attacks",
    "datasets": "data sets",
    "defences": "defences",
}
_DOES: dict[Room, str] = {"models": "build", "attacks": "attack", "datasets": "load", "defences": "loss"}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A key of a component's entry: what it may be, what it means, and whether the entry may go without it."""

    name: str
    values: str
    meaning: str
    optional: bool


def catalogue() -> str:
    """All components, a line each: kind, parameters (those with ? may be left out) and what it is."""
    lines = []
    for room, title in TITLES.items():
        lines += ["", f"{title} (pipeline/{room}/)"]
        kinds = components.kinds(room)
        width = max(map(len, kinds))
        for kind in kinds:
            module = components.load(room, kind)
            names = ", ".join(p.name + "?" * p.optional for p in parameters(module.Config))
            lines.append(f"  {kind:{width}}  {_first_line(module)} Parameters: {names or 'none'}.")
    return "\n".join(lines[1:])


def explain(name: str, params: Params | None) -> str:
    """Formula, source, parameters with their units, and cost of a component.

    Args:
        name: a kind in any room, or a key of params.yaml.
        params: where such keys are looked up.

    Raises:
        UserError: there is no such component.
    """
    entries = _entries(params)
    kind, rooms = name, [room for room in TITLES if name in components.kinds(room)]
    if not rooms and name in entries:
        kind, rooms = entries[name].kind, [entries[name].room]
    if not rooms:
        known = {kind for room in TITLES for kind in components.kinds(room)} | entries.keys()
        raise UserError(f"{name}: no such component; {components.nearest(name, known)}")
    return "\n\n".join(_explain(room, kind, entries.values()) for room in rooms)


def parameters(config: type) -> list[Parameter]:
    """The keys of a Config, in its order."""
    hints = get_type_hints(config, include_extras=True)
    fields = dataclasses.fields(config)
    meanings = _meanings(config, {field.name for field in fields})
    return [
        Parameter(f.name, _values(hints[f.name]), meanings.get(f.name, ""), f.default is not dataclasses.MISSING)
        for f in fields
    ]


def _entries(params: Params | None) -> dict[str, Component]:
    return {} if params is None else {**params.attacked, **params.attacks, params.dataset.kind: params.dataset}


def _explain(room: Room, kind: str, entries: Iterable[Component]) -> str:
    module = components.load(room, kind)
    used = [entry.name for entry in entries if (entry.room, entry.kind) == (room, kind)]
    parts = [f"{kind}: one of the {TITLES[room]} (pipeline/{room}/{kind}.py)", inspect.getdoc(module) or ""]
    if room == "attacks":
        ends = {
            "budget": "is run at every strength",
            "minimal": "seeks the smallest size; every strength is read off it",
        }
        parts.append(f"It {ends[module.GOAL]}. Norms: {', '.join(module.NORMS)}.")
    parts += ["Parameters:", "\n".join(_described(module.Config))]
    does = inspect.getdoc(getattr(module, _DOES[room]))
    parts += [f"What it does, and what it costs:\n\n{textwrap.indent(does, '  ')}"] if does else []
    parts += [f"In params.yaml: {', '.join(used)}."] if used else []
    if room in ("attacks", "defences"):
        parts.append(f"More: docs/{room}.md" + (f", section {kind}." if room == "attacks" else "."))
    return "\n\n".join(parts)


def _described(config: type, indent: str = "  ") -> Iterator[str]:
    """Parameters, each followed by those of the dataclass that it is made of."""
    for parameter in parameters(config):
        optional = ", may be left out" if parameter.optional else ""
        text = f"{parameter.name} ({parameter.values}{optional}): {parameter.meaning}"
        yield textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "    ")
        inner = _inner(get_type_hints(config)[parameter.name])
        if inner:
            yield from _described(inner, indent + "  ")
    if not dataclasses.fields(config):
        yield f"{indent}none"


def _inner(hint: Any) -> type | None:
    found = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
    return next((part for part in found if isinstance(part, type) and not issubclass(part, Component)), None)


def _meanings(config: type, names: set[str]) -> dict[str, str]:
    """What the Attributes of the docstrings of a Config and its bases say of each field."""
    found = {"norm": "what strengths are measured in."}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            # Parts of a line such as "train, validation, test: images of each" describe several fields at once.
            _, _, text = (inspect.getdoc(base) or "").partition("Attributes:")
            entry = re.compile(rf"(?:^|(?<=[\s;]))((?:{'|'.join(names)})(?:, (?:{'|'.join(names)}))*): ")
            _, *parts = entry.split(text.partition("\n\n")[0])
            for keys, meaning in zip(parts[::2], parts[1::2], strict=True):
                found |= dict.fromkeys(keys.split(", "), " ".join(meaning.split()).rstrip(";"))
    return found


def _values(hint: Any) -> str:
    """What the parser lets through, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [_bounds(extra) for extra in arguments[1:] if isinstance(extra, Range)]
        return _values(arguments[0]) + "".join(bounds)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_values, arguments))
    if isinstance(hint, type) and issubclass(hint, Component):
        return "a component's entry"
    return _WORDS.get(hint, "a mapping")


def _bounds(allowed: Range) -> str:
    signs = (("≥", allowed.ge), (">", allowed.gt), ("≤", allowed.le), ("<", allowed.lt))
    texts = [f"{sign} {bound:g}" for sign, bound in signs if math.isfinite(bound)]
    texts += [".inf allowed"] if allowed.infinite else []
    return f" {', '.join(texts)}" if texts else ""


def _first_line(module: types.ModuleType) -> str:
    first = (inspect.getdoc(module) or "").partition("\n")[0]
    return first if first.endswith(".") else f"{first}."
