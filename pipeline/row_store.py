"""Judged rows and the images they were judged on, kept in the store (``pipeline.store``) under their cell's key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_write
from pipeline.schema import validate
from pipeline.store import STORE, is_intact, seal


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
            try:
                crashed = "crashed" in _table(path, columns=["status"])["status"].array
            except Exception:  # damaged: ``load`` sees to it
                continue
            if crashed:
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


def read_rows(path: Path) -> pd.DataFrame | None:
    """Stored rows, or None; a damaged file counts as absent and is removed."""
    if is_intact(path):
        try:
            return validate(_table(path), source=str(path))
        except Exception:  # pyarrow raises many kinds for a damaged file; all mean "compute it again"
            pass
    _remove(path)
    return None


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Store rows under their key's name."""
    with atomic_write(path) as temporary:
        rows.to_parquet(temporary, index=False)
    seal(path)


def _table(path: Path, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A few rows, without pandas' and pyarrow's ways for many, which take twice as long."""
    with pq.ParquetFile(path) as file:
        table: pd.DataFrame = file.read(columns=columns, use_threads=False).to_pandas()
    return table


def _read(path: Path) -> Unit | None:
    images = path.with_suffix(".safetensors")
    if is_intact(path, images):
        try:
            return Unit(validate(_table(path), source=str(path)), load_file(images))
        except Exception:  # as in read_rows
            pass
    _remove(path)
    return None


def _remove(path: Path) -> None:
    for suffix in (".parquet", ".safetensors", ".sha256"):
        path.with_suffix(suffix).unlink(missing_ok=True)
