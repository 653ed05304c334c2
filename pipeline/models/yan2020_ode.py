"""ODENet and TisODE of Yan et al. 2020: an ODE where ``yan2020_cnn`` has its residual block; Euler with dt = .1 there.

TisODE is the one whose field does not depend on time, trained with the defence ``steady_state``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pipeline.models.base import BlockConfig
from pipeline.models.flows import OdeBlock, SteadyBlock
from pipeline.models.yan2020_stem import around
from pipeline.ode import SolverConfig


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: solver: the numerical method and how it is differentiated; time_invariant: the field of TisODE."""

    solver: SolverConfig
    time_invariant: bool


def couples_batch(config: Config) -> bool:
    """Whether an image's logits depend on the other images of its batch."""
    return config.solver.couples_batch


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    block = SteadyBlock if config.time_invariant else OdeBlock
    return around(lambda: block(config, config.solver), config, in_shape=in_shape, n_classes=n_classes)
