"""Adversarial training against deformations: the loss is that of the worst field found with ‖τ‖_T ≤ ε.

The ADef paper (Alaifari et al. 2019, table 2) trains against ADef, which is ``adversarial`` with ``adef``; this is its
counterpart by a stronger attack. As in ``pgd``, the ascent goes on to the last step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng
from pipeline.attacks.displacement import advance, ascent, random_fields, step_length
from pipeline.attacks.losses import value_and_gradient
from pipeline.defences.base import evaluating, loss_with
from pipeline.deform import warp
from pipeline.fields import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        epsilon: largest ‖τ‖_T, in pixels.
        fold_free: only fields with det(I + ∇τ) > 0 at every corner of every pixel cell.
        sigma: width in pixels of the Gaussian filter on each step.
        steps: of ascent on the cross-entropy, from a random field.
        step_size: in units of epsilon.
        share: of the images that are deformed; the others are trained on as they are.
    """

    epsilon: PositiveFloat
    fold_free: bool
    sigma: NonNegativeFloat
    steps: PositiveInt
    step_size: PositiveFloat
    share: UnitFloat


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the batch with the chosen images replaced by the last iterates."""
    chosen = rng.uniform((), like=inputs) < config.share
    start, goals = inputs[chosen], labels[chosen]
    radius = start.new_full((len(start),), config.epsilon)
    length = step_length(config.step_size, radius, fold_free=config.fold_free)
    fields = random_fields(start, radius, rng.subset(chosen), stream=1, fold_free=config.fold_free)
    with evaluating(net):
        for _ in range(config.steps if len(start) else 0):
            images = warp(start, fields).clamp_(0, 1)
            _, _, gradient = value_and_gradient(net, images, goals, None, "cross_entropy")
            step = ascent(gradient, start, images, fields, radius, length=length, sigma=config.sigma)
            fields = advance(fields, step, radius, fold_free=config.fold_free)
    return loss_with(net, inputs, labels, chosen, warp(start, fields).clamp_(0, 1))
