"""trajectories: how far attacked trajectories lie from the clean ones inside every net, on the examples kept."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline import components
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.errors import UserError
from pipeline.files import atomic_directory, write_json
from pipeline.folders import DATA, RESULTS, TRAJECTORIES
from pipeline.nets import Target, load_target
from pipeline.settings import AttackEntry
from pipeline.stages.common import run
from pipeline.store import locked, remembered
from pipeline.tracing import Perturbation, kept_images, trace, trace_key

IMAGES = 10  # of those kept: each costs 30 products with a Jacobian at every step


def main() -> None:
    params = load_params()
    split, card = read_split(DATA, "test"), read_card(DATA)
    attacks = choose(params.attacks)
    with locked("trajectories"):
        found = {}
        for name, model in params.models.items():
            targets = [load_target(model, name, seed, split, card["n_classes"]) for seed in params.seeds]
            found[name] = [_traced(target, attacks, params, split, card) for target in targets]
        with atomic_directory(TRAJECTORIES) as folder:
            write_json(folder / "trajectories.json", {name: seeds for name, seeds in found.items() if all(seeds)})


def choose(attacks: dict[str, AttackEntry]) -> list[AttackEntry]:
    """The first attack on pixels and the first on their places: PGD, and one whose fields do not fold, if there are."""
    pixels = [attack for attack in attacks.values() if attack.norm == "linf"]
    fields = [attack for attack in attacks.values() if attack.norm == "deformation"]
    pixels.sort(key=lambda attack: attack.kind != "pgd")
    fields.sort(key=lambda attack: not getattr(attack.config, "fold_free", False))
    return pixels[:1] + fields[:1]


def _traced(
    target: Target, attacks: list[AttackEntry], params: Params, split: Split, card: dict[str, Any]
) -> dict[str, Any] | None:
    """From the store, or computed now; None for a net without steps."""
    perturbations = [_perturbation(target, attack) for attack in attacks]
    n_images = min(params.evaluate.n_examples, IMAGES)
    data = f"{card['splits']['test']['sha256']}, first {n_images}"
    key = trace_key(target.weights_sha256, target.model.kind, target.model.config, data, perturbations)
    found: dict[str, Any] | None = remembered(
        "trajectories",
        key,
        lambda: (traced := trace(target.net, split.inputs[:n_images], perturbations)) and asdict(traced),
    )
    return found


def _perturbation(target: Target, attack: AttackEntry) -> Perturbation:
    """The attack at the middle one of its strengths; a minimal one has none."""
    path = RESULTS / target.model.name / f"{attack.name}.examples.safetensors"
    minimal = components.load("attacks", attack.kind).GOAL == "minimal"
    epsilon = None if minimal else attack.epsilons[(len(attack.epsilons) - 1) // 2]
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged; run `dvc repro --force attack@{target.model.name}`") from error
    images = kept_images(tensors, target.seed, epsilon)
    return Perturbation(attack.name, epsilon, {i: image for i, image in images.items() if i < IMAGES})


if __name__ == "__main__":
    run(main)
