"""solve() against matrix exponentials, measured convergence orders and finite differences; the field's time channel."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import euler_net, input_ode, neural_ode, tisode
from pipeline.models.base import BlockConfig
from pipeline.models.vector_field import TimeConv2d, TimeField
from pipeline.ode import Solution, SolverConfig, SolverStatus, solve
from pipeline.ode.solve import CONTROLLED_BY
from tests.analytic.vector_fields import MATRIX, Smooth

Method = Literal["euler", "midpoint", "rk4", "explicit_adams"]
Gradient = Literal["backprop", "adjoint"]
ORDERS: dict[Method, int] = {"euler": 1, "midpoint": 2, "rk4": 4, "explicit_adams": 4}
STAGES: dict[Method, int] = {"euler": 1, "midpoint": 2, "rk4": 4}


def fixed(method: Method, steps: int, gradient: Gradient = "backprop") -> SolverConfig:
    return SolverConfig(method=method, steps=steps, gradient=gradient)


def adaptive(
    tolerance: float,
    *,
    method: Literal["dopri5", "tsit5"] = "dopri5",
    control: Literal["batch", "sample"] = "batch",
    max_steps: int = 1000,
    gradient: Gradient = "backprop",
) -> SolverConfig:
    return SolverConfig(
        method=method, rtol=tolerance, atol=tolerance, max_steps=max_steps, control=control, gradient=gradient
    )


ADAPTIVE: dict[str, Any] = {
    f"{method}-{control}": {"method": method, "control": control}
    for method, controls in CONTROLLED_BY.items()
    for control in controls
}
every_adaptive = pytest.mark.parametrize("which", ADAPTIVE.values(), ids=ADAPTIVE.keys())
PER_SAMPLE: list[Any] = [which for which in ADAPTIVE.values() if which["control"] == "sample"]
every_per_sample = pytest.mark.parametrize("which", PER_SAMPLE, ids=lambda which: which["method"])


def linear(_t: Tensor, z: Tensor) -> Tensor:
    return z @ MATRIX.T


def solve_linear(config: SolverConfig, z0: Tensor, *, t0: float = 0.0, t1: float = 1.0) -> Solution:
    return solve(linear, z0, t0=t0, t1=t1, config=config, parameters=())


def states(n: int = 5) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ORDERS)
def test_convergence_order_on_a_linear_system(method: Method) -> None:
    z0 = states()
    exact = z0 @ torch.linalg.matrix_exp(MATRIX).T
    counts = (16, 32, 64)
    errors = [float((solve_linear(fixed(method, n), z0).z1 - exact).norm()) for n in counts]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured == pytest.approx([ORDERS[method]] * 2, abs=0.15)


@pytest.mark.parametrize("method", ORDERS)
def test_convergence_order_when_the_field_depends_on_time(method: Method) -> None:
    """dz/dt = z cos t: z(t) = z₀ exp(sin t - sin t0). A solver that ignores the stages' times falls to order 1 or 0."""
    z0 = states()
    exact = z0 * math.exp(math.sin(2.0) - math.sin(0.5))

    def error(steps: int) -> float:
        config = fixed(method, steps)
        z1 = solve(lambda t, z: z * t.cos(), z0, t0=0.5, t1=2.0, config=config, parameters=()).z1
        return float((z1 - exact).norm())

    errors = error(128), error(256)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", STAGES)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_nfe_is_exact(method: Method, steps: int) -> None:
    solution = solve_linear(fixed(method, steps), states())
    assert solution.nfe.tolist() == [STAGES[method] * steps] * 5
    assert solution.accepted.tolist() == [steps] * 5
    assert not solution.rejected.any()


@every_adaptive
def test_nfe_counts_every_evaluation_of_an_adaptive_solve(which: Any) -> None:
    """Of the batch; a sample that controls its own steps is evaluated until the last one has arrived."""
    calls = 0

    def counted(t: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return linear(t, z)

    solution = solve(counted, states(), t0=0.0, t1=1.0, config=adaptive(1e-6, **which), parameters=())
    assert solution.nfe.max() == calls > 6
    assert (solution.accepted > 1).all()


@every_adaptive
def test_rejected_steps_are_counted(which: Any) -> None:
    """A field that turns sharp half-way: steps that were right before it are wrong there."""

    def bend(t: Tensor, z: Tensor) -> Tensor:
        return z * torch.tanh(200 * (t - 0.5)) * 10

    solution = solve(bend, states(), t0=0.0, t1=1.0, config=adaptive(1e-6, **which), parameters=())
    assert (solution.rejected > 0).all()
    assert torch.equal(solution.nfe, 6 * (solution.accepted + solution.rejected) + 2)


@pytest.mark.parametrize(
    "config", [fixed("rk4", 64), *(adaptive(1e-9, **which) for which in ADAPTIVE.values())], ids=["rk4", *ADAPTIVE]
)
def test_backwards_in_time_undoes_forwards(config: SolverConfig) -> None:
    z0 = states()
    there = solve_linear(config, z0).z1
    torch.testing.assert_close(solve_linear(config, there, t0=1.0, t1=0.0).z1, z0, rtol=0, atol=1e-6)


@every_adaptive
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_an_adaptive_solve_keeps_its_tolerance(tolerance: float, which: Any) -> None:
    z0 = states()
    error = (solve_linear(adaptive(tolerance, **which), z0).z1 - z0 @ torch.linalg.matrix_exp(MATRIX).T).abs().max()
    assert error < 20 * tolerance


def test_fixed_steps_do_not_couple_the_batch() -> None:
    z0 = states(5)
    whole = solve_linear(fixed("rk4", 4), z0).z1
    alone = torch.cat([solve_linear(fixed("rk4", 4), z0[i : i + 1]).z1 for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-14)


def spread_states() -> Tensor:
    """Five states of very different sizes: what one finds easy another finds hard."""
    return states() * torch.logspace(-2, 2, 5, dtype=torch.float64)[:, None]


@every_per_sample
def test_samples_that_control_their_steps_do_not_know_each_other(which: Any) -> None:
    config, z0 = adaptive(1e-3, **which), spread_states()
    whole = solve(cubic, z0, t0=0.0, t1=1.0, config=config, parameters=())
    assert len(set(whole.nfe.tolist())) > 2
    for i in range(5):
        alone = solve(cubic, z0[i : i + 1], t0=0.0, t1=1.0, config=config, parameters=())
        torch.testing.assert_close(alone.z1[0], whole.z1[i], rtol=0, atol=1e-12)
        for name in ("nfe", "accepted", "rejected", "status"):
            assert getattr(alone, name)[0] == getattr(whole, name)[i], name


def test_steps_of_the_batch_couple_it() -> None:
    """What the two tests above would show if it went unnoticed."""
    config, z0 = adaptive(1e-3), spread_states()
    z0 = z0.flip(0) / 100 + 1
    whole = solve(cubic, z0, t0=0.0, t1=1.0, config=config, parameters=())
    alone = solve(cubic, z0[:1], t0=0.0, t1=1.0, config=config, parameters=())
    assert (alone.z1[0] - whole.z1[0]).abs().max() > 1e-9
    assert not torch.equal(alone.nfe, whole.nfe[:1])
    assert config.couples_batch


@every_per_sample
def test_a_sample_that_fails_takes_no_other_with_it(which: Any) -> None:
    config = adaptive(1e-6, **which, max_steps=30)
    z0 = states()
    rates = torch.tensor([1.0, 300.0, 1.0, 300.0, 2.0], dtype=torch.float64)

    start = z0.clone().requires_grad_()
    # Rows are told apart by a state that never changes, whatever batch they are solved in.
    start_rates = torch.cat((start[:, :2], rates[:, None]), dim=1)

    def by_state(_t: Tensor, z: Tensor) -> Tensor:
        return torch.stack((-z[:, 1] * z[:, 2], z[:, 0] * z[:, 2], z[:, 2] * 0), dim=1)

    solution = solve(by_state, start_rates, t0=0.0, t1=1.0, config=config, parameters=())
    assert solution.status.tolist() == [0, SolverStatus.STEP_LIMIT, 0, SolverStatus.STEP_LIMIT, 0]
    assert solution.z1.isfinite().all(1).tolist() == [True, False, True, False, True]
    good = torch.tensor([0, 2, 4])
    alone = solve(by_state, start_rates[good], t0=0.0, t1=1.0, config=config, parameters=())
    torch.testing.assert_close(solution.z1[good], alone.z1)
    assert torch.equal(solution.nfe[good], alone.nfe)
    (gradient,) = torch.autograd.grad(solution.z1[good].sum(), start)
    assert gradient[good].isfinite().all()
    assert gradient[good].any()


def cubic(_t: Tensor, z: Tensor) -> Tensor:
    """dz/dt = −z³: the larger the state, the stiffer."""
    return -(z**3)


# Gradients, on a smooth field with parameters.


def loss_of(field: Smooth, z0: Tensor, config: SolverConfig) -> Tensor:
    z1 = solve(field, z0, t0=0.0, t1=1.0, config=config, parameters=tuple(field.parameters())).z1
    return (z1.sin() * torch.arange(1, 4)).sum()


def gradients(config: SolverConfig) -> list[Tensor]:
    field, z0 = Smooth(), states().requires_grad_()
    return list(torch.autograd.grad(loss_of(field, z0, config), (z0, field.weight, field.bias)))


@torch.no_grad()
def finite_differences(config: SolverConfig, *, h: float = 1e-6) -> list[Tensor]:
    field, z0 = Smooth(), states()
    found = []
    for tensor in (z0, field.weight, field.bias):
        slope, flat = torch.zeros_like(tensor), tensor.view(-1)
        for i in range(flat.numel()):
            kept = float(flat[i])
            flat[i] = kept + h
            high = float(loss_of(field, z0, config))
            flat[i] = kept - h
            low = float(loss_of(field, z0, config))
            flat[i] = kept
            slope.view(-1)[i] = (high - low) / (2 * h)
        found.append(slope)
    return found


@pytest.mark.parametrize(
    ("config", "tolerance"),
    # torchdiffeq differentiates an adaptive solve with its steps held fixed: right to its tolerance only.
    [
        *((fixed(method, 3), 1e-7) for method in ORDERS),
        (adaptive(1e-9), 1e-6),
        # Loose: the steps' own dependence on the state is in the gradient.
        *((adaptive(1e-2, **which), 1e-6) for which in PER_SAMPLE),
    ],
    ids=[*ORDERS, "dopri5", *(f"{which['method']}-sample" for which in PER_SAMPLE)],
)
def test_backprop_is_the_derivative_of_the_discrete_solve(config: SolverConfig, tolerance: float) -> None:
    for gradient, expected in zip(gradients(config), finite_differences(config), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("through", "adjoint"),
    [
        (fixed("rk4", 64), fixed("rk4", 64, "adjoint")),
        (adaptive(1e-10), adaptive(1e-10, gradient="adjoint")),
    ],
    ids=["rk4", "dopri5"],
)
def test_adjoint_gradient_converges_to_backprop(through: SolverConfig, adjoint: SolverConfig) -> None:
    for gradient, expected in zip(gradients(adjoint), gradients(through), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_adjoint_gradient_of_coarse_steps_differs() -> None:
    """Why attacks go through the solver: the adjoint is the gradient of the continuous flow, not of the computation."""
    exact, other = gradients(fixed("euler", 3))[0], gradients(fixed("euler", 3, "adjoint"))[0]
    assert (exact - other).abs().max() > 1e-3


# Failures are statuses.


@every_adaptive
def test_too_many_steps_end_with_a_status_and_nan(which: Any) -> None:
    solution = solve_linear(adaptive(1e-12, max_steps=2, **which), states())
    assert solution.status.tolist() == [SolverStatus.STEP_LIMIT] * 5
    assert solution.z1.shape == (5, 3)
    assert solution.z1.isnan().all()
    assert (solution.nfe > 0).all()


@every_adaptive
def test_a_field_that_is_not_finite_ends_an_adaptive_solve_with_a_status(which: Any) -> None:
    solution = solve(lambda _t, z: z / 0, states(), t0=0.0, t1=1.0, config=adaptive(1e-6, **which), parameters=())
    assert solution.status.tolist() == [SolverStatus.NON_FINITE] * 5
    assert solution.z1.isnan().all()


def test_a_state_that_is_not_finite_spoils_no_other_at_fixed_steps() -> None:
    z0 = states()
    z0[2] = torch.nan
    z1 = solve_linear(fixed("rk4", 4), z0).z1
    assert z1.isfinite().all(1).tolist() == [True, True, False, True, True]


@every_adaptive
def test_a_failed_solve_can_be_differentiated(which: Any) -> None:
    """Attacks ask for a gradient of whatever comes back; NaN is an answer, an exception is a crash."""
    z0 = states().requires_grad_()
    z1 = solve_linear(adaptive(1e-12, max_steps=2, **which), z0).z1
    (gradient,) = torch.autograd.grad(z1.sum(), z0)
    assert gradient.isnan().all()


DOPRI5 = {"method": "dopri5", "steps": None, "rtol": 1e-3, "atol": 1e-3, "max_steps": 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "steps: needed by rk4"),
        ({"rtol": 0.1}, "rtol: must be null for rk4"),
        ({"control": "sample"}, "control: must be null for rk4"),
        ({"method": "dopri5"}, "steps: must be null for dopri5"),
        (DOPRI5, "control: needed by dopri5"),
        (DOPRI5 | {"method": "tsit5", "control": "batch"}, "control: for tsit5 it must be sample"),
        (DOPRI5 | {"control": "sample", "gradient": "adjoint"}, "gradient: must be backprop"),
    ],
)
def test_a_config_that_leaves_something_open_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"method": "rk4", "steps": 4, "gradient": "backprop"}
    with pytest.raises(ValueError, match=f"^{message}"):
        SolverConfig(**arguments | changes)  # type: ignore[arg-type]


# The field of the image models.


def test_time_conv_is_the_convolution_of_the_joined_state() -> None:
    conv = TimeConv2d(4).double()
    joint = nn.Conv2d(5, 4, 3, padding=1).double()
    with torch.no_grad():
        joint.weight.copy_(torch.cat((conv.time.weight, conv.state.weight), dim=1))
        assert joint.bias is not None
        assert conv.state.bias is not None
        joint.bias.copy_(conv.state.bias)
        z, t = torch.randn(3, 4, 6, 7, dtype=torch.float64), torch.tensor(0.37, dtype=torch.float64)
        expected = joint(torch.cat((t.expand(3, 1, 6, 7), z), dim=1))
        torch.testing.assert_close(conv(t, z, conv.time_map(z)), expected, rtol=0, atol=1e-12)


def test_adjoint_reaches_every_weight_of_the_time_field() -> None:
    """The time maps are not parameters; the adjoint must carry their gradients on to the weights all the same."""
    torch.manual_seed(0)
    time_field = TimeField(BlockConfig(channels=4, groups=2)).double()
    z0 = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    found = []
    for gradient in ("backprop", "adjoint"):
        field, parameters = time_field.bind(z0)
        config = fixed("rk4", 32, gradient)
        z1 = solve(field, z0, t0=0.0, t1=1.0, config=config, parameters=parameters).z1
        found.append(torch.autograd.grad(z1.square().sum(), tuple(time_field.parameters())))
    for (name, _), through, adjoint in zip(time_field.named_parameters(), *found, strict=True):
        assert through.any(), name
        # The field has kinks (ReLU), where neither converges fast.
        torch.testing.assert_close(adjoint, through, rtol=2e-2, atol=2e-2 * float(through.abs().max()))


def test_euler_net_is_the_ode_solved_by_euler() -> None:
    shape: dict[str, Any] = {"in_shape": (1, 28, 28), "n_classes": 3}
    tied = euler_net.build(euler_net.Config(channels=8, groups=2, blocks=5), **shape).double()
    flow = neural_ode.build(neural_ode.Config(channels=8, groups=2, solver=fixed("euler", 5)), **shape).double()
    flow.load_state_dict(tied.state_dict())
    inputs = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow(inputs), tied(inputs), rtol=0, atol=1e-12)


def test_tisode_takes_the_path_beyond_its_end() -> None:
    """∫ mean|f(z(t))| dt over [1, 1 + T] by a fine sum over the trajectory."""
    solver = SolverConfig(method="rk4", steps=8, gradient="backprop")
    net = tisode.build(tisode.Config(channels=4, groups=2, solver=solver), in_shape=(1, 28, 28), n_classes=3).double()
    block, z = net[1], torch.randn(2, 4, 6, 6, dtype=torch.float64)  # type: ignore[index]
    block.beyond = 2.0
    with torch.no_grad():
        end = block(z)
        n, speeds, state = 400, [], end
        for k in range(n + 1):
            velocity = block.field(state)
            speeds.append(velocity.abs().mean((1, 2, 3)))
            if k < n:
                step: Any = {"t0": 0.0, "t1": 2 / n, "config": fixed("rk4", 1), "parameters": ()}
                state = solve(lambda _t, y: block.field(y), state, **step).z1
    speed = torch.stack(speeds)
    expected = (speed[1:] + speed[:-1]).sum(0) / 2 * (2 / n)
    torch.testing.assert_close(block.path, expected, rtol=1e-3, atol=0)


def test_the_state_of_the_input_ode_is_the_image() -> None:
    """With a field of zero the logits are the read-out of the normalised image, padded with channels of zeros."""
    config = input_ode.Config(width=4, augment=2, solver=fixed("rk4", 2), readout="fixed")
    net = input_ode.build(config, in_shape=(1, 28, 28), n_classes=3).double()
    inputs = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net[1].field.out.parameters():  # type: ignore[index]
            parameter.zero_()
        state = torch.cat(((2 * inputs - 1).flatten(1), torch.zeros(2, 2 * 784)), dim=1)
        torch.testing.assert_close(net(inputs), net[3](state.double()))  # type: ignore[index]
    assert not any(parameter.requires_grad for parameter in net[3].parameters())  # type: ignore[index]
