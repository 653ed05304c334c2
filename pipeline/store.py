"""What is finished and need never be computed again: trained weights and judged rows, each under its key.

Keys hash everything that determines a result (``pipeline.provenance``), so nothing here is ever stale; the folder may
be deleted at any time, at the price of computing again. What a bad disk has changed is found by its seal, a file of
checksums beside it, and computed again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import atomic_write, sha256, write_json, write_text
from pipeline.schema import validate

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


@dataclass(frozen=True)
class Unit:
    """Rows of some examples of one chunk at one strength, with the images (and fields) they were judged on."""

    rows: pd.DataFrame
    images: dict[str, Tensor]


class RowStore:
    """Units of one cell (model × seed × attack), a pair of files each: ``<chunk>-<epsilon>-<part>.parquet`` + images.

    A unit may come in parts: when a lower strength is removed from params, examples that had fallen there must be
    attacked after all, and are added.
    """

    def __init__(self, key: str, *, store: Path = STORE) -> None:
        self.folder = store / "rows" / key

    def load(self, chunk: int, epsilon: float | None) -> Unit | None:
        """Everything stored of a chunk at a strength, or None. A damaged file counts as absent and is removed."""
        units = [unit for path in self._paths(chunk, epsilon) if (unit := _read(path)) is not None]
        if not units:
            return None
        images = {name: torch.cat([unit.images[name] for unit in units]) for name in units[0].images}
        return Unit(pd.concat([unit.rows for unit in units], ignore_index=True), images)

    def forget_crashed(self) -> None:
        """Remove units whose attack raised: the next run tries them again."""
        for path in self.folder.glob("*.parquet"):
            unit = _read(path)
            if unit is not None and (unit.rows["status"] == "crashed").any():
                _remove(path)

    def add(self, chunk: int, epsilon: float | None, unit: Unit) -> None:
        """Store one more part; visible as a whole or not at all (the rows are written last)."""
        taken = [int(path.stem.rpartition("-")[2]) for path in self._paths(chunk, epsilon)]
        path = self.folder / f"{_name(chunk, epsilon)}-{max(taken, default=-1) + 1}.parquet"
        images = path.with_suffix(".safetensors")
        with atomic_write(images) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in unit.images.items()}, temporary)
        with atomic_write(path) as temporary:
            unit.rows.to_parquet(temporary, index=False)
        seal(path, images)

    def _paths(self, chunk: int, epsilon: float | None) -> list[Path]:
        pattern = re.compile(re.escape(_name(chunk, epsilon)) + r"-\d+\.parquet")
        return sorted(path for path in self.folder.glob("*.parquet") if pattern.fullmatch(path.name))


def _name(chunk: int, epsilon: float | None) -> str:
    return f"{chunk:06d}-{'minimal' if epsilon is None else repr(epsilon)}"


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


def read_rows(path: Path) -> pd.DataFrame | None:
    """Stored rows, or None; a damaged file counts as absent and is removed."""
    if is_intact(path):
        try:
            return validate(pd.read_parquet(path), source=str(path))
        except Exception:  # pyarrow raises many kinds for a damaged file; all mean "compute it again"
            pass
    _remove(path)
    return None


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Store rows under their key's name."""
    with atomic_write(path) as temporary:
        rows.to_parquet(temporary, index=False)
    seal(path)


def _read(path: Path) -> Unit | None:
    images = path.with_suffix(".safetensors")
    if is_intact(path, images):
        try:
            return Unit(validate(pd.read_parquet(path), source=str(path)), load_file(images))
        except Exception:  # as in read_rows
            pass
    _remove(path)
    return None


def _remove(path: Path) -> None:
    for suffix in (".parquet", ".safetensors", ".sha256"):
        path.with_suffix(suffix).unlink(missing_ok=True)
