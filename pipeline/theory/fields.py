"""Small trained fields, what they are trained with, and trajectories to draw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.ode import SolverConfig, solve
from pipeline.ode.solve import VectorField


class Field(nn.Module):
    """f(t, x) = W₂ tanh(W₁ [x, t]), (B, dimensions) to the same shape."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dimensions + 1, width), nn.Tanh(), nn.Linear(width, dimensions))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        velocity: Tensor = self.layers(torch.cat((x, t.to(x).expand(len(x), 1)), dim=1))
        return velocity


def flow(field: VectorField, x: Tensor, *, steps: int, until: float = 1.0) -> Tensor:
    """x(until) by the classical method of order four."""
    solver = SolverConfig(method="rk4", steps=steps, gradient="backprop")
    return solve(field, x, t0=0.0, t1=until, config=solver, parameters=()).z1


def trajectories(field: VectorField, x: Tensor, times: Tensor) -> Tensor:
    """(T, *x.shape), the states at ascending times, of which the first is 0; 20 steps from one to the next."""
    solver = SolverConfig(method="rk4", steps=20, gradient="backprop")
    states = [x]
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        states.append(solve(field, states[-1], t0=start, t1=end, config=solver, parameters=()).z1)
    return torch.stack(states)


def train(parameters: list[nn.Parameter], loss: Callable[[], Tensor], *, steps: int, learning_rate: float) -> None:
    """Adam on all data at once, with a learning rate that falls to 0."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def lines(values: Tensor) -> tuple[tuple[float, ...], ...]:
    """(N, T) as tuples, to six digits: as fine as anybody draws."""
    return tuple(tuple(float(f"{value:.6g}") for value in line) for line in values.tolist())
