"""transfer: every model's stored adversarial images on every other, and on its own weights solved otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pandas as pd

from pipeline.config import Params, load_params
from pipeline.datasets.base import read_card, read_split
from pipeline.files import atomic_directory, atomic_write
from pipeline.folders import DATA, RESULTS, TRANSFER
from pipeline.nets import load_target
from pipeline.settings import AttackEntry, Component
from pipeline.stages.common import run
from pipeline.store import locked
from pipeline.transferring import Source, read_sources, resolved, transferred

logger = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    with locked("transfer"), atomic_directory(TRANSFER) as folder:
        for name in params.transfer.attacks:
            rows = pd.concat(list(_rows(params, params.attacks[name])), ignore_index=True)
            with atomic_write(folder / f"{name}.parquet") as temporary:
                rows.to_parquet(temporary, index=False)
            logger.info("%s: %d images tried on other models, %.1f s", name, len(rows), rows["seconds"].sum())


def _rows(params: Params, attack: AttackEntry) -> Iterator[pd.DataFrame]:
    split, card = read_split(DATA, "test"), read_card(DATA)
    sources = {
        name: read_sources(RESULTS / name / f"{attack.name}.examples.safetensors", name, attack, params.seeds)
        for name in params.attacked
    }
    for target, trained, seed, foreign in _targets(params):
        net = load_target(target, trained, seed, split, card["n_classes"])
        for source in _sources(sources, target.name.partition("@")[0], seed, foreign=foreign):
            yield transferred(net, source, attack, params.evaluate, split, dataset=params.dataset.kind, card=card)


def _targets(params: Params) -> Iterator[tuple[Component, str, int, bool]]:
    """Who is tried: the model, whose weights it has, its seed, and whether on others' images instead of its own."""
    for name, model in params.attacked.items():
        trained = params.trained(name).name
        for seed in params.seeds:
            yield model, trained, seed, True
            for otherwise in resolved(model, params.transfer.solvers):
                yield otherwise, trained, seed, False


def _sources(sources: dict[str, dict[int, Source]], model: str, seed: int, *, foreign: bool) -> Iterator[Source]:
    for name, seeds in sources.items():
        for source_seed, source in seeds.items():
            if ((name, source_seed) != (model, seed)) == foreign:
                yield source


if __name__ == "__main__":
    run(main)
