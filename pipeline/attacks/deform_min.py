"""The smallest deformation: fast minimum-norm ascent on the displacement field, in ‖τ‖_T.

As FMN (Pintor et al. 2021) and DDN (Rony et al. 2019): a gradient step on the margin within a ball whose radius belongs to
the image, shrinks when the image is fooled and grows when it is not, by a share γ_k that falls from ``GAMMA`` to
``FINAL_GAMMA`` along a cosine. Ball, direction and folds are those of ``displacement``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.attacks.displacement import Reach, advance, ascent, evaluate
from pipeline.attacks.losses import is_fooled, objective
from pipeline.deform import deformation_size, warp
from pipeline.fields import NonNegativeFloat, PositiveInt

GOAL: Goal = "minimal"
NORMS: tuple[Norm, ...] = ("deformation",)

# None of these matters much (mean size within 2 % at half and at twice the value, measured on a ResNet and a Neural ODE).
FIRST_RADIUS = 0.5  # pixels
GROWTH = 1.25  # of the radius per step, until the image is fooled for the first time
GAMMA, FINAL_GAMMA = 0.1, 0.01
STEP_SIZE = 0.5  # of the first step in units of the radius; later ones fall linearly towards 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: ‖τ‖_T = max over pixels of |τ|.
        fold_free: only fields with det(I + ∇τ) > 0 at every corner of every pixel cell.
        sigma: width in pixels of the Gaussian filter that makes neighbouring pixels move alike; 0.5 is strong.
        steps: gradient steps; one more forward judges the last iterate.
    """

    norm: Literal["deformation"]
    fold_free: bool
    sigma: NonNegativeFloat
    steps: PositiveInt


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,  # noqa: ARG001
    config: Config,
    rng: ExampleRng,  # noqa: ARG001
) -> AttackOutput:
    """``steps + 1`` forwards and ``steps`` backwards per image. Deterministic; ``epsilon`` means nothing.

    Returns the smallest field that fooled the model, the field of the highest margin for images that it never fooled. An
    image that the model gets wrong anyway costs one forward and one backward, and its field is 0. Status: STOPPED for
    images whose margin cannot be raised to first order, NON_FINITE, with the best before it, where logits or gradients
    are not finite.
    """
    adv_inputs, deformation = inputs.clone(), inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    smallest, highest = (inputs.new_full((len(inputs),), bound) for bound in (torch.inf, -torch.inf))
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))

    rows = torch.arange(len(inputs), device=inputs.device)
    fields, radius = deformation, torch.full_like(smallest, FIRST_RADIUS)
    for step in range(config.steps + 1):
        if len(rows) == 0:
            break
        goals = labels[rows], None if targets is None else targets[rows]
        climbing = step < config.steps
        images = warp(inputs[rows], fields).clamp_(0, 1)
        logits, gradient = evaluate(model, images, *goals, "margin", with_gradient=climbing)
        n_forwards[rows] += 1
        n_backwards[rows] += climbing

        margin = objective("margin", logits, *goals)
        fooled, size = is_fooled(logits, *goals), deformation_size(fields)
        better = torch.where(fooled, size < smallest[rows], smallest[rows].isinf() & (margin > highest[rows]))
        better &= logits.isfinite().all(1)
        adv_inputs[rows[better]], deformation[rows[better]] = images[better], fields[better]
        highest[rows[better]] = margin[better]
        smallest[rows[better & fooled]] = size[better & fooled]
        finite = logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1)
        status[rows] = torch.where(finite, int(Status.OK), int(Status.NON_FINITE))
        if not climbing:
            break

        progress = step / config.steps
        gamma = FINAL_GAMMA + (GAMMA - FINAL_GAMMA) * (1 + math.cos(math.pi * progress)) / 2
        radius = _next_radius(radius, smallest[rows], fooled, gamma).clamp(max=max(inputs.shape[-2:]))
        reach = Reach.of(inputs[rows], radius)
        direction = ascent(gradient, images, fields, reach, config.sigma)
        moves = direction.flatten(1).any(1)
        status[rows[finite & ~moves]] = Status.STOPPED
        ongoing = finite & moves & (smallest[rows] > 0)
        rows, fields, radius, direction = rows[ongoing], fields[ongoing], radius[ongoing], direction[ongoing]
        fields = advance(fields, direction, STEP_SIZE * (1 - progress), radius, fold_free=config.fold_free)
    return AttackOutput(adv_inputs, deformation, n_forwards, n_backwards, status)


def _next_radius(radius: Tensor, smallest: Tensor, fooled: Tensor, gamma: float) -> Tensor:
    """Below the smallest size that fooled the model, (b,): further below after a success than after a failure."""
    larger = torch.where(smallest.isinf(), radius * GROWTH, radius * (1 + gamma))
    return torch.where(
        fooled, torch.minimum(radius, smallest) * (1 - gamma), torch.minimum(larger, smallest * (1 - FINAL_GAMMA))
    )
