"""``python -m benchmarks.field``: what the time-conditioned vector field costs beside its two convolutions alone.

The usual way to tell a convolution the time is to concatenate a channel of it to the state (Chen et al. 2018, and
torchdiffeq's example): a copy of the state, and a convolution over one channel more. Ours adds t times a map that
depends on the weights alone; the two are equal in exact arithmetic (``tests/analytic/test_ode.py``). Beside the field
stand a solve, a training step and a gradient for an attack, with either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.targets import Target
from benchmarks.timing import in_turns, ratio
from pipeline.models.base import BlockConfig
from pipeline.models.vector_field import TimeField
from pipeline.ode import SolverConfig, solve

BATCH, ROUNDS, CALLS = 128, 15, 20
SHAPES = {(32, 6): Target("≤", 1.5), (64, 13): Target("≤", 1.15)}  # (channels, side): time of the field / convolutions
RK4 = SolverConfig(method="rk4", steps=4, gradient="backprop")


class Concatenated(nn.Module):
    """The same field with time as a channel of the state."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm1, self.norm2 = (nn.GroupNorm(config.groups, width) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width + 1, width, 3, padding=1) for _ in range(2))

    def bind(self, _z: Tensor) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...]]:
        """The field, and what it reads; as ``TimeField.bind``."""
        return self, tuple(self.parameters())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = torch.ones_like(z[:, :1]) * t
        hidden = self.conv1(torch.cat((time, F.relu(self.norm1(z), inplace=True)), dim=1))
        velocity: Tensor = self.conv2(torch.cat((time, F.relu(self.norm2(hidden), inplace=True)), dim=1))
        return velocity


Field = TimeField | Concatenated


def main() -> None:
    """Print the tables and, below them, what must be reached."""
    print(f"{torch.get_num_threads()} threads, batch {BATCH}; time in units of the two convolutions alone\n")
    print("| state | ours | time concatenated | ours must reach |")
    print("| --- | ---: | ---: | ---: |")
    for (channels, side), target in SHAPES.items():
        ours, concatenated = _field_costs(channels, side)
        verdict = target.verdict(ours)
        print(f"| {channels} × {side} × {side} | {ours:.2f} | {concatenated:.2f} | {verdict} |", flush=True)
    print("\n| 32 × 6 × 6, rk4 with 4 steps | ours, ms | time concatenated, ms | ours is faster |")
    print("| --- | ---: | ---: | ---: |")
    for name, (ours, concatenated, gain) in _solve_costs(32, 6).items():
        print(f"| {name} | {ours:.2f} | {concatenated:.2f} | × {gain:.2f} |")


def _field_costs(channels: int, side: int) -> tuple[float, float]:
    """Time of an evaluation in units of the convolutions': ours and concatenated."""
    config, z = BlockConfig(channels=channels, groups=8), torch.randn(BATCH, channels, side, side)
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    bound, concatenated, t = TimeField(config).bind(z)[0], Concatenated(config), torch.tensor(0.3)
    tasks = {
        "convolutions": lambda: convolutions[1](convolutions[0](z)),
        "ours": lambda: bound(t, z),
        "concatenated": lambda: concatenated(t, z),
    }
    with torch.no_grad():
        seconds = in_turns({name: _repeated(task) for name, task in tasks.items()}, rounds=ROUNDS)
    return ratio(seconds, "ours", "convolutions"), ratio(seconds, "concatenated", "convolutions")


def _solve_costs(channels: int, side: int) -> dict[str, tuple[float, float, float]]:
    """Milliseconds of ours and concatenated, and how much faster ours is, for what a solve is used for."""
    config, z = BlockConfig(channels=channels, groups=8), torch.randn(BATCH, channels, side, side)
    fields: dict[str, Field] = {"ours": TimeField(config), "concatenated": Concatenated(config)}
    found = {}
    for name, make in (("per evaluation (nfe)", _evaluate), ("training step", _train), ("attack step", _attack)):
        tasks = {which: make(field, z) for which, field in fields.items()}
        for task in tasks.values():
            task()
        seconds = in_turns(tasks, rounds=ROUNDS)
        share = 4 * 4 if make is _evaluate else 1  # rk4 evaluates four times in each of four steps
        ours, concatenated = (1e3 * sorted(seconds[which])[ROUNDS // 2] / share for which in tasks)
        found[name] = (ours, concatenated, ratio(seconds, "concatenated", "ours"))
    return found


def _z1(field: Field, z: Tensor) -> Tensor:
    bound, parameters = field.bind(z)
    return solve(bound, z, t0=0.0, t1=1.0, config=RK4, parameters=parameters).z1


def _evaluate(field: Field, z: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: _z1(field, z))


def _train(field: Field, z: Tensor) -> Callable[[], object]:
    """Forward, backward to weights and state (a stem lies below), and the optimiser's step."""
    optimizer, start = torch.optim.AdamW(field.parameters()), z.clone().requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        _z1(field, start).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _attack(field: Field, z: Tensor) -> Callable[[], object]:
    """Forward, and backward to the state alone."""
    field.requires_grad_(False)
    start = z.clone().requires_grad_()
    return lambda: torch.autograd.grad(_z1(field, start).square().mean(), start)


def _repeated(task: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            task()

    run()
    return run


if __name__ == "__main__":
    main()
