"""``python -m benchmarks.estimate [--tflops T]``: what whole data sets would take on 1, 8 and 64 GPUs.

Measured: the passes that an attack's curve costs an image, in the rows of the finished run in ``results/``; the
floating-point operations of a pass, counted by PyTorch. Assumed: that an image of CIFAR-10 costs as many passes as one
of MNIST; six architectures as one and a half times the four of params.yaml; and the speed of a GPU, which is measured
if there is one here. A pass back to the input costs as much as one forward, one back to the weights twice that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Params, load_params
from pipeline.folders import RESULTS
from pipeline.nets import build
from pipeline.progress import duration

GPUS = (1, 8, 64)
ASSUMED = 5e12  # operations a second: a tenth of what the makers of large GPUs promise in float32
ARCHITECTURES, SEEDS = 6, 10
CHUNKS = (1000, 100)


@dataclass(frozen=True)
class Dataset:
    """A data set as its papers use it."""

    name: str
    in_shape: tuple[int, int, int]
    train: int
    test: int
    epochs: int


DATASETS = (Dataset("MNIST", (1, 28, 28), 60_000, 10_000, 30), Dataset("CIFAR-10", (3, 32, 32), 50_000, 10_000, 100))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate")
    parser.add_argument("--tflops", type=float, help="10¹² operations a second of one GPU; else measured or assumed")
    given = parser.parse_args().tflops
    params = load_params()
    passes = passes_per_image(params)
    speed, source = (given * 1e12, "given") if given else _speed(params)
    print(f"One GPU: {speed / 1e12:.1f} × 10¹² operations a second ({source}).")
    for dataset in DATASETS:
        flops = {model: _flops(params, model, dataset.in_shape) for model in params.models}
        _print(dataset, flops, passes, speed)


def passes_per_image(params: Params) -> pd.DataFrame:
    """Forwards and backwards of an image's whole curve: attacks × models, means over images and seeds."""
    columns = ["index", "seed", "n_forwards", "n_backwards"]
    found = pd.DataFrame(index=list(params.attacks), columns=list(params.models), dtype=float)
    for model in params.models:
        for attack in params.attacks:
            path = RESULTS / model / f"{attack}.parquet"
            if not path.is_file():
                sys.exit(f"error: {path} is missing: the estimate rests on a finished run; say `make repro` first")
            rows = pd.read_parquet(path, columns=columns)
            images = rows.groupby(["seed", "index"]).ngroups
            found.loc[attack, model] = (rows["n_forwards"] + rows["n_backwards"]).sum() / images
    return found


def _flops(params: Params, model: str, in_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one image's forward pass."""
    net = build(params.models[model], in_shape=in_shape, n_classes=10, seed=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.rand(1, *in_shape))
    return float(counter.get_total_flops())


def _speed(params: Params) -> tuple[float, str]:
    if not torch.cuda.is_available():
        return ASSUMED, "assumed: no GPU was here to measure"
    model = max(params.models)
    net = build(params.models[model], in_shape=(1, 28, 28), n_classes=10, seed=0).eval().cuda()
    return 2 * 1000 * _flops(params, model, (1, 28, 28)) / _seconds(net), f"{model}, batches of 1000, measured here"


def _seconds(net: nn.Module, *, rounds: int = 20) -> float:
    """Of a pass to the logits and back to 1,000 images on the GPU."""
    inputs = torch.rand(1000, 1, 28, 28, device="cuda", requires_grad=True)
    net.requires_grad_(False)
    for i in range(rounds + 5):
        if i == 5:
            torch.cuda.synchronize()
            started = time.perf_counter()
        torch.autograd.grad(net(inputs).sum(), inputs)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / rounds


def _print(dataset: Dataset, flops: Mapping[str, float], passes: pd.DataFrame, speed: float) -> None:
    scale = ARCHITECTURES / len(flops) * SEEDS
    training = scale * sum(flops.values()) * 3 * dataset.train * dataset.epochs / speed
    of_attack = {
        attack: scale * dataset.test * sum(costs[model] * flops[model] for model in flops) / speed
        for attack, costs in passes.iterrows()
    }
    total = sum(of_attack.values())
    print(f"\n### {dataset.name}: {ARCHITECTURES} architectures × {SEEDS} seeds × {len(of_attack)} attacks\n")
    print(f"| what | {' | '.join(f'GPUs: {n}' for n in GPUS)} |\n| --- |{' ---: |' * len(GPUS)}")
    print(f"| training, {dataset.epochs} epochs, nets in turn | {duration(training)} {'| as on one ' * 2}|")
    print(f"| training, nets side by side | {' | '.join(duration(training / min(n, 60)) for n in GPUS)} |")
    for chunk in CHUNKS:
        rounds = [math.ceil(dataset.test / chunk / n) * chunk / dataset.test for n in GPUS]
        print(f"| attacks, chunks of {chunk} | {' | '.join(duration(total * share) for share in rounds)} |")
    print("\nOf the attacks' time: ", end="")
    largest = sorted(of_attack.items(), key=lambda item: -item[1])
    print(", ".join(f"{attack} {100 * seconds / total:.0f} %" for attack, seconds in largest) + ".")


if __name__ == "__main__":
    main()
