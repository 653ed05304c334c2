"""train: every seed of one architecture; ``python -m pipeline.stages.train <model>``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from pipeline.config import Params, load_params
from pipeline.datasets.base import SPLITS, read_card, read_split
from pipeline.files import atomic_directory, write_json
from pipeline.folders import CHECKPOINTS, DATA
from pipeline.stages.common import is_first_rank, pick, run
from pipeline.stages.launcher import launch
from pipeline.store import locked
from pipeline.training import train

if TYPE_CHECKING:
    from pipeline.live import LiveRun


def main() -> None:
    params = load_params()
    launch(params.compute)
    model = pick(params.models, sys.argv, "models")
    card = read_card(DATA)
    splits = {name: read_split(DATA, name) for name in SPLITS}
    with ExitStack() as stack:
        if is_first_rank():
            stack.enter_context(locked(f"train-{model.name}"))
        trained = {
            seed: train(model, seed, splits, card, params.compute, watchers=partial(watchers, params, model.name, seed))
            for seed in params.seeds
        }
        if is_first_rank():
            with atomic_directory(CHECKPOINTS / model.name) as folder:
                for seed, (weights, report) in trained.items():
                    save_file(weights, folder / f"seed-{seed}.safetensors", metadata={"key": report["key"]})
                    write_json(folder / f"seed-{seed}.json", report)


def watchers(params: Params, model: str, seed: int, key: str) -> list[LiveRun]:
    """Who tells of the training while it goes on."""
    if not params.compute.live:
        return []
    from pipeline.live import LiveRun  # loads Lightning, as a training does

    tags = {"level": "training", "model": model, "seed": str(seed), "dataset": params.dataset.kind}
    return [LiveRun(f"{model} · training · seed {seed}", key, tags)]


if __name__ == "__main__":
    run(main)
