"""The four gradients of the corrected slide, by four ways that share nothing, and a linear field's closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from pipeline.ode import SolverConfig
from pipeline.ode.adjoint import AdjointGradients, adjoint_gradients
from tests.analytic.vector_fields import MATRIX, Smooth

T0, T1 = 0.3, 1.7
TIGHT = SolverConfig(method="dopri5", rtol=1e-12, atol=1e-12, max_steps=10_000, control="batch", gradient="backprop")
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # of z0, weight, bias, t0, t1


def start() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss(z1: Tensor) -> Tensor:
    return (z1.sin() * torch.arange(1, 4)).sum()


def by_solver(*, adjoint: bool) -> Gradients:
    """By torchdiffeq: backprop through the solver, or its own adjoint."""
    field, z0 = Smooth(), start().requires_grad_()
    times = torch.tensor([T0, T1], dtype=torch.float64, requires_grad=True)
    arguments = {"rtol": 1e-12, "atol": 1e-12, "method": "dopri5"}
    states = (odeint_adjoint if adjoint else odeint)(field, z0, times, **arguments)
    gradients = torch.autograd.grad(loss(states[-1]), (z0, field.weight, field.bias, times))
    return (*gradients[:3], *gradients[3])


def by_our_adjoint(config: SolverConfig = TIGHT) -> Gradients:
    field = Smooth()
    with torch.no_grad():
        z1 = odeint(field, start(), torch.tensor([T0, T1], dtype=torch.float64), rtol=1e-12, atol=1e-12)[-1]
    point = z1.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point), point)
    parameters = (field.weight, field.bias)
    found = adjoint_gradients(field, z1, slope, t0=T0, t1=T1, config=config, parameters=parameters)
    return (found.z0, *found.parameters, found.t0, found.t1)  # type: ignore[return-value]


@torch.no_grad()
def by_finite_differences(h: float = 1e-5) -> Gradients:
    field, z0, times = Smooth(), start(), torch.tensor([T0, T1], dtype=torch.float64)
    found = []
    for tensor in (z0, field.weight, field.bias, times):
        flat, slope = tensor.view(-1), torch.zeros(tensor.numel(), dtype=torch.float64)
        for i in range(len(flat)):
            kept, values = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = kept + sign * h
                values.append(loss(odeint(field, z0, times, rtol=1e-12, atol=1e-12)[-1]))
            flat[i] = kept
            slope[i] = (values[0] - values[1]) / (2 * h)
        found.append(slope.view_as(tensor))
    return (*found[:3], *found[3])  # type: ignore[return-value]


@pytest.mark.parametrize("way", ["backprop", "torchdiffeq's adjoint", "finite differences"])
def test_all_four_gradients_agree(way: str) -> None:
    expected = {
        "backprop": lambda: by_solver(adjoint=False),
        "torchdiffeq's adjoint": lambda: by_solver(adjoint=True),
        "finite differences": by_finite_differences,
    }[way]()
    for gradient, other in zip(by_our_adjoint(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)
        assert gradient.abs().max() > 1e-2  # or agreement would mean little


def linear_gradients(config: SolverConfig) -> tuple[AdjointGradients, Tensor, Tensor]:
    """Of L = ⟨c, z(t1)⟩ with dz/dt = z Aᵀ; and c, z1."""
    matrix = MATRIX.clone().requires_grad_()
    z1 = start() @ torch.linalg.matrix_exp(MATRIX * (T1 - T0)).T
    slope = torch.arange(1.0, 13, dtype=torch.float64).view(4, 3)
    found = adjoint_gradients(lambda _t, z: z @ matrix.T, z1, slope, t0=T0, t1=T1, config=config, parameters=(matrix,))
    return found, slope, z1


def test_closed_form_of_a_linear_field() -> None:
    """p(t0) = p(t1) e^{A(t1 − t0)}; ∂L/∂A by differentiating the matrix exponential; ∂L/∂t from autonomy."""
    found, slope, z1 = linear_gradients(TIGHT)
    matrix = MATRIX.clone().requires_grad_()
    flow = torch.linalg.matrix_exp(matrix * (T1 - T0))
    (by_matrix,) = torch.autograd.grad(((start() @ flow.T) * slope).sum(), matrix)
    by_time = (slope * (z1 @ MATRIX.T)).sum()
    exact = (slope @ flow.detach(), by_matrix, -by_time, by_time)
    for gradient, expected in zip((found.z0, *found.parameters, found.t0, found.t1), exact, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)


def test_the_adjoint_converges_with_the_order_of_its_solver() -> None:
    exact, _, _ = linear_gradients(TIGHT)
    errors = [
        (linear_gradients(SolverConfig(method="rk4", steps=n, gradient="backprop"))[0].z0 - exact.z0).norm()
        for n in (16, 32)
    ]
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(4, abs=0.2)


def test_a_solve_that_fails_is_an_error() -> None:
    config = SolverConfig(method="dopri5", rtol=1e-12, atol=1e-12, max_steps=2, control="batch", gradient="backprop")
    with pytest.raises(ArithmeticError, match="STEP_LIMIT"):
        by_our_adjoint(config)
