"""A block that is the solution of an ODE, and what it notes of it. Not a component: the ODE models build on it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.ode import SolverConfig, SolverStatus, solve
from pipeline.ode.solve import VectorField


class SolvedBlock(nn.Module):
    """Solves from t = 0 to 1. The judge reads two notes of the last forward pass.

    Attributes:
        nfe: (B,), how often each image's field was evaluated.
        solver_failed: (B,), whether its solver gave up.
    """

    nfe: Tensor
    solver_failed: Tensor

    def __init__(self, solver: SolverConfig) -> None:
        super().__init__()
        self.solver = solver

    def flow(self, field: VectorField, z0: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """z(1), of z0's shape; ``parameters`` is what the field reads, as for ``solve``."""
        solution = solve(field, z0, t0=0.0, t1=1.0, config=self.solver, parameters=parameters)
        self.nfe, self.solver_failed = solution.nfe, solution.status != SolverStatus.OK
        return solution.z1
