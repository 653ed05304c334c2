"""Projected gradient ascent on the displacement field: the strongest deformation of size ‖τ‖_T ≤ ε found.

τ ← P(τ + α_k ε d), with d of length 1, or less where the disk ends (``displacement.ascent``), P the projection to
‖τ‖_T ≤ ε, and to fold-free fields if asked for (``displacement.advance``), and α_k = step_size · (1 − k/steps). The
size is ADef's (Alaifari et al. 2019); stAdv (Xiao et al. 2018) and Xia and Li (2021) climb on fields, too, but bound
something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status, affordable
from pipeline.attacks.displacement import advance, ascent, random_fields, step_length
from pipeline.attacks.losses import Plan, is_fooled, loss_at, objective, status_of, value, value_and_gradient
from pipeline.deform import warp
from pipeline.fields import NonNegativeFloat, PositiveFloat, PositiveInt

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("deformation",)


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
    """Parameters.

    Attributes:
        norm: ‖τ‖_T = max over pixels of |τ|.
        fold_free: only fields with det(I + ∇τ) > 0 at every corner of every pixel cell.
        sigma: width in pixels of the Gaussian filter that makes neighbouring pixels move alike. 0.5 is strong; wider is
            weaker at small strengths and looks more natural. Without folds the first step's is at least epsilon / 2.
        steps: gradient steps of each restart; one more forward judges the last iterate.
        step_size: the first step in units of epsilon; later ones fall linearly towards 0. 0.5 to 1 are strong.
        restarts: times that an image not yet fooled is attacked: first from the image as it is, then from random
            fields and, untargeted, towards one of the other labels each, the most likely first (Gowal et al. 2019).
        loss: what to ascend.
    """

    norm: Literal["deformation"]
    fold_free: bool
    sigma: NonNegativeFloat
    steps: PositiveInt
    step_size: PositiveFloat
    restarts: PositiveInt
    loss: Plan

    def __post_init__(self) -> None:
        affordable(self.steps, self.budget, restarts=self.restarts)


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

    Every iterate is judged, the last included. A fooled image is finished; for others the field of the highest margin
    is returned. An image whose loss no displacement raises (to first order) waits for the next restart (STOPPED if that
    was the last). ``epsilon`` is in pixels.
    """
    steps = affordable(config.steps, config.budget, restarts=config.restarts)
    assert epsilon is not None, "a budget attack needs a strength"
    adv_inputs, deformation = inputs.clone(), inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    radius = inputs.new_full((len(inputs),), epsilon)
    highest = torch.full_like(radius, -torch.inf)
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    unfooled = torch.ones_like(labels, dtype=torch.bool)
    # Large moves without folds are moves of whole regions.
    widest = max(config.sigma, epsilon / 2) if config.fold_free else config.sigma
    fields, aims, others = deformation, targets, labels[:, None]

    for restart in range(config.restarts):
        rows = (unfooled & (status != Status.NON_FINITE)).nonzero().flatten()
        if restart > 0:
            rngs = rng.subset(rows)
            fields = random_fields(inputs[rows], radius[rows], rngs, stream=restart, fold_free=config.fold_free)
            aims = others[:, restart % others.shape[1]] if targets is None else targets
        for step in range(steps + 1):
            if len(rows) == 0:
                break
            goals = labels[rows], None if targets is None else targets[rows]
            climbs = step < steps
            images = warp(inputs[rows], fields).clamp_(0, 1)
            evaluate = value_and_gradient if climbs else value
            loss = loss_at(config.loss, step / steps)
            logits, _, gradient = evaluate(model, images, labels[rows], None if aims is None else aims[rows], loss)
            n_forwards[rows] += 1
            n_backwards[rows] += climbs
            if restart == step == 0:
                others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

            fooled, margins = is_fooled(logits, *goals), objective("margin", logits, *goals)
            outcome = status_of(logits, gradient).masked_fill_(fooled, Status.OK)
            better = fooled | ((margins > highest[rows]) & (outcome != Status.NON_FINITE))
            adv_inputs[rows[better]], deformation[rows[better]] = images[better], fields[better]
            highest[rows[better]] = margins[better]
            unfooled[rows], status[rows] = ~fooled, outcome
            if gradient is None:
                break

            ongoing = ~fooled & (outcome == Status.OK)
            rows, fields, images, gradient = rows[ongoing], fields[ongoing], images[ongoing], gradient[ongoing]
            sigma = widest + (config.sigma - widest) * step / steps
            length = step_length(config.step_size * (1 - step / steps), radius[rows], fold_free=config.fold_free)
            move = ascent(gradient, inputs[rows], images, fields, radius[rows], length=length, sigma=sigma)
            moves = move.flatten(1).any(1)
            status[rows[~moves]] = Status.STOPPED
            rows, fields, move = rows[moves], fields[moves], move[moves]
            fields = advance(fields, move, radius[rows], fold_free=config.fold_free)
    return AttackOutput(adv_inputs, deformation, n_forwards, n_backwards, status)
