"""The continuous adjoint: gradients of a loss of z(t1) with respect to everything that the solution depends on.

With p(t) = ∂L/∂z(t) (Chen et al. 2018; Pontryagin's costate is −p):

    ṗ = −(∂f/∂z)ᵀ p,  p(t1) = ∂L/∂z(t1),        ∂L/∂z(t0) = p(t0),        ∂L/∂θ = ∫ (∂f/∂θ)ᵀ p dt over [t0, t1],
    ∂L/∂t1 = p(t1)ᵀ f(t1, z(t1)),               ∂L/∂t0 = −p(t0)ᵀ f(t0, z(t0)).

z, p and the integral are solved backwards in time together, from the end alone: nothing of the way there is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ode.solve import SolverConfig, SolverStatus, VectorField, solve


@dataclass(frozen=True)
class AdjointGradients:
    """∂L/∂z0 of z0's shape, ∂L/∂θ for each parameter, ∂L/∂t0 and ∂L/∂t1 (scalars, summed over the batch)."""

    z0: Tensor
    parameters: tuple[Tensor, ...]
    t0: Tensor
    t1: Tensor


def adjoint_gradients(
    field: VectorField,
    z1: Tensor,
    slope: Tensor,
    *,
    t0: float,
    t1: float,
    config: SolverConfig,
    parameters: Sequence[Tensor],
) -> AdjointGradients:
    """All four gradients of a loss L(z(t1)).

    Args:
        field: maps (scalar t, z) to dz/dt of z's shape.
        z1: (B, ...), the solution at t1.
        slope: ∂L/∂z(t1), of z1's shape.
        config: of the solve backwards in time; its ``gradient`` is of no concern.
        parameters: θ, tensors requiring gradients that ``field`` reads.

    Raises:
        ArithmeticError: the solve backwards in time ended with a status other than OK.
    """
    n, shapes = z1.numel(), [parameter.shape for parameter in parameters]

    def dynamics(t: Tensor, state: Tensor) -> Tensor:
        z, p = state[0, :n].view_as(z1), state[0, n : 2 * n].view_as(z1)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            velocity = field(t, z)
            gradients = torch.autograd.grad(velocity, (z, *parameters), p, allow_unused=True, materialize_grads=True)
        return torch.cat([velocity.detach().flatten(), *(-gradient.flatten() for gradient in gradients)])[None]

    sizes = sum(shape.numel() for shape in shapes)
    end = torch.cat((z1.detach().flatten(), slope.flatten(), z1.new_zeros(sizes)))[None]
    with torch.no_grad():
        solution = solve(dynamics, end, t0=t1, t1=t0, config=config, parameters=())
        if solution.status.item() != SolverStatus.OK:
            raise ArithmeticError(f"the adjoint solve ended with {SolverStatus(int(solution.status)).name}")
        z0, p0, integral = torch.split(solution.z1[0], [n, n, sizes])
        at_start = field(z1.new_tensor(t0), z0.view_as(z1)).flatten()
        at_end = field(z1.new_tensor(t1), z1).flatten()
    parts = torch.split(integral, [shape.numel() for shape in shapes])
    return AdjointGradients(
        z0=p0.view_as(z1),
        parameters=tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True)),
        t0=-(p0 @ at_start),
        t1=slope.flatten() @ at_end,
    )
