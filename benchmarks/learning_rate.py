"""``python -m benchmarks.learning_rate``: how ``train.learning_rate`` was chosen, alike for all architectures.

Every architecture of params.yaml is trained at every rate with seeds that the benchmark does not use. Only the training
and validation splits are read. The rate of the least mean validation loss is the one for all.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

from pipeline.config import load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.folders import DATA
from pipeline.settings import Architecture, ComputeConfig
from pipeline.training import train

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
SEEDS = (100, 101)


def main() -> None:
    """Print the table."""
    logging.disable(logging.INFO)
    params = load_params()
    splits = {name: read_split(DATA, name) for name in ("train", "validation")}
    card = read_card(DATA)
    print(f"validation loss (accuracy), mean of seeds {', '.join(map(str, SEEDS))}\n")
    print(f"| learning rate | {' | '.join(params.models)} | mean |")
    print("| ---: |" + " ---: |" * (len(params.models) + 1))
    for rate in RATES:
        train = dataclasses.replace(params.train, learning_rate=rate)
        trials = [dataclasses.replace(model, train=train) for model in params.models.values()]
        scores = [_score(model, splits, card, params.compute) for model in trials]
        cells = [f"{loss:.3f} ({accuracy:.3f})" for loss, accuracy in scores]
        print(f"| {rate:g} | {' | '.join(cells)} | {statistics.mean(loss for loss, _ in scores):.3f} |", flush=True)


def _score(
    model: Architecture, splits: dict[str, Split], card: dict[str, Any], compute: ComputeConfig
) -> tuple[float, float]:
    """Loss and accuracy on validation of the checkpoint that training chooses: mean over the seeds."""
    losses, accuracies = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as store:
            _, report = train(model, seed, splits, card, compute, store=Path(store))
        losses.append(min(epoch["validation_loss"] for epoch in report["history"]))
        accuracies.append(report["accuracy"]["validation"])
    return statistics.mean(losses), statistics.mean(accuracies)


if __name__ == "__main__":
    main()
