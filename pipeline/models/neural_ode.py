"""Neural ODE (Chen et al. 2018): the block is the solution of dz/dt = f(t, z) from t = 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.models.base import BlockConfig, assemble
from pipeline.models.solved import SolvedBlock
from pipeline.models.vector_field import TimeField
from pipeline.ode import SolverConfig


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: solver: the numerical method and how it is differentiated."""

    solver: SolverConfig


def couples_batch(config: Config) -> bool:
    """Whether an image's logits depend on the other images of its batch."""
    return config.solver.couples_batch


class OdeBlock(SolvedBlock):
    """z(0) to z(1), shape-preserving."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.solver)
        self.field = TimeField(config)

    def forward(self, z: Tensor) -> Tensor:
        field, parameters = self.field.bind(z)
        return self.flow(field, z, parameters)


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return assemble(lambda: OdeBlock(config), config, in_shape=in_shape, n_classes=n_classes)
