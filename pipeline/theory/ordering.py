"""In one dimension trajectories cannot cross, so a flow keeps the order of all points. A coarse step need not.

ẋ = a(x - x³) has the solution x(t) = x₀ eᵃᵗ / √(1 + x₀²(e²ᵃᵗ - 1)), which rises with x₀. One Euler step of length h is
x + h a(x - x³): not monotone where 1 + h a(1 - 3x²) < 0, and monotone for every h below 1/L.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.seeds import derive_seed
from pipeline.theory.claims import Ordering
from pipeline.theory.fields import Field, flow, lines, train

STRENGTH, REACH = 3.0, 1.5
STEPS = (1, 2, 4, 8, 16, 32)


def exact(x: Tensor, t: Tensor) -> Tensor:
    """The solution, x and t broadcast against each other."""
    growth = torch.exp(STRENGTH * t)
    return x * growth / torch.sqrt(1 + x**2 * (growth**2 - 1))


def euler(x: Tensor, steps: int) -> Tensor:
    """(N,) to (N, steps + 1)."""
    states = [x]
    for _ in range(steps):
        states.append(states[-1] + STRENGTH * (states[-1] - states[-1] ** 3) / steps)
    return torch.stack(states, dim=1)


def reordered(start: Tensor, end: Tensor) -> float:
    """Share of the pairs of ascending starts whose ends descend."""
    pairs = torch.triu_indices(len(start), len(start), offset=1)
    return (end[pairs[0]] > end[pairs[1]]).double().mean().item()


def measure() -> Ordering:
    """Seconds: two nets of a few hundred parameters are trained."""
    starts = torch.linspace(-REACH, REACH, 24, dtype=torch.float64)
    times = torch.linspace(0, 1, 33, dtype=torch.float64)
    solved = exact(starts[:, None], times)
    stepped = [euler(starts, steps) for steps in STEPS]
    lipschitz = STRENGTH * (3 * REACH**2 - 1)  # |f'| is largest at the ends
    inputs = torch.linspace(-1, 1, 41)
    learned = {"flow": _flow(inputs), "residual": _residual(inputs)}
    return Ordering(
        strength=STRENGTH,
        times=lines(times[None])[0],
        flow=lines(solved),
        reordered_by_flow=reordered(starts, solved[:, -1]),
        steps=STEPS,
        euler=tuple(lines(states) for states in stepped),
        reordered=tuple(reordered(starts, states[:, -1]) for states in stepped),
        enough_steps=math.floor(lipschitz) + 1,
        inputs=lines(inputs[None])[0],
        learned={name: lines(outputs[None])[0] for name, outputs in learned.items()},
        error={name: ((outputs + inputs) ** 2).mean().item() for name, outputs in learned.items()},
        # The best ascending fit to what descends is a constant (pool adjacent violators).
        least_error=inputs.var(correction=0).item(),
    )


def _flow(inputs: Tensor) -> Tensor:
    """A Neural ODE trained to turn x into -x."""
    field = _field()
    train(
        list(field.parameters()),
        lambda: ((flow(field, inputs[:, None], steps=4)[:, 0] + inputs) ** 2).mean(),
        steps=100,
        learning_rate=0.02,
    )
    with torch.no_grad():
        return flow(field, inputs[:, None], steps=100)[:, 0]


def _residual(inputs: Tensor) -> Tensor:
    """The same field as one residual block, x + f(0, x), with the same task."""
    field, start = _field(), torch.zeros(())

    def block() -> Tensor:
        shift: Tensor = field(start, inputs[:, None])
        return inputs + shift[:, 0]

    train(list(field.parameters()), lambda: ((block() + inputs) ** 2).mean(), steps=300, learning_rate=0.02)
    with torch.no_grad():
        return block()


def _field() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "ordering"))
        return Field(1, 32)
