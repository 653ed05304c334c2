"""Gaussian noise, blind to the model: adv = clip(x + σ n, 0, 1) with n standard normal.

No attack but the first disturbance of the talk: what a model bears without an adversary. (Szegedy et al. 2013 do not
add noise; their minimal perturbation is ``lbfgs``.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.fields import PositiveInt

GOAL: Goal = "budget"
CLIMBS = False
NORMS: tuple[Norm, ...] = ("sigma",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: the strength is σ, the standard deviation before clipping.
        draws: how often the judge repeats the attack, each time with fresh noise.
    """

    norm: Literal["sigma"]
    draws: PositiveInt


def attack(
    model: nn.Module,  # noqa: ARG001
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,  # noqa: ARG001
    epsilon: float | None,
    config: Config,  # noqa: ARG001
    rng: ExampleRng,
) -> AttackOutput:
    """One draw, without any evaluation of the model. ``epsilon`` is σ in [0, 1] units."""
    assert epsilon is not None, "a budget attack needs a strength"
    noise = rng.normal(inputs.shape[1:], like=inputs)
    n_forwards, n_backwards = torch.zeros_like(labels), torch.zeros_like(labels)
    return AttackOutput(
        adv_inputs=(inputs + epsilon * noise).clamp_(0, 1),
        deformation=None,
        n_forwards=n_forwards,
        n_backwards=n_backwards,
        status=torch.full_like(labels, Status.OK),
    )
