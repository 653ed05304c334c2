"""Trajectories: distances and logarithmic norms where both are known, and the bound of one by the other."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import provenance
from pipeline.config import load_params
from pipeline.models import adef_cnn, cnn, euler_net, input_ode, neural_ode, resnet, tisode
from pipeline.ode import SolverConfig, solve
from pipeline.stages.trajectories import choose
from pipeline.tracing import Perturbation, follow, kept_images, log_norm, trace
from pipeline.trajectory import NOISE, from_json
from tests.analytic.vector_fields import MATRIX, Smooth

SHAPE: dict[str, Any] = {"in_shape": (1, 28, 28), "n_classes": 3}
WIDTH: dict[str, Any] = {"channels": 8, "groups": 2}
FINE = SolverConfig(method="rk4", steps=10, gradient="backprop")
SOLVERS = {
    "rk4": SolverConfig(method="rk4", steps=4, gradient="backprop"),
    "adams": SolverConfig(method="explicit_adams", steps=8, gradient="backprop"),
    "tsit5": SolverConfig(method="tsit5", rtol=1e-6, atol=1e-6, max_steps=100, control="sample", gradient="backprop"),
}
NETS = {
    "cnn": cnn.build(cnn.Config(blocks=3, **WIDTH), **SHAPE),
    "resnet": resnet.build(resnet.Config(blocks=3, **WIDTH), **SHAPE),
    "euler_net": euler_net.build(euler_net.Config(blocks=3, **WIDTH), **SHAPE),
    "tisode": tisode.build(tisode.Config(solver=SOLVERS["rk4"], **WIDTH), **SHAPE),
} | {name: neural_ode.build(neural_ode.Config(solver=solver, **WIDTH), **SHAPE) for name, solver in SOLVERS.items()}


class Flow(nn.Module):
    """A body that solves dz/dt = field(t, z)."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.solver = field, FINE


class Linear(nn.Module):
    """f(z) = z Aᵀ."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def bind(self, _z: Tensor) -> Any:
        return lambda _t, z: z @ self.matrix.T, ()


class Bound(Smooth):
    def bind(self, _z: Tensor) -> Any:
        return self.forward, tuple(self.parameters())


def net_of(field: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), Flow(field), nn.Identity())


def states(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- distances --------------------------------------------------------------------------------------------------------


def test_distances_of_a_linear_flow_are_those_of_the_matrix_exponential() -> None:
    z, shift = states(5), 1e-3 * states(5, seed=1)
    attacked = Perturbation("attack", 0.1, dict(enumerate(z + shift)))
    found = trace(net_of(Linear(MATRIX)), z, [attacked])
    assert found is not None
    assert found.times == tuple(k / 10 for k in range(11))
    assert [one.perturbation for one in found.traces] == ["attack", NOISE]
    flows = [torch.linalg.matrix_exp(t * MATRIX).T for t in found.times]
    exact = torch.stack([(shift @ flow).norm(dim=1) for flow in flows])
    sizes = torch.stack([(z @ flow).norm(dim=1) for flow in flows])
    assert found.traces[0].distance == pytest.approx((exact / exact[0]).mean(1).tolist(), abs=1e-4)
    assert found.traces[0].relative == pytest.approx((exact / sizes).mean(1).tolist(), abs=1e-4)
    assert found.traces[0].rate == pytest.approx((10 * exact.log().diff(dim=0)).mean(1).tolist(), abs=1e-4)
    expected = torch.linalg.eigvalsh((MATRIX + MATRIX.T) / 2)[-1].item()
    assert found.log_norm == pytest.approx([expected] * 10)
    assert from_json(dataclasses.asdict(found)) == found


def test_noise_is_as_large_as_the_first_attack() -> None:
    """Under ż = 0 all distances stay, so ‖Δz‖/‖z‖ is the size of what was added."""
    z, shift = states(4), 0.1 * states(4, seed=1)
    attacks = [Perturbation(name, 0.1, dict(enumerate(z + k * shift))) for name, k in (("one", 1), ("two", 2))]
    found = trace(net_of(Linear(torch.zeros(3, 3, dtype=torch.float64))), z, attacks)
    assert found is not None
    one, two, noise = (trace.relative for trace in found.traces)
    assert noise == pytest.approx(one)
    assert two == pytest.approx([2 * value for value in one])
    assert found.traces[2].distance == pytest.approx([1.0] * 11)


def test_only_changed_images_count_and_each_against_its_own() -> None:
    z = states(4)
    found = trace(net_of(Linear(MATRIX)), z, [Perturbation("attack", None, {3: z[3] + 0.1, 1: z[1]})])
    alone = trace(net_of(Linear(MATRIX)), z[3:], [Perturbation("attack", None, {0: z[3] + 0.1})])
    assert found is not None
    assert alone is not None
    assert found.traces[0].n_images == 1
    assert found.traces[0].distance == pytest.approx(alone.traces[0].distance)
    unchanged = trace(net_of(Linear(MATRIX)), z, [Perturbation("attack", None, {0: z[0]})])
    assert unchanged is not None
    assert not unchanged.traces


def test_an_image_whose_solver_gives_up_is_left_out() -> None:
    z = states(3)
    broken = {0: z[0] + 0.1, 1: torch.full((3,), math.nan, dtype=torch.float64)}
    found = trace(net_of(Linear(MATRIX)), z, [Perturbation("attack", 0.1, broken)])
    assert found is not None
    assert found.traces[0].n_images == 1


def test_an_image_whose_change_the_stem_does_not_see_is_left_out() -> None:
    z = states(2).abs()
    z[0, 0] = -1.0
    blind = nn.Sequential(nn.ReLU(), Flow(Linear(MATRIX)), nn.Identity())
    other = z.clone()
    other[0, 0], other[1, 1] = -2.0, 5.0
    found = trace(blind, z, [Perturbation("attack", 0.1, dict(enumerate(other)))])
    assert found is not None
    assert found.traces[0].n_images == 1
    assert found.traces[0].distance[0] == 1


# --- the logarithmic norm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_the_logarithmic_norm_is_the_largest_eigenvalue(size: int) -> None:
    matrices = torch.randn(6, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    matrices[0] = 0
    matrices[1] = torch.eye(size)
    matrices[2] = -torch.eye(size)  # all of λ < 0: nothing may add an eigenvalue 0
    matrices[3] = -torch.diag(torch.arange(1, size + 1))
    expected = torch.linalg.eigvalsh((matrices + matrices.mT) / 2)[:, -1]
    found = log_norm(
        lambda z: torch.einsum("bij,bj->bi", matrices, z), torch.ones(6, size, dtype=torch.float64), steps=40
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_logarithmic_norm_of_a_net_is_that_of_its_jacobian() -> None:
    net = NETS["resnet"]
    z = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    path = follow(net[1], z)  # type: ignore[index]
    assert path is not None
    found = log_norm(lambda state: path.velocities[1](torch.tensor(0.0), state), z)
    for value, one in zip(found, z, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda state: path.velocities[1](torch.tensor(0.0), state[None])[0], one
        ).view(72, 72)
        exact = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1]
        assert value.item() == pytest.approx(exact.item(), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 3.0))
def test_distances_grow_no_faster_than_the_logarithmic_norm(seed: int, size: float) -> None:
    """‖Δz(t)‖ ≤ ‖Δz(0)‖ exp ∫ μ, μ the largest on the segment between the two (Dahlquist 1958, Lozinskii 1958)."""
    field = Bound()
    pair = size * states(2, seed)
    path = follow(Flow(field), pair)
    assert path is not None
    distances = torch.stack([z[0] - z[1] for z in path.states]).norm(dim=1)
    along = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    largest = [
        log_norm(partial(field, torch.tensor(t)), state[0] + along * (state[1] - state[0])).max().item()
        for t, state in zip(path.times, path.states, strict=True)
    ]
    integral = torch.cumulative_trapezoid(torch.tensor(largest), dx=1 / 10)
    assert (distances[1:] <= distances[0] * integral.exp() * (1 + 1e-2)).all()


# --- nets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_states_are_those_of_the_net(name: str) -> None:
    net, inputs = NETS[name].eval(), torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert isinstance(net, nn.Sequential)
    stem, body, head = net
    with torch.no_grad():
        path = follow(body, stem(inputs))
        assert path is not None
        torch.testing.assert_close(head(path.states[-1]), net(inputs))
        n_steps = {"adams": 8, "tsit5": 6, "rk4": 4, "tisode": 4}.get(name, 3)
        assert path.times == pytest.approx([k / n_steps for k in range(n_steps + 1)])
        if name in ("cnn", "resnet", "euler_net"):
            for t, (z, after), velocity in zip(path.times[:-1], pairwise(path.states), path.velocities, strict=True):
                torch.testing.assert_close(z + velocity(torch.tensor(t), z) / n_steps, after)
    found = trace(net, inputs, [Perturbation("attack", 0.1, {1: inputs[1] * 0.9})])
    assert found is not None
    assert all(map(math.isfinite, found.log_norm))
    assert found.traces[0].distance[0] == 1


@pytest.mark.parametrize("name", ["rk4", "tisode"])
@torch.no_grad()
def test_the_states_of_a_fixed_grid_are_a_step_apart(name: str) -> None:
    body = NETS[name][1]  # type: ignore[index]
    path = follow(body, torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert path is not None
    one = dataclasses.replace(SOLVERS["rk4"], steps=1)
    for (start, end), (z, after) in zip(pairwise(path.times), pairwise(path.states), strict=True):
        field, parameters = body.field.bind(z)
        solution = solve(field, z, t0=start, t1=end, config=one, parameters=parameters)
        torch.testing.assert_close(solution.z1, after, rtol=1e-5, atol=1e-6)


def test_pgd_and_a_field_that_does_not_fold_are_followed_if_there_are() -> None:
    attacks = load_params(provenance.ROOT / "params.yaml").attacks
    assert [attack.name for attack in choose(attacks)] == ["pgd", "deform_pgd_fold_free"]
    for name in [name for name in attacks if name == "pgd" or name.endswith("fold_free")]:
        del attacks[name]
    assert [attack.name for attack in choose(attacks)] == ["fgsm", "adef"]
    assert choose({"gaussian": attacks["gaussian"]}) == []


@pytest.mark.parametrize(
    "net",
    [
        cnn.build(cnn.Config(blocks=0, **WIDTH), **SHAPE),
        adef_cnn.build(adef_cnn.Config(preset="mnist_a"), **SHAPE),
        input_ode.build(input_ode.Config(width=2, augment=0, solver=SOLVERS["rk4"], readout="trained"), **SHAPE),
        nn.Linear(3, 3),
    ],
    ids=["no blocks", "adef_cnn", "input_ode", "linear"],
)
def test_what_has_no_steps_between_stem_and_head_is_left_out(net: nn.Module) -> None:
    assert trace(net, torch.rand(2, 1, 28, 28), []) is None


def test_an_image_that_fell_earlier_is_that_of_its_fall() -> None:
    def image(value: float) -> Tensor:
        return torch.full((1, 2, 2), value)

    kept = {0.05: [0, 1, 2], 0.1: [0, 2], 0.2: [2]}
    tensors = {}
    for epsilon, index in kept.items():
        tensors[f"seed1/eps{epsilon!r}/index"] = torch.tensor(index)
        tensors[f"seed1/eps{epsilon!r}/adv_inputs"] = torch.stack([image(epsilon) for _ in index])
        tensors[f"seed10/eps{epsilon!r}/index"] = torch.tensor([7])
        tensors[f"seed10/eps{epsilon!r}/adv_inputs"] = image(0)[None]
    found = kept_images(tensors, 1, 0.1)
    assert {index: one.max().item() for index, one in found.items()} == pytest.approx({0: 0.1, 1: 0.05, 2: 0.1})
    minimal = {"seed0/epsminimal/index": torch.tensor([4]), "seed0/epsminimal/adv_inputs": image(3)[None]}
    assert list(kept_images(minimal, 0, 0.1)) == [4]
