"""Training on what an attack of this benchmark returns; with ``adef`` that of Alaifari et al. (2019, table 2).

These attacks are done when the net errs, so that the images lie just beyond its boundary, and images that it gets wrong
anyway stay as they are. To train against the worst of a ball, take ``pgd`` or ``deform_pgd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import ExampleRng
from pipeline.defences.base import evaluating, loss_with
from pipeline.fields import PositiveFloat, UnitFloat
from pipeline.settings import Component, InRoom


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        attack: its ``kind`` and parameters, as under ``attacks:`` without ``n_images`` and ``epsilons``.
        epsilon: its strength, in the units of its norm; null for a minimal attack.
        share: of the images that are attacked; the others are trained on as they are.
    """

    attack: Annotated[Component, InRoom("attacks")]
    epsilon: PositiveFloat | None
    share: UnitFloat

    def __post_init__(self) -> None:
        minimal = components.load("attacks", self.attack.kind).GOAL == "minimal"
        if minimal != (self.epsilon is None):
            wanted = "null: it has no strength" if minimal else "a number"
            raise ValueError(f"epsilon: for {self.attack.kind} it must be {wanted}")


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the batch with the chosen images replaced by the best that the attack found."""
    chosen = rng.uniform((), like=inputs) < config.share
    with evaluating(net):
        output = components.load("attacks", config.attack.kind).attack(
            net,
            inputs[chosen],
            labels[chosen],
            targets=None,
            epsilon=config.epsilon,
            config=config.attack.config,
            rng=rng.subset(chosen),
        )
    return loss_with(net, inputs, labels, chosen, output.adv_inputs)
