"""The blocks of Neural ODE and TisODE. Not a component: architectures put them between a stem and a head."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.base import BlockConfig, ResidualFunction
from pipeline.models.solved import SolvedBlock
from pipeline.models.vector_field import TimeField
from pipeline.ode import SolverConfig, solve
from pipeline.ode.solve import VectorField


class OdeBlock(SolvedBlock):
    """z(0) to z(1) of dz/dt = f(t, z), shape-preserving."""

    def __init__(self, config: BlockConfig, solver: SolverConfig) -> None:
        super().__init__(solver)
        self.field = TimeField(config)

    def forward(self, z: Tensor) -> Tensor:
        field, parameters = self.field.bind(z)
        return self.flow(field, z, parameters)


class AutonomousField(ResidualFunction):
    """f(z), (B, channels, H, W) to the same shape."""

    def bind(self, _z: Tensor) -> tuple[VectorField, tuple[Tensor, ...]]:
        """The field as a function of time and state, and every tensor besides them that it reads."""
        return lambda _t, state: self(state), tuple(self.parameters())


class SteadyBlock(SolvedBlock):
    """z(0) to z(1) of dz/dt = f(z), shape-preserving.

    ``path`` (B,) is, if ``beyond`` is set, ∫ mean|f(z(t))| dt over [1, 1 + beyond]: 0 in a steady state.
    """

    path: Tensor

    def __init__(self, config: BlockConfig, solver: SolverConfig) -> None:
        super().__init__(solver)
        self.field = AutonomousField(config)
        self.beyond = 0.0

    def forward(self, z: Tensor) -> Tensor:
        field, parameters = self.field.bind(z)
        z1 = self.flow(field, z, parameters)
        if self.beyond:
            self.path = self._path(z1)
        return z1

    def _path(self, z1: Tensor) -> Tensor:
        """Solved with the state: one more channel carries the integral."""

        def extended(_t: Tensor, state: Tensor) -> Tensor:
            velocity = self.field(state[:, :-1])
            return torch.cat((velocity, velocity.abs().mean((1, 2, 3), keepdim=True).expand_as(state[:, -1:])), dim=1)

        start = torch.cat((z1, torch.zeros_like(z1[:, :1])), dim=1)
        parameters = tuple(self.field.parameters())
        end = solve(extended, start, t0=1.0, t1=1.0 + self.beyond, config=self.solver, parameters=parameters).z1
        return end[:, -1, 0, 0]
