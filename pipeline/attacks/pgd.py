"""Projected gradient ascent with random starts and restarts (Madry et al. 2018), in ℓ∞ and ℓ2.

x ← P(x + α_k ε d), with d the sign (ℓ∞) or the normalised gradient (ℓ2) of the loss, P the projection to the ball and
the box, and α_k = step_size · (1 − k/steps): a first step that crosses the ball, and last steps that settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import BallNorm, ball, random_point, steepest
from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status, affordable
from pipeline.attacks.losses import Plan, is_fooled, loss_at, objective, status_of, value, value_and_gradient
from pipeline.fields import PositiveFloat, PositiveInt

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("linf", "l2")


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
    """Parameters.

    Attributes:
        norm: the ball's norm.
        steps: gradient steps of each restart; one more forward judges the last iterate.
        step_size: the first step in units of epsilon; later ones fall linearly towards 0. 1 to 2 are strong.
        restarts: times that an image not yet fooled is attacked.
        random_start: start within the ball at random (ℓ∞: uniformly; ℓ2: on the sphere) instead of at the image.
        loss: what to ascend; ``both`` is the strongest.
    """

    norm: BallNorm
    steps: PositiveInt
    step_size: PositiveFloat
    restarts: PositiveInt
    random_start: bool
    loss: Plan

    def __post_init__(self) -> None:
        affordable(self.steps, self.budget, restarts=self.restarts)
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts: more than 1 repeat the same attack unless random_start is true")


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

    Unless targets are given, each restart after the first aims at one other class, taken in the order of the logits at
    the first start (Gowal et al. 2019). Every iterate is judged, the last included. A fooled image is finished; for
    others the iterate of the highest margin is returned. An image whose gradient is zero waits for the next restart
    (STOPPED if that was the last). ``epsilon`` is in [0, 1] units.
    """
    steps = affordable(config.steps, config.budget, restarts=config.restarts)
    assert epsilon is not None, "a budget attack needs a strength"
    adv_inputs = inputs.clone()
    highest = torch.full_like(labels, -torch.inf, dtype=inputs.dtype)
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    unfooled = torch.ones_like(labels, dtype=torch.bool)
    others = labels[:, None]

    for restart in range(config.restarts):
        aims = targets if restart == 0 or targets is not None else others[:, (restart - 1) % others.shape[1]]
        rows = (unfooled & (status != Status.NON_FINITE)).nonzero().flatten()
        points = inputs[rows]
        within = ball(points, epsilon, config.norm)
        if config.random_start:
            points = random_point(points, epsilon, config.norm, rng.subset(rows), stream=restart)
        for step in range(steps + 1):
            if len(rows) == 0:
                break
            loss, climbs = loss_at(config.loss, step / steps), step < steps
            evaluate, aim = value_and_gradient if climbs else value, None if aims is None else aims[rows]
            logits, _, gradient = evaluate(model, points, labels[rows], aim, loss)
            n_forwards[rows] += 1
            n_backwards[rows] += climbs
            if restart == step == 0:
                others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

            goals = labels[rows], None if targets is None else targets[rows]
            fooled, margins = is_fooled(logits, *goals), objective("margin", logits, *goals)
            outcome = status_of(logits, gradient).masked_fill_(fooled, Status.OK)
            better = fooled | ((margins > highest[rows]) & (outcome != Status.NON_FINITE))
            adv_inputs[rows[better]], highest[rows[better]] = points[better], margins[better]
            unfooled[rows], status[rows] = ~fooled, outcome
            if gradient is None:
                break

            ongoing = ~fooled & (outcome == Status.OK)
            if not ongoing.all():
                rows, points, within, gradient = rows[ongoing], points[ongoing], within[ongoing], gradient[ongoing]
            size = config.step_size * epsilon * (1 - step / steps)
            points = within.project(torch.add(points, steepest(gradient, config.norm), alpha=size))
    return AttackOutput(adv_inputs, None, n_forwards, n_backwards, status)
