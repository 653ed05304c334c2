"""refine: is each tied net an ODE? Its predictions with ever finer steps, on the first test images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.config import load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.files import atomic_directory, write_json
from pipeline.folders import DATA, REFINEMENT
from pipeline.nets import Target, load_target
from pipeline.refining import refine, refinement_key
from pipeline.stages.common import run
from pipeline.store import locked, remembered

IMAGES = 500


def main() -> None:
    params = load_params()
    split, card = read_split(DATA, "test"), read_card(DATA)
    with locked("refine"):
        found = {
            name: [
                _refined(load_target(model, name, seed, split, card["n_classes"]), split, card) for seed in params.seeds
            ]
            for name, model in params.models.items()
        }
        with atomic_directory(REFINEMENT) as folder:
            write_json(folder / "refinement.json", {name: seeds for name, seeds in found.items() if any(seeds)})


def _refined(target: Target, split: Split, card: dict[str, Any]) -> list[dict[str, Any]]:
    """From the store, or computed now; nothing for a net without tied blocks."""
    data = f"{card['splits']['test']['sha256']}, first {IMAGES}"
    key = refinement_key(target.weights_sha256, target.model.kind, target.model.config, data)
    images, labels = split.inputs[:IMAGES], split.labels[:IMAGES]
    found: list[dict[str, Any]] = remembered(
        "refinement", key, lambda: [asdict(one) for one in refine(target.net.eval(), images, labels)]
    )
    return found


if __name__ == "__main__":
    run(main)
