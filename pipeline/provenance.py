"""What code a result ran: the import closure of its modules, read from the sources without importing them."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_VERSIONED = ("torch", "torchvision", "torchdiffeq", "torchode", "pytorch-lightning", "numpy")


def module_path(module: str) -> Path | None:
    """The file of ``pipeline.…``, or None if there is no such module."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Modules of this project that a file imports anywhere in it, late imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(sorted(name for name in found if name.split(".")[0] == "pipeline" and module_path(name)))


def closure(modules: Iterable[str]) -> list[Path]:
    """Files of the modules and of everything of this project that they import, packages included, sorted.

    Raises:
        ModuleNotFoundError: a module has no file here.
    """
    seen: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None:
            raise ModuleNotFoundError(f"{name} is no module of this project")
        if path not in seen:
            seen.add(path)
            waiting += imports(path)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return sorted(seen)


def code_hash(modules: Iterable[str]) -> str:
    """Hash of the closure's paths and contents."""
    state = hashlib.sha256()
    for path in closure(modules):
        state.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


@cache
def environment() -> dict[str, str]:
    """What else decides a number: the lock file, and the versions really installed (GPU machines carry their own)."""
    lock = ROOT / "requirements.lock"
    pinned = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "absent"
    return {"requirements.lock": pinned} | {name: importlib.metadata.version(name) for name in _VERSIONED}
