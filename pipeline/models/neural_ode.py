"""Neural ODE (Chen et al. 2018): the block is the solution of dz/dt = f(t, z) from t = 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.models.base import BlockConfig, assemble
from pipeline.models.vector_field import TimeField
from pipeline.ode import SolverConfig, SolverStatus, solve


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: solver: the numerical method and how it is differentiated."""

    solver: SolverConfig


def couples_batch(config: Config) -> bool:
    """Whether an image's logits depend on the other images of its batch."""
    return config.solver.couples_batch


class OdeBlock(nn.Module):
    """z(0) to z(1), shape-preserving.

    ``nfe`` (B,) and ``solver_failed`` (B,) say of the last forward pass how often each image's field was evaluated and
    whether its solver gave up.
    """

    nfe: Tensor
    solver_failed: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.field = TimeField(config)
        self.solver = config.solver

    def forward(self, z: Tensor) -> Tensor:
        field, parameters = self.field.bind(z)
        solution = solve(field, z, t0=0.0, t1=1.0, config=self.solver, parameters=parameters)
        self.nfe, self.solver_failed = solution.nfe, solution.status != SolverStatus.OK
        return solution.z1


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return assemble(lambda: OdeBlock(config), config, in_shape=in_shape, n_classes=n_classes)
