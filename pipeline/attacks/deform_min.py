"""The smallest deformation: fast minimum-norm ascent on the displacement field, in ‖τ‖_T.

As FMN (Pintor et al. 2021) and DDN (Rony et al. 2019): steps on the margin within a ball whose radius belongs to the
image, shrinks when the image is fooled and grows when it is not, by a share γ_k that falls from ``GAMMA`` to
``FINAL_GAMMA`` along a cosine. Ball, direction and folds are those of ``displacement``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status, affordable
from pipeline.attacks.displacement import advance, ascent, step_length
from pipeline.attacks.losses import is_fooled, status_of, value, value_and_gradient
from pipeline.deform import deformation_size, warp
from pipeline.fields import NonNegativeFloat, PositiveInt

GOAL: Goal = "minimal"
NORMS: tuple[Norm, ...] = ("deformation",)

# None matters much: the mean size stays within 2 % at half and at twice each (measured on a ResNet and a Neural ODE).
FIRST_RADIUS = 0.5  # pixels
GROWTH = 1.25  # of the radius per step, until the image is fooled for the first time
GAMMA, FINAL_GAMMA = 0.1, 0.01
STEP_SIZE = 0.5  # of the first step in units of the radius; later ones fall towards 0 like γ


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
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

    def __post_init__(self) -> None:
        affordable(self.steps, self.budget)


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
    """``steps + 1`` forwards and ``steps`` backwards per image, or one each if it fools the model as it is.

    Deterministic; ``epsilon`` means nothing. Returns the smallest field that fooled the model; an image that was never
    fooled, where its margin was highest. Status: STOPPED for images whose margin no displacement raises (to first
    order), NON_FINITE where logits or gradients are not finite, both with the best found before.
    """
    steps = affordable(config.steps, config.budget)
    adv_inputs, deformation = inputs.clone(), inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    smallest = torch.full_like(labels, torch.inf, dtype=inputs.dtype)
    highest = -smallest
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    gradient: Tensor | None

    rows = torch.arange(len(inputs), device=inputs.device)
    fields, radius = deformation, torch.full_like(smallest, FIRST_RADIUS)
    for step in range(steps + 1):
        if len(rows) == 0:
            break
        goals = labels[rows], None if targets is None else targets[rows]
        images = warp(inputs[rows], fields).clamp_(0, 1)
        climbs = step < steps
        logits, margins, gradient = (value_and_gradient if climbs else value)(model, images, *goals, "margin")
        n_forwards[rows] += 1
        n_backwards[rows] += climbs

        fooled = is_fooled(logits, *goals)
        sizes, status[rows] = deformation_size(fields), status_of(logits, gradient)
        nearer = smallest[rows].isinf() & (margins > highest[rows]) & logits.isfinite().all(1)
        better = torch.where(fooled, sizes < smallest[rows], nearer)
        adv_inputs[rows[better]], deformation[rows[better]] = images[better], fields[better]
        highest[rows[better]] = margins[better]
        smallest[rows] = torch.where(fooled, sizes, torch.inf).minimum(smallest[rows])
        if gradient is None:
            break

        remaining = (1 + math.cos(math.pi * step / steps)) / 2
        gamma = FINAL_GAMMA + (GAMMA - FINAL_GAMMA) * remaining
        radius = _next_radius(radius, smallest[rows], fooled, gamma).clamp(max=max(inputs.shape[-2:]))

        ongoing = (status[rows] == Status.OK) & (smallest[rows] > 0)
        rows, fields, radius, images, gradient = (t[ongoing] for t in (rows, fields, radius, images, gradient))
        length = step_length(STEP_SIZE * remaining, radius, fold_free=config.fold_free)
        move = ascent(gradient, inputs[rows], images, fields, radius, length=length, sigma=config.sigma)
        moves = move.flatten(1).any(1)
        status[rows[~moves]] = Status.STOPPED
        rows, fields, radius, move = (t[moves] for t in (rows, fields, radius, move))
        fields = advance(fields, move, radius, fold_free=config.fold_free)
    return AttackOutput(adv_inputs, deformation, n_forwards, n_backwards, status)


def _next_radius(radius: Tensor, smallest: Tensor, fooled: Tensor, gamma: float) -> Tensor:
    """Below the smallest size that fooled the model, (b,): further below after a success than after a failure."""
    larger = torch.where(smallest.isinf(), radius * GROWTH, radius * (1 + gamma))
    return torch.where(
        fooled, torch.minimum(radius, smallest) * (1 - gamma), torch.minimum(larger, smallest * (1 - FINAL_GAMMA))
    )
