"""Chunks of examples that climb the strengths of an attack; what the store holds is not attacked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import schema
from pipeline.evaluate import Examples, Judged
from pipeline.row_store import RowStore, Unit

Chunk = tuple[int, Examples]  # its number, and who is in it
Attack = Callable[[float | None, Examples], Judged]


class Chunks(Dataset[Chunk]):
    """Fixed runs of consecutive examples: the unit of work, whatever the number of ranks."""

    def __init__(self, examples: Examples, chunk_size: int) -> None:
        self.examples, self.chunk_size = examples, chunk_size

    def __len__(self) -> int:
        return -(-len(self.examples) // self.chunk_size)

    def __getitem__(self, chunk: int) -> Chunk:
        if not 0 <= chunk < len(self):
            raise IndexError(chunk)
        start = chunk * self.chunk_size
        return chunk, self.examples.subset(range(start, min(start + self.chunk_size, len(self.examples))))


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
