"""Fast minimum-norm attack (Pintor, Roli, Brendel, Biggio 2021, algorithm 1), in ℓ2 and ℓ∞.

Ascends the loss within a ball whose radius ε changes at every step: until a first success it is where the linearised
model changes its mind, ε = ‖δ‖ + |margin| / ‖∇‖_dual; from then on it shrinks by 1 − γ after every success and grows by
1 + γ after every failure, with γ falling to almost 0. The smallest success is kept.

Two departures from the paper, both measured to find smaller perturbations in fewer steps: the step is a multiple of the
present ε in the steepest direction of the norm (the paper: absolute, and ℓ2-normalised in ℓ∞, too), and the loss need
not be the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import BallNorm, project, steepest
from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status, affordable
from pipeline.attacks.losses import Plan, is_fooled, loss_at, objective, status_of, value, value_and_gradient
from pipeline.fields import PositiveFloat, PositiveInt, Range

GOAL: Goal = "minimal"
NORMS: tuple[Norm, ...] = ("linf", "l2")

FINAL = 0.01  # what is left of step_size and gamma after the last step (the paper's choice for the step)


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
    """Parameters.

    Attributes:
        norm: what is minimised.
        steps: gradient steps; one more forward judges the last iterate.
        step_size: the first step in units of the present ε; it falls to ``FINAL`` of that along a cosine. 1 is strong.
        gamma: the first relative change of ε; it falls like the step. 0.3 is strong with 20 to 50 steps.
        loss: what to ascend; ``both`` is the strongest.
    """

    norm: BallNorm
    steps: PositiveInt
    step_size: PositiveFloat
    gamma: Annotated[float, Range(gt=0, lt=1)]
    loss: Plan

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

    Deterministic. An image never fooled is returned where its margin was highest. An image is given up when its
    gradient is zero (STOPPED) or something is not finite (NON_FINITE), and keeps what it found before.
    """
    steps = affordable(config.steps, config.budget)
    adv_inputs = inputs.clone()
    smallest = torch.full_like(labels, torch.inf, dtype=inputs.dtype)
    highest = -smallest
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    widest = _sizes(torch.maximum(inputs, 1 - inputs), config.norm)

    rows, points, radius = torch.arange(len(inputs), device=inputs.device), inputs, widest
    for step in range(steps + 1):
        if len(rows) == 0:
            break
        goals = labels[rows], None if targets is None else targets[rows]
        loss, climbs = loss_at(config.loss, step / steps), step < steps
        logits, _, gradient = (value_and_gradient if climbs else value)(model, points, *goals, loss)
        n_forwards[rows] += 1
        n_backwards[rows] += climbs

        fooled, margins = is_fooled(logits, *goals), objective("margin", logits, *goals)
        sizes, status[rows] = _sizes(points - inputs[rows], config.norm), status_of(logits, gradient)
        nearer = smallest[rows].isinf() & (margins > highest[rows]) & logits.isfinite().all(1)
        better = torch.where(fooled, sizes < smallest[rows], nearer)
        adv_inputs[rows[better]], highest[rows[better]] = points[better], margins[better]
        smallest[rows] = torch.where(fooled, sizes, torch.inf).minimum(smallest[rows])
        if gradient is None:
            break

        share = FINAL + (1 - FINAL) * (1 + math.cos(math.pi * step / steps)) / 2
        # A little further than the boundary, lest rounding leaves a linear model on its near side for good.
        linearised = (1 + FINAL * config.gamma) * (sizes + _distances(margins, gradient, config.norm))
        unfooled = torch.where(smallest[rows].isinf(), linearised, radius * (1 + config.gamma * share))
        radius = torch.where(fooled, (radius * (1 - config.gamma * share)).minimum(smallest[rows]), unfooled)

        ongoing = (status[rows] == Status.OK) & (smallest[rows] > 0)
        rows, points, gradient, radius = rows[ongoing], points[ongoing], gradient[ongoing], radius[ongoing]
        radius = radius.minimum(widest[rows])
        ball = radius[:, None, None, None]
        points = points + config.step_size * share * ball * steepest(gradient, config.norm)
        points = project(points, inputs[rows], ball, config.norm)
    return AttackOutput(adv_inputs, None, n_forwards, n_backwards, status)


def _sizes(perturbations: Tensor, norm: BallNorm) -> Tensor:
    """(B,)."""
    order = math.inf if norm == "linf" else 2
    sizes: Tensor = torch.linalg.vector_norm(perturbations.flatten(1), ord=order, dim=1)
    return sizes


def _distances(margins: Tensor, gradient: Tensor, norm: BallNorm) -> Tensor:
    """|margin| / dual norm of the gradient, (B,): how far the decision boundary is if the model is linear."""
    order = 1 if norm == "linf" else 2
    # float64 for its range: the squares of small float32 gradients vanish.
    slopes: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=order, dim=1, dtype=torch.float64)
    return (margins.abs() / slopes).to(margins.dtype)
