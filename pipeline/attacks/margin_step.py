"""One step along the gradient of the margin, not its sign: what Yan et al. 2020 released as FGSM, in form.

adv = clip(x + ε ∇_x min(max_{j≠y} z_j − z_y, 0)). The step is as long as the gradient is: on a net with small gradients
it goes nowhere. It stands here to show what that does to a curve; nothing should rest on it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import project
from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.attacks.losses import is_fooled, status_of, value_and_gradient

GOAL: Goal = "budget"
CLIMBS = False
NORMS: tuple[Norm, ...] = ("linf",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """It has no parameter but its norm."""

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
    """One forward and one backward per image. ``epsilon`` is in [0, 1] units; the step is kept within it.

    An image that is fooled as it comes is returned, as is one whose gradient is zero (STOPPED) or not finite
    (NON_FINITE).
    """
    assert epsilon is not None, "a budget attack needs a strength"
    logits, _, gradient = value_and_gradient(model, inputs, labels, targets, "margin")
    status = status_of(logits, gradient)
    moves = (status == Status.OK) & ~is_fooled(logits, labels, targets)  # the clamped margin of the fooled is flat
    step = torch.where(moves[:, None, None, None], epsilon * gradient, 0)
    return AttackOutput(
        adv_inputs=project(inputs + step, inputs, epsilon, config.norm),
        deformation=None,
        n_forwards=torch.ones_like(labels),
        n_backwards=torch.ones_like(labels),
        status=status,
    )
