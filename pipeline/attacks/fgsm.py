"""Fast gradient sign method: one step to a corner of the ℓ∞ ball (Goodfellow, Shlens, Szegedy 2014, section 4).

adv = clip(x + ε sign ∇_x CE(x, y)); targeted, adv = clip(x − ε sign ∇_x CE(x, target)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import project, steepest
from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.attacks.losses import status_of, value_and_gradient

GOAL: Goal = "budget"
CLIMBS = False
NORMS: tuple[Norm, ...] = ("linf",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """FGSM has no parameter but its norm."""

    norm: Literal["linf"]


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,
    config: Config,
    rng: ExampleRng,  # noqa: ARG001
) -> AttackOutput:
    """One forward and one backward per image. ``epsilon`` is in [0, 1] units.

    An image whose gradient is zero (STOPPED) or not finite (NON_FINITE) is returned as it came.
    """
    assert epsilon is not None, "a budget attack needs a strength"
    logits, _, gradient = value_and_gradient(model, inputs, labels, targets, "cross_entropy")
    status = status_of(logits, gradient)
    step = torch.where((status == Status.OK)[:, None, None, None], epsilon * steepest(gradient, config.norm), 0)
    return AttackOutput(
        adv_inputs=project(inputs + step, inputs, epsilon, config.norm),
        deformation=None,
        n_forwards=torch.ones_like(labels),
        n_backwards=torch.ones_like(labels),
        status=status,
    )
