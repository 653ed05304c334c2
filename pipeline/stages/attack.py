"""attack: every attack on every seed of one architecture; ``python -m pipeline.stages.attack <model>``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

from pipeline.attacker import attack
from pipeline.attacking import AttackRun, write_attack
from pipeline.cells import make_cell
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.files import atomic_directory
from pipeline.folders import DATA, RESULTS
from pipeline.nets import Target, load_target
from pipeline.stages import common
from pipeline.stages.common import is_first_rank, pick
from pipeline.stages.launcher import launch
from pipeline.store import locked


def main() -> None:
    params = load_params()
    launch(params.compute)
    model = pick(params.attacked, sys.argv, "models")
    trained = params.trained(model.name).name
    split, card = read_split(DATA, "test"), read_card(DATA)
    with ExitStack() as stack:
        if is_first_rank():
            stack.enter_context(locked(f"attack-{model.name}"))
        targets = [load_target(model, trained, seed, split, card["n_classes"]) for seed in params.seeds]
        runs = {name: attack_all(name, targets, params, split, card) for name in params.attacks}
        if is_first_rank():
            with atomic_directory(RESULTS / model.name) as folder:
                for name, finished in runs.items():
                    write_attack(finished, folder, name, n_examples=params.evaluate.n_examples)


def attack_all(name: str, targets: list[Target], params: Params, split: Split, card: dict[str, Any]) -> list[AttackRun]:
    """One attack on every seed."""
    runs = []
    for target in targets:
        entry, judge = params.attacks[name], params.evaluate
        cell = make_cell(target, entry, judge, dataset=params.dataset.kind, card=card)
        run = AttackRun(target, entry, judge, cell, split)
        attack(run, params.compute)
        runs.append(run)
    return runs


if __name__ == "__main__":
    common.run(main)
