"""Projected gradient ascent on the displacement field: the strongest deformation of size ‖τ‖_T ≤ ε found.

τ ← P(τ + α_k ε d), with d the direction of unit steps at every pixel (``displacement.ascent``), P the projection to
‖τ‖_T ≤ ε (and to fold-free fields), and α_k = step_size · (1 − k/steps). ADef (Alaifari et al. 2019) defines the size,
stAdv (Xiao et al. 2018) was the first gradient attack on the field; neither bounds ‖τ‖_T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.attacks.displacement import Reach, advance, ascent, evaluate, unfolded, within
from pipeline.attacks.losses import Loss, is_fooled, objective
from pipeline.deform import warp
from pipeline.fields import NonNegativeFloat, PositiveFloat, PositiveInt

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("deformation",)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: ‖τ‖_T = max over pixels of |τ|.
        fold_free: only fields with det(I + ∇τ) > 0 at every corner of every pixel cell.
        sigma: width in pixels of the Gaussian filter that makes neighbouring pixels move alike. 0.5 is strongest if
            fields may not fold, 0 to 0.5 if they may; wider is weaker and looks more natural.
        steps: gradient steps of each restart; one more forward judges the last iterate.
        step_size: the first step in units of epsilon; later ones fall linearly towards 0. 0.5 to 1 are strong.
        restarts: times that an image not yet fooled is attacked, each from another random field.
        loss: what to ascend.
    """

    norm: Literal["deformation"]
    fold_free: bool
    sigma: NonNegativeFloat
    steps: PositiveInt
    step_size: PositiveFloat
    restarts: PositiveInt
    loss: Loss


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,
    config: Config,
    rng: ExampleRng,
) -> AttackOutput:
    """At most ``restarts · (steps + 1)`` forwards and ``restarts · steps`` backwards per image.

    Every iterate is judged, the last included. A fooled image is finished; for others the field of the highest loss is
    returned. An image whose loss cannot be raised to first order waits for the next restart (STOPPED if that was the
    last). ``epsilon`` is in pixels.
    """
    assert epsilon is not None, "a budget attack needs a strength"
    radius = inputs.new_full((len(inputs),), epsilon)
    reach = Reach.of(inputs, radius)
    adv_inputs = inputs.clone()
    deformation = inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    highest = torch.full_like(radius, -torch.inf)
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    unfooled = torch.ones_like(labels, dtype=torch.bool)
    rivals = labels[:, None]

    for restart in range(config.restarts):
        rows = (unfooled & (status != Status.NON_FINITE)).nonzero().flatten()
        fields = torch.zeros_like(deformation[rows])
        aims = targets
        if restart > 0:
            if RSTART: fields = _random_field(fields, radius[rows], rng.subset(rows), restart, fold_free=config.fold_free)
            if MT and targets is None: aims = rivals[:, restart % rivals.shape[1]]
        for step in range(config.steps + 1):
            if len(rows) == 0:
                break
            goals = labels[rows], None if targets is None else targets[rows]
            climbing = step < config.steps
            images = warp(inputs[rows], fields).clamp_(0, 1)
            aim=None if aims is None else aims[rows]
            logits, gradient = evaluate(model, images, labels[rows], aim, config.loss, with_gradient=climbing)
            n_forwards[rows] += 1
            n_backwards[rows] += climbing
            if restart == 0 and step == 0:
                rivals = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

            fooled = is_fooled(logits, *goals)
            loss = objective(config.loss, logits, *goals)
            better = fooled | (loss > highest[rows])
            better &= logits.isfinite().all(1)
            adv_inputs[rows[better]], deformation[rows[better]] = images[better], fields[better]
            highest[rows[better]] = loss[better]
            unfooled[rows] = ~fooled
            finite = logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1)
            status[rows] = torch.where(fooled | finite, int(Status.OK), int(Status.NON_FINITE))
            if not climbing:
                break

            direction = ascent(gradient, images, fields, reach[rows], config.sigma)
            moves = direction.flatten(1).any(1)
            status[rows[finite & ~fooled & ~moves]] = Status.STOPPED
            ongoing = finite & ~fooled & moves
            rows, fields, direction = rows[ongoing], fields[ongoing], direction[ongoing]
            step_size = config.step_size * (1 - step / config.steps)
            fields = advance(fields, direction, step_size, radius[rows], fold_free=config.fold_free)
    return AttackOutput(adv_inputs, deformation, n_forwards, n_backwards, status)

MT,RSTART=True,True

def _random_field(zero: Tensor, radius: Tensor, rng: ExampleRng, restart: int, *, fold_free: bool) -> Tensor:
    """A field with every pixel anywhere in its disk, as far as it may not fold; another one for each restart."""
    proposals = within(radius[:, None, None, None] * rng.normal(zero.shape[1:], like=zero, stream=restart), radius)
    return unfolded(zero, proposals) if fold_free else proposals
