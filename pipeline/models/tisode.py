"""TisODE (Yan et al. 2020): a Neural ODE whose field does not depend on time, to be trained towards a steady state.

Its second half, the steady-state loss, is the defence ``steady_state``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pipeline.models.base import BlockConfig, assemble
from pipeline.models.flows import SteadyBlock
from pipeline.ode import SolverConfig


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: solver: the numerical method and how it is differentiated."""

    solver: SolverConfig


def couples_batch(config: Config) -> bool:
    """Whether an image's logits depend on the other images of its batch."""
    return config.solver.couples_batch


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return assemble(lambda: SteadyBlock(config, config.solver), config, in_shape=in_shape, n_classes=n_classes)
