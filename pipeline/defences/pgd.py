"""Adversarial training against PGD (Madry et al. 2018): the loss is that of the worst image found in a ball.

Unlike the attack ``pgd``, which is done when the net errs, this ascent goes on to the last step: what is wanted is a
high loss, not a wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.attacks.balls import BallNorm, ball, random_point, steepest
from pipeline.attacks.base import ExampleRng
from pipeline.attacks.losses import value_and_gradient
from pipeline.defences.base import evaluating, loss_with
from pipeline.fields import PositiveFloat, PositiveInt, UnitFloat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: the ball's norm.
        epsilon: its radius, in [0, 1] units of pixel values.
        steps: of ascent on the cross-entropy, from a random point of the ball.
        step_size: in units of epsilon.
        share: of the images that are attacked; the others are trained on as they are.
    """

    norm: BallNorm
    epsilon: PositiveFloat
    steps: PositiveInt
    step_size: PositiveFloat
    share: UnitFloat


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the batch with the chosen images replaced by the last iterates."""
    chosen = rng.uniform((), like=inputs) < config.share
    start, goals = inputs[chosen], labels[chosen]
    within = ball(start, config.epsilon, config.norm)
    points = random_point(start, config.epsilon, config.norm, rng.subset(chosen), stream=1)
    with evaluating(net):
        for _ in range(config.steps if len(start) else 0):
            _, _, gradient = value_and_gradient(net, points, goals, None, "cross_entropy")
            step = config.step_size * config.epsilon * steepest(gradient, config.norm)
            points = within.project(points + step)
    return loss_with(net, inputs, labels, chosen, points)
