"""``python -m benchmarks.startup``: what a stage spends before its first useful computation, and in how many cells.

Useful computation begins when a stage's modules are imported and params.yaml is read; a store that is there already
would make more of it look like start-up than it is, so nothing of the store is read. Beside the stages stands what none
of them can do without: torch and, for a training, an optimizer of torch's, which loads as much again.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.targets import Target
from benchmarks.timing import in_turns
from pipeline.config import Params, load_params
from pipeline.plan import read_costs

ROUNDS = 3
BARE, TORCH, OPTIMIZER = "an empty Python", "import torch", "torch and an optimizer"
FLOORS = {
    BARE: "pass",
    TORCH: "import torch",
    OPTIMIZER: "import torch; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])",
}
NOTHING_TO_TRAIN = "train, all in the store"
SECONDS = Target("≤", 5)
SHARE = Target("≤", 0.15)


def main() -> None:
    params = load_params()
    cells = count_cells(params)
    commands = FLOORS | {
        stage: f"import pipeline.stages.{stage}; from pipeline.config import load_params; load_params()"
        for stage in cells
    }
    commands |= {
        NOTHING_TO_TRAIN: commands["train"],
        "train": f"{commands['train']}; import pipeline.fitting, pipeline.live",  # stages.train imports these late
    }
    for command in commands.values():  # once, so that the disk's cache is warm for all
        _start(command)
    seconds = in_turns({name: partial(_start, command) for name, command in commands.items()}, rounds=ROUNDS)
    best = {name: min(times) for name, times in seconds.items()}
    print("| stage | cells | start-up of one s | in units of `import torch` |\n| --- | ---: | ---: | ---: |")
    for name, seconds_of_one in best.items():
        print(f"| {name} | {cells.get(name, '–')} | {seconds_of_one:.1f} | {seconds_of_one / best[TORCH]:.1f} |")
    total = sum(number * best[stage] for stage, number in cells.items())
    print(f"\nAll cells: {total:.0f} s. {_share(params, total)}\n")
    for stage in cells:
        print(f"- {stage}: s before useful computation {SECONDS.verdict(best[stage])}")


def count_cells(params: Params) -> Counter[str]:
    """Stages of dvc.yaml by their module, and how often params.yaml makes each run."""
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    entries = {"${models}": len(params.models), "${variants}": len(params.variants)}
    found: Counter[str] = Counter()
    for stage in stages.values():
        module = stage.get("do", stage)["cmd"].split()[2].rpartition(".")[2]
        found[module] += entries[stage["foreach"]] if "foreach" in stage else 1
    return found


def _start(command: str) -> None:
    subprocess.run([sys.executable, "-c", command], check=True)


def _share(params: Params, total: float) -> str:
    """Of training and attacks as they took before, and start-up."""
    costs = read_costs(params)
    try:
        training = sum(costs.epoch[name] * model.train.epochs for name, model in params.models.items())
        attacks = sum(
            costs.image[model, attack.name] * attack.n_images
            for model in params.attacked
            for attack in params.attacks.values()
        )
    except KeyError:
        return "No share: this store has not seen the whole run."
    work = (training + attacks) * len(params.seeds)
    return (
        f"Training and attacks took {work:.0f} s before: start-up as a share of the run "
        f"{SHARE.verdict(total / (work + total))}."
    )


if __name__ == "__main__":
    main()
