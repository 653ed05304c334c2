"""One door to every solver: ``solve()`` integrates dz/dt = f(t, z) from t0 to t1 and says how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from pipeline.fields import PositiveFloat, PositiveInt

FIXED_STEP = ("euler", "midpoint", "rk4")
VectorField = Callable[[Tensor, Tensor], Tensor]


class SolverStatus(IntEnum):
    OK = 0
    STEP_LIMIT = 1
    NON_FINITE = 2


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """A numerical method and how it is differentiated.

    Attributes:
        method: fixed step (euler, midpoint, rk4: torchdiffeq's 3/8 rule) or adaptive (dopri5, bosh3).
        steps: number of equal steps of a fixed-step method; null for an adaptive one.
        rtol, atol: error tolerances of an adaptive method; null for a fixed-step one. torchdiffeq controls the step
            by the error of the whole batch, so an adaptive solve depends on an image's neighbours.
        max_steps: an adaptive solve that needs more steps ends with status STEP_LIMIT; null for a fixed-step one.
        gradient: through the solver's own operations, or by the continuous adjoint equations (Chen et al. 2018).
    """

    method: Literal["euler", "midpoint", "rk4", "dopri5", "bosh3"]
    steps: PositiveInt | None
    rtol: PositiveFloat | None
    atol: PositiveFloat | None
    max_steps: PositiveInt | None
    gradient: Literal["backprop", "adjoint"]

    def __post_init__(self) -> None:
        needed = ("steps",) if self.method in FIXED_STEP else ("rtol", "atol", "max_steps")
        for name in ("steps", "rtol", "atol", "max_steps"):
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(f"{name}: {'needed by' if name in needed else 'must be null for'} {self.method}")


@dataclass(frozen=True)
class Solution:
    """z(t1) with the shape of z0, the vector-field evaluations it took, and a status (z1 is NaN unless OK)."""

    z1: Tensor
    nfe: int
    status: SolverStatus


class _CountedField(nn.Module):
    """A vector field as the module that torchdiffeq's adjoint wants, counting its evaluations."""

    def __init__(self, field: VectorField) -> None:
        super().__init__()
        self.field = field
        self.nfe = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.field(t, z)


def _options(config: SolverConfig) -> dict[str, Any]:
    if config.steps is not None:
        steps = config.steps
        return {"grid_constructor": lambda _f, _z, t: torch.linspace(t[0], t[-1], steps + 1, dtype=t.dtype)}
    return {"max_num_steps": config.max_steps}


def solve(
    field: VectorField, z0: Tensor, *, t0: float, t1: float, config: SolverConfig, parameters: Sequence[Tensor]
) -> Solution:
    """Integrate dz/dt = field(t, z), z(t0) = z0, to t1.

    Args:
        field: maps (scalar t, z of shape (B, ...)) to dz/dt of z's shape.
        z0: (B, ...), the state at t0.
        parameters: every tensor requiring gradients that ``field`` reads, apart from z; the adjoint method returns
            gradients for these only. Backpropagation through the solver finds them by itself.
    """
    counted = _CountedField(field)
    times = torch.tensor([t0, t1], dtype=z0.dtype)  # on the CPU: the steps are Python's business, not the device's
    tolerances = {} if config.steps is not None else {"rtol": config.rtol, "atol": config.atol}
    try:
        if config.gradient == "adjoint":
            states = odeint_adjoint(
                counted,
                z0,
                times,
                method=config.method,
                options=_options(config),
                adjoint_params=tuple(parameters),
                **tolerances,
            )
        else:
            states = odeint(counted, z0, times, method=config.method, options=_options(config), **tolerances)
    except AssertionError as error:
        # torchdiffeq asserts on too many steps and on a step size that underflows: results of this solve, not bugs.
        status = SolverStatus.STEP_LIMIT if "max_num_steps" in str(error) else SolverStatus.NON_FINITE
        return Solution(z0 * torch.nan, counted.nfe, status)  # still a function of z0: it can be differentiated
    return Solution(states[-1], counted.nfe, SolverStatus.OK)
