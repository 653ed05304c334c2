"""``python -m benchmarks.scaling``: attacks and training on one and on two processes of one thread each, in turns.

The two share a machine; two cores give at most twice the speed, and less where they share a cache, a clock or a bus.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases import HARMLESS
from benchmarks.timing import Seconds, ratio
from pipeline.attacker import attack as run_attack
from pipeline.attacking import AttackRun
from pipeline.cells import make_cell
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split
from pipeline.nets import Target, build
from pipeline.row_store import RowStore
from pipeline.settings import ComputeConfig

MODEL = "neural_ode"
ROUNDS = 2
IMAGES, CHUNK = 1200, 50
TRAINED, EPOCHS = 1536, 6
BATCHES = {"training, batches of 64": 64, "training, batches of 256": 256}
TASKS = ("attack", *BATCHES)


def main() -> None:
    seconds = measure()
    print("| task | one process s | two processes s | faster |\n| --- | ---: | ---: | ---: |")
    for task in TASKS:
        one, two = (min(seconds[f"{task}: {processes}"]) for processes in (1, 2))
        faster = ratio(seconds, f"{task}: 1", f"{task}: 2")
        print(f"| {task} | {one:.1f} | {two:.1f} | {faster:.2f} × |")


def measure() -> Seconds:
    """Seconds of each task on each number of processes, round by round."""
    found: Seconds = {f"{task}: {processes}": [] for task in TASKS for processes in (1, 2)}
    for _ in range(ROUNDS):
        for name in found:
            task, _, processes = name.partition(": ")
            found[name].append(_run(task, int(processes)))
    return found


def _run(task: str, processes: int) -> float:
    """Seconds that the task itself took, without the start of its processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        launcher = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "--no-python", sys.executable]
        subprocess.run(
            [*launcher, "-m", "benchmarks.scaling", task, str(processes), str(path)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return float(path.read_text(encoding="utf-8"))


def worker(task: str, processes: int, path: Path) -> None:
    """One of the processes; the first of them writes down the seconds."""
    params = load_params()
    compute = ComputeConfig(
        accelerator="cpu",
        devices=processes,
        num_nodes=1,
        strategy="ddp" if processes > 1 else "auto",
        batch_size="auto",
        launcher=None,
        live=False,
    )
    if task == "attack":
        seconds = attack(params, compute, path.parent)
    else:
        seconds = training(params, compute, path.parent, batch_size=BATCHES[task])
    if os.environ["RANK"] == "0":
        path.write_text(str(seconds), encoding="utf-8")


def attack(params: Params, compute: ComputeConfig, folder: Path) -> float:
    """PGD where nothing falls: all steps on all images."""
    import pipeline.evaluator  # noqa: F401  (Lightning loads before the clock runs)

    split = _images(IMAGES)
    net = build(params.models[MODEL], in_shape=(1, 28, 28), n_classes=10, seed=0).eval()
    with torch.no_grad():
        split = Split(split.images, torch.cat([net(part).argmax(1) for part in torch.split(split.inputs, CHUNK)]))
    entry = replace(params.attacks["pgd"], n_images=IMAGES, epsilons=(HARMLESS,))
    judge = replace(params.evaluate, chunk_size=CHUNK)
    target = Target(params.models[MODEL], 0, net, "untrained")
    cell = make_cell(target, entry, judge, dataset="random", card={"splits": {"test": {"sha256": "random"}}})
    run = AttackRun(target, entry, judge, cell, split)
    run.store = RowStore("scaling", store=folder)
    started = time.perf_counter()
    run_attack(run, compute)
    return time.perf_counter() - started


def training(params: Params, compute: ComputeConfig, folder: Path, *, batch_size: int) -> float:
    """Six epochs."""
    from pipeline.training import train

    model = params.models[MODEL]
    model = replace(model, train=replace(model.train, epochs=EPOCHS, batch_size=batch_size))
    splits = {"train": _images(TRAINED), "validation": _images(100), "test": _images(100)}
    card = {"n_classes": 10, "splits": {name: {"sha256": name} for name in splits}}
    _, report = train(model, 0, splits, card, compute, store=folder)
    return float(report["seconds"])


def _images(number: int) -> Split:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(number) % 10)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        worker(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
