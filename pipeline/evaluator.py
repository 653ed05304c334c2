"""Attacking through Lightning's Trainer: ranks take whole chunks of examples, climb the strengths, store the rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline import schema
from pipeline.evaluate import Cell, Examples, Judged, evaluate, join, predict
from pipeline.parts import Parts
from pipeline.progress import Progress
from pipeline.store import RowStore, Unit

Attack = Callable[[float | None, Examples], Judged]


class Chunks(Dataset[tuple[int, Examples]]):
    """Fixed runs of consecutive examples: the unit of work, whatever the number of ranks."""

    def __init__(self, examples: Examples, chunk_size: int) -> None:
        self.examples, self.chunk_size = examples, chunk_size

    def __len__(self) -> int:
        return -(-len(self.examples) // self.chunk_size)

    def __getitem__(self, chunk: int) -> tuple[int, Examples]:
        if not 0 <= chunk < len(self):
            raise IndexError(chunk)
        start = chunk * self.chunk_size
        return chunk, self.examples.subset(range(start, min(start + self.chunk_size, len(self.examples))))


class Evaluator(pl.LightningModule):
    """One attack of params.yaml on one trained model; ``predict`` fills its row store and returns nothing."""

    def __init__(
        self,
        model: nn.Module,
        cell: Cell,
        chunks: Chunks,
        *,
        epsilons: Sequence[float | None],
        climbs: bool,
        store: RowStore,
        parts: Parts,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)  # only inputs need gradients: weights' would be wasted work
        self.cell, self.chunks, self.store = cell, chunks, store
        self.epsilons, self.climbs, self.parts = epsilons, climbs, parts
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no chunk

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's chunks; a rank without chunks has nothing to do and writes nothing."""
        mine = range(self.trainer.global_rank, len(self.chunks), self.trainer.world_size)
        return DataLoader(self.chunks, sampler=mine, batch_size=None)

    def on_predict_start(self) -> None:
        of_rank = range(self.trainer.global_rank, len(self.chunks), self.trainer.world_size)
        name = f"{self.cell.model} · {self.cell.attack} · seed {self.cell.seed}"
        self.progress = Progress(name, len(of_rank))

    def predict_step(self, batch: tuple[int, Examples], batch_idx: int) -> None:
        chunk, examples = batch
        # Not needed if the store has it all.
        clean_logits = functools.cache(lambda: torch.cat(self.parts.each(self._predict, examples)))

        def attack(epsilon: float | None, some: Examples) -> Judged:
            logits = clean_logits()[[examples.indices.index(index) for index in some.indices]]
            judged = self._attack(epsilon, some, logits)
            if self.trainer.is_global_zero:
                self.progress.reach(batch_idx + (self.epsilons.index(epsilon) + 1) / len(self.epsilons))
            return judged

        with torch.enable_grad():
            climb(chunk, examples, self.store, epsilons=self.epsilons, climbs=self.climbs, attack=attack)

    def _predict(self, examples: Examples) -> Tensor:
        return predict(self.model, examples)

    def _attack(self, epsilon: float | None, examples: Examples, clean_logits: Tensor) -> Judged:
        of_example = dict(zip(examples.indices, clean_logits, strict=True))

        def attack(part: Examples) -> Judged:
            logits = torch.stack([of_example[index] for index in part.indices])
            return evaluate(self.model, part, self.cell, epsilon=epsilon, clean_logits=logits)

        return join(self.parts.each(attack, examples))

    def transfer_batch_to_device(
        self, batch: tuple[int, Examples], device: torch.device, _dataloader_idx: int
    ) -> tuple[int, Examples]:
        chunk, examples = batch
        inputs, labels = examples.inputs.to(device), examples.labels.to(device)
        return chunk, Examples(examples.indices, inputs, labels, examples.sha256)


def climb(
    chunk: int,
    examples: Examples,
    store: RowStore,
    *,
    epsilons: Sequence[float | None],
    climbs: bool,
    attack: Attack,
) -> pd.DataFrame:
    """The rows of a chunk at all strengths, ascending; only what the store lacks is attacked and stored.

    With ``climbs`` an example that fell at one strength is not attacked at higher ones: its row there is the row of
    its fall, marked ``inherited``. Which rows inherit depends on the strengths asked for alone, never on what the
    store happened to hold.
    """
    standing = list(range(len(examples)))
    fallen = pd.DataFrame()
    parts: list[pd.DataFrame] = []
    for epsilon in epsilons:
        rows = _attacked(chunk, examples.subset(standing), store, epsilon, attack)
        inherited = fallen.assign(epsilon=epsilon, inherited=True, n_forwards=0, n_backwards=0, seconds=0.0)
        parts += [rows, inherited]
        if climbs:
            fallen = pd.concat([fallen, rows[rows["success"]]])
            down = set(fallen["index"])
            standing = [i for i in standing if examples.indices[i] not in down]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _attacked(chunk: int, examples: Examples, store: RowStore, epsilon: float | None, attack: Attack) -> pd.DataFrame:
    """Rows of these examples at one strength, from the store or attacked now; in the order of index and draw."""
    stored = store.load(chunk, epsilon)
    rows = schema.empty() if stored is None else stored.rows
    known = set(rows["index"])
    missing = [i for i, index in enumerate(examples.indices) if index not in known]
    if missing:
        judged = attack(epsilon, examples.subset(missing))
        store.add(chunk, epsilon, Unit(judged.rows, _images(judged)))
        rows = pd.concat([rows, judged.rows]) if len(rows) else judged.rows
    wanted = rows[rows["index"].isin(examples.indices)]
    return wanted.sort_values(["index", "draw"], ignore_index=True)


def _images(judged: Judged) -> dict[str, Tensor]:
    """What is kept beside the rows: the first draw's images, and fields, with the examples' indices."""
    first = judged.rows.loc[judged.rows["draw"] == 0, "index"]
    images = {"index": torch.tensor(first.tolist(), dtype=torch.int64), "adv_inputs": judged.adv_inputs.cpu()}
    return images if judged.deformation is None else images | {"deformation": judged.deformation.cpu()}
