"""Trajectories that do not cross may part: under ẋ = a x the distance of two points becomes eᵃ times itself."""

from __future__ import annotations

import torch

from pipeline.theory.claims import Expansion
from pipeline.theory.fields import lines, trajectories

RATES = (-1.0, 0.0, 1.0, 2.0, 3.0)


def measure() -> Expansion:
    """By the same solver as everything else; the closed form stands beside it."""
    starts, times = torch.linspace(-0.1, 0.1, 10, dtype=torch.float64), torch.linspace(0, 1, 21, dtype=torch.float64)
    solved = [trajectories(lambda _t, x, a=a: a * x, starts, times) for a in RATES]  # type: ignore[misc]
    gaps = torch.stack(solved).diff(dim=2)
    return Expansion(
        rates=RATES,
        times=lines(times[None])[0],
        trajectories=tuple(lines(states.T) for states in solved),
        growth=tuple((gaps[:, -1] / gaps[:, 0]).mean(1).tolist()),
        exact=tuple(torch.tensor(RATES, dtype=torch.float64).exp().tolist()),
        crossings=int((gaps <= 0).any(1).sum()),
    )
