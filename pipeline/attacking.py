"""One attack on one trained model: its run over all chunks, and the files that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import components, provenance
from pipeline.climbing import Chunks, climb
from pipeline.datasets.base import Split
from pipeline.evaluate import Cell, Examples, Judged
from pipeline.examples import first_examples
from pipeline.files import atomic_write
from pipeline.folders import examples_prefix
from pipeline.nets import Target
from pipeline.row_store import RowStore
from pipeline.schema import validate
from pipeline.settings import AttackEntry, EvaluateConfig


class AttackRun:
    """An attack on one trained model: what is to be done, and what has come of it (``pipeline.attacker`` does it)."""

    def __init__(self, target: Target, attack: AttackEntry, judge: EvaluateConfig, cell: Cell, split: Split) -> None:
        component = components.load("attacks", attack.kind)
        minimal = component.GOAL == "minimal"
        self.target, self.cell = target, cell
        self.coupled = cell.model in judge.batch_coupled
        self.epsilons: tuple[float | None, ...] = (None,) if minimal else attack.epsilons
        self.climbs = not minimal and bool(component.CLIMBS)
        self.chunks = Chunks(first_examples(split, attack.n_images), judge.chunk_size)
        self.store = RowStore(cell.config_hash)

    @property
    def name(self) -> str:
        """Of the cell, for people."""
        return f"{self.cell.model} · {self.cell.attack} · seed {self.cell.seed}"

    def done(self) -> float:
        """Share of the attack's work that is stored, in chunks and strengths: from 0 to 1."""
        units = len(self.chunks) * len(self.epsilons)
        return sum(self._strengths_done(chunk) for chunk in range(len(self.chunks))) / units

    def _strengths_done(self, chunk: int) -> int:
        """Strengths that the chunk has behind it, those included at which nobody was left to attack."""
        try:
            self._climb(chunk)
        except _MissingError as missing:
            return self.epsilons.index(missing.epsilon)
        return len(self.epsilons)

    def _climb(self, chunk: int) -> pd.DataFrame:
        examples = self.chunks[chunk][1]
        return climb(chunk, examples, self.store, epsilons=self.epsilons, climbs=self.climbs, attack=_refuse)

    def rows(self) -> Iterator[pd.DataFrame]:
        """The rows, chunk by chunk, from the store alone."""
        for chunk in range(len(self.chunks)):
            yield validate(self._climb(chunk), source=f"{self.cell.model}/{self.cell.attack}")

    def examples(self, n: int) -> dict[str, Tensor]:
        """Images (and fields) of the first n examples per strength, named ``seed<S>/eps<EPSILON>/<tensor>``.

        An example that fell at a lower strength has no image of its own at a higher one and is absent there.
        """
        found: dict[str, Tensor] = {}
        for epsilon in self.epsilons:
            chunks = range(-(-n // self.chunks.chunk_size))
            units = [unit for chunk in chunks if (unit := self.store.load(chunk, epsilon)) is not None]
            prefix = examples_prefix(self.cell.seed, epsilon)
            for name in units[0].images if units else ():
                index = torch.cat([unit.images["index"] for unit in units])
                tensor = torch.cat([unit.images[name] for unit in units])
                found[f"{prefix}/{name}"] = tensor[index < n][index[index < n].argsort()]
        return found

    def summary(self) -> str:
        """One line: what was attacked and what is left of it."""
        last = pd.concat(
            [rows[rows["epsilon"].isna() | (rows["epsilon"] == self.epsilons[-1])] for rows in self.rows()]
        )
        robust = (last["clean_correct"] & ~last["success"]).mean()
        failed = int((~last["status"].isin(["ok", "stopped", "budget"])).sum())
        at = "at any strength" if self.epsilons[-1] is None else f"at {self.epsilons[-1]:g}"
        warning = f", {failed} ROWS FAILED" if failed else ""
        return f"{self.name}: robust accuracy {robust:.3f} {at}{warning}"


class _MissingError(RuntimeError):
    """The store lacks rows."""

    def __init__(self, epsilon: float | None, examples: Examples) -> None:
        super().__init__(f"rows of examples {examples.indices} at strength {epsilon} are missing from the store")
        self.epsilon = epsilon


def _refuse(epsilon: float | None, examples: Examples) -> Judged:
    raise _MissingError(epsilon, examples)


def write_attack(runs: Sequence[AttackRun], folder: Path, name: str, *, n_examples: int) -> None:
    """``<name>.parquet`` with the rows of all seeds, and ``<name>.examples.safetensors`` beside it."""
    with atomic_write(folder / f"{name}.parquet") as temporary:
        _write_rows(temporary, (rows for run in runs for rows in run.rows()))
    examples: dict[str, Tensor] = {}
    for run in runs:
        examples |= run.examples(n_examples)
    with atomic_write(folder / f"{name}.examples.safetensors") as temporary:
        save_file(examples, temporary)


def _write_rows(path: Path, parts: Iterable[pd.DataFrame]) -> None:
    """One part in memory at a time, so that a cell of many images needs no more than one of few."""
    with ExitStack() as stack:
        writer = None
        for rows in parts:
            rows.attrs = {"environment": provenance.environment()}
            table = pa.Table.from_pandas(rows, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)
