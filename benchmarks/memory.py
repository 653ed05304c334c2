"""``python -m benchmarks.memory``: memory of a gradient against the number of solver steps, adjoint and backprop.

On a CPU, the most bytes that autograd holds at once for the way back, each storage counted once; on a GPU, the
allocator's peak. The adjoint needs the end of the trajectory alone, so its line is flat; backprop keeps every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.models.base import BlockConfig
from pipeline.models.vector_field import TimeField
from pipeline.ode import SolverConfig, solve
from pipeline.report.style import line_style, save_png, styled

STEPS = (1, 2, 4, 8, 16, 32, 64)
STATE = (32, 32, 6, 6)
FIGURE = Path("docs/figures/memory.png")


class Kept:
    """Bytes that autograd holds for the way back; tensors that share a storage count once. ``peak`` is the most."""

    def __init__(self) -> None:
        self.holders: Counter[int] = Counter()
        self.live = self.peak = 0

    def pack(self, tensor: Tensor) -> Held:
        held = Held(self, tensor)
        if not self.holders[held.address]:
            self.live += held.size
            self.peak = max(self.peak, self.live)
        self.holders[held.address] += 1
        return held

    def release(self, held: Held) -> None:
        self.holders[held.address] -= 1
        if not self.holders[held.address]:
            self.live -= held.size

    def hooks(self) -> AbstractContextManager[object]:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda held: held.tensor)


class Held:
    """A tensor that a graph holds; it goes with the graph."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # Detached: a result that its own node saves would hold that node, and the two each other.
        self.kept, self.tensor = kept, tensor.detach()
        self.address, self.size = storage.data_ptr(), storage.nbytes()

    def __del__(self) -> None:
        self.kept.release(self)


def main() -> None:
    """Print the table and draw the picture."""
    curves = {gradient: [measure(gradient, steps) for steps in STEPS] for gradient in ("backprop", "adjoint")}
    print("| rk4 steps | " + " | ".join(f"{name}, MiB" for name in curves) + " |")
    print("| ---: |" + " ---: |" * len(curves))
    for i, steps in enumerate(STEPS):
        print(f"| {steps} | " + " | ".join(f"{sizes[i] / 2**20:.2f}" for sizes in curves.values()) + " |")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    save_png(draw(curves), FIGURE)


def measure(gradient: str, steps: int) -> int:
    """Bytes for one solve and its gradient, of the architectures' vector field on a batch of states."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    field = TimeField(BlockConfig(channels=STATE[1], groups=8)).to(device)
    z0 = torch.randn(STATE, device=device, requires_grad=True)
    config = SolverConfig(method="rk4", steps=steps, gradient=gradient)  # type: ignore[arg-type]

    def run() -> None:
        bound, parameters = field.bind(z0)
        z1 = solve(bound, z0, t0=0.0, t1=1.0, config=config, parameters=parameters).z1
        torch.autograd.grad(z1.square().sum(), z0)

    return _peak_on_gpu(run) if device == "cuda" else _kept_on_cpu(run)


def _kept_on_cpu(run: Callable[[], None]) -> int:
    kept = Kept()
    with kept.hooks():
        run()
    return kept.peak


def _peak_on_gpu(run: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def draw(curves: dict[str, list[int]]) -> Figure:
    """Memory against steps, both logarithmic."""
    with styled():
        figure = Figure(figsize=(4.5, 2.9), layout="constrained")
        axes = figure.subplots()
        for position, (name, sizes) in enumerate(curves.items()):
            axes.plot(STEPS, [size / 2**20 for size in sizes], label=name, **line_style(position))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("rk4 steps")
        axes.set_ylabel("kept for the gradient, MiB")
        axes.legend()
    return figure


if __name__ == "__main__":
    main()
