"""One attack on one trained model: its run over all chunks, and the files that come of it."""

from __future__ import annotations

import logging
import time
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
from pipeline.datasets.base import Split
from pipeline.evaluate import Cell, Examples, Judged
from pipeline.evaluator import Chunks, Evaluator, climb
from pipeline.examples import first_examples
from pipeline.files import atomic_write
from pipeline.folders import examples_prefix
from pipeline.nets import Target
from pipeline.parts import Parts
from pipeline.schema import validate
from pipeline.settings import AttackEntry, ComputeConfig, EvaluateConfig
from pipeline.store import STORE, RowStore
from pipeline.trainer import make_trainer

logger = logging.getLogger(__name__)


class AttackRun:
    """An attack on one trained model; ``predict`` on all ranks, then ``rows`` and ``examples`` on one."""

    def __init__(self, target: Target, attack: AttackEntry, judge: EvaluateConfig, cell: Cell, split: Split) -> None:
        component = components.load("attacks", attack.kind)
        minimal = component.GOAL == "minimal"
        self.target, self.cell = target, cell
        self.coupled = cell.model in judge.batch_coupled
        self.epsilons: tuple[float | None, ...] = (None,) if minimal else attack.epsilons
        self.climbs = not minimal and bool(component.CLIMBS)
        self.chunks = Chunks(first_examples(split, attack.n_images), judge.chunk_size)
        self.store = RowStore(cell.config_hash, store=STORE)

    def predict(self, compute: ComputeConfig) -> None:
        """Attack what the store lacks; every finished unit is stored at once."""
        self.store.forget_crashed()
        started = time.perf_counter()
        evaluator = Evaluator(
            self.target.net,
            self.cell,
            self.chunks,
            epsilons=self.epsilons,
            climbs=self.climbs,
            store=self.store,
            parts=Parts(compute.batch_size, whole=self.coupled),
        )
        trainer = make_trainer(compute, inference_mode=False)
        trainer.predict(evaluator, return_predictions=False)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            logger.info("%s, %.1f s", self.summary(), time.perf_counter() - started)

    def rows(self) -> Iterator[pd.DataFrame]:
        """The rows, chunk by chunk, from the store alone."""
        for chunk, examples in (self.chunks[i] for i in range(len(self.chunks))):
            rows = climb(chunk, examples, self.store, epsilons=self.epsilons, climbs=self.climbs, attack=_refuse)
            yield validate(rows, source=f"{self.cell.model}/{self.cell.attack}")

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
        return (
            f"{self.cell.model} · {self.cell.attack} · seed {self.cell.seed}: "
            f"robust accuracy {robust:.3f} {at}{warning}"
        )


def _refuse(epsilon: float | None, examples: Examples) -> Judged:
    raise RuntimeError(f"rows of examples {examples.indices} at strength {epsilon} are missing from the store")


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
