"""``python -m benchmarks.peak``: peak memory of an attack cell against the number of its images and strengths.

The peak of the resident set over that of the same cell with the fewest images and strengths; each cell is a process of
its own. What is in memory at once is a chunk; the images of the test set themselves are, too, and are left out by
giving all cells the same test set.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.attacker import attack
from pipeline.attacking import AttackRun, write_attack
from pipeline.cells import make_cell
from pipeline.config import load_params
from pipeline.datasets.base import Split
from pipeline.nets import Target, build

MODEL = "neural_ode"
CHUNK = 50
CELLS = ((100, 2), (1000, 2), (100, 20), (1000, 20))


def main() -> None:
    peaks = {cell: peak(*cell) for cell in CELLS}
    print("| images | strengths | peak MiB | more than the first |\n| ---: | ---: | ---: | ---: |")
    for (images, strengths), found in peaks.items():
        print(f"| {images} | {strengths} | {found:.0f} | {100 * (found / peaks[CELLS[0]] - 1):+.1f} % |")


def peak(images: int, strengths: int) -> float:
    """MiB that a cell of one attack held at most, the writing of its rows included."""
    command = [sys.executable, "-m", "benchmarks.peak", str(images), str(strengths)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(finished.stdout.split()[-1])


def worker(images: int, strengths: int) -> None:
    params = load_params()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (max(n for n, _ in CELLS), 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(len(pixels)) % 10)
    net = build(params.models[MODEL], in_shape=split.in_shape, n_classes=10, seed=0).eval()
    epsilons = tuple(0.01 * (i + 1) for i in range(strengths))
    entry = replace(params.attacks["fgsm"], n_images=images, epsilons=epsilons)
    judge = replace(params.evaluate, chunk_size=CHUNK)
    target = Target(params.models[MODEL], 0, net, "untrained")
    cell = make_cell(target, entry, judge, dataset="random", card={"splits": {"test": {"sha256": "random"}}})
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = AttackRun(target, entry, judge, cell, split)
        attack(run, params.compute)
        write_attack([run], Path(folder), "fgsm", n_examples=CHUNK)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        worker(int(sys.argv[1]), int(sys.argv[2]))
