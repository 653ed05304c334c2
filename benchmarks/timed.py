"""``python -m benchmarks.timed FOLDER -- COMMAND``: run the benchmark in that folder and write down how long it took.

FOLDER/timing.json has the seconds, hashes of FOLDER/reports/curves.csv and of what FOLDER/params.yaml says, which they
belong to, and the seconds of a reference loop, timed before and after the command: on a slower machine both take
longer, and their ratio stays.
``python -m pipeline compare`` compares the ratios of two runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.config import load_params
from pipeline.files import digest, sha256, write_json

ROUNDS, PASSES = 5, 60


def main() -> None:
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit("usage: python -m benchmarks.timed FOLDER -- COMMAND")
    folder, command = Path(sys.argv[1]), sys.argv[3:]
    before = reference()
    started = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - started
    if status:
        sys.exit(status)
    timing = {
        "seconds": seconds,
        "reference": statistics.median(before + reference()),
        "curves": sha256(folder / "reports" / "curves.csv"),
        "params": digest(asdict(load_params(folder / "params.yaml"))),
    }
    write_json(folder / "timing.json", timing)


def reference() -> list[float]:
    """Seconds of each round of what the benchmark does most: convolutions, forward and back to the images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 32, 14, 14, generator=generator, requires_grad=True)
    weights = torch.rand(32, 32, 3, 3, generator=generator)
    found = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(PASSES):
            torch.autograd.grad(F.conv2d(images, weights, padding=1).relu().sum(), images)
        found.append(time.perf_counter() - started)
    return found[1:]  # the first is warming up


if __name__ == "__main__":
    main()
