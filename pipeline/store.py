"""What is finished and need never be computed again, each under its key: seals, locks, and small results as JSON.

Keys hash everything that determines a result (``pipeline.provenance``), so nothing here is ever stale; the folder may
be deleted at any time, at the price of computing again. What a bad disk has changed is found by its seal, a file of
checksums beside it, and computed again. Judged rows have a module of their own (``pipeline.row_store``): tables take a
second to import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import UserError
from pipeline.files import sha256, write_json, write_text

STORE = Path(".store")


class LockedError(UserError):
    """Another run is computing the same cell."""


@contextmanager
def locked(name: str, *, store: Path = STORE) -> Iterator[None]:
    """Hold a cell's lock; it is released by the operating system even if the process is killed.

    Raises:
        LockedError: another process holds it.
    """
    path = store / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=1):
            yield
    except Timeout as error:
        raise LockedError(f"{name}: another run is computing this cell ({path}); wait for it or stop it") from error


def is_locked(name: str, *, store: Path = STORE) -> bool:
    """Whether a run is computing this cell now."""
    path = store / "locks" / f"{name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):  # held for an instant, which ``locked`` waits for
            return False
    except Timeout:
        return True


def seal(*paths: Path) -> None:
    """Write down the checksums of the files that belong together, beside the first of them."""
    write_text(_seal(paths), _checksums(paths))


def is_intact(*paths: Path) -> bool:
    """Whether the files are there and as they were when sealed; without a seal (older stores) they are believed."""
    if not all(path.is_file() for path in paths):
        return False
    try:
        return _seal(paths).read_bytes() == _checksums(paths).encode()
    except FileNotFoundError:
        return True


def _seal(paths: Sequence[Path]) -> Path:
    return paths[0].with_suffix(".sha256")


def _checksums(paths: Sequence[Path]) -> str:
    return "".join(f"{sha256(path)}  {path.name}\n" for path in paths)


def remembered(kind: str, key: str, compute: Callable[[], Any], *, store: Path = STORE) -> Any:
    """What ``compute`` returned, as JSON has it, under its key: from the store, or computed now if it is not there."""
    path = store / kind / f"{key}.json"
    if is_intact(path):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            pass  # damaged before there were seals
    write_json(path, compute())
    seal(path)
    return json.loads(path.read_text(encoding="utf-8"))
