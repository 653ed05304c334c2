"""The steady-state loss of TisODE (Yan et al. 2020, section 4.2): the state should not move any more after t = 1.

CE(F(x), y) + weight · ∫ mean |f(z(t))| dt over [1, 1 + beyond]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng
from pipeline.defences.noise import Noise, noisy
from pipeline.errors import UserError
from pipeline.fields import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        weight: of the integral; 0.01 in the paper.
        beyond: length of the interval after t = 1.
        noise: that the images are trained with besides, or null.
    """

    weight: PositiveFloat
    beyond: PositiveFloat
    noise: Noise | None


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean of cross-entropy and integral.

    Raises:
        UserError: the net has no block that knows how to go on after t = 1.
    """
    blocks = [module for module in net.modules() if hasattr(module, "beyond")]
    if not blocks:
        raise UserError(
            "params.yaml: train.defence: steady_state needs a model that goes on after t = 1: kind tisode, or "
            "yan2020_ode with time_invariant"
        )
    if config.noise is not None:
        inputs = noisy(inputs, config.noise, rng)
    for block in blocks:
        block.beyond = config.beyond  # type: ignore[assignment]
    try:
        losses = F.cross_entropy(net(inputs), labels, reduction="none")
        paths: Tensor = sum(block.path for block in blocks)  # type: ignore[assignment, misc]
        return (losses + config.weight * paths).mean()
    finally:
        for block in blocks:
            block.beyond = 0.0  # type: ignore[assignment]
