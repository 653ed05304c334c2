"""Nets solved with ever finer steps: what is an ODE stays what it is, and what is not is told apart."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import refining
from pipeline.models import cnn, euler_net, neural_ode, resnet, tisode
from pipeline.ode import SolverConfig
from pipeline.refinement import is_ode
from pipeline.refining import native_solver, refine

SHAPE: dict[str, Any] = {"in_shape": (1, 28, 28), "n_classes": 3}
RK4 = SolverConfig(method="rk4", steps=4, gradient="backprop")
TIED = {
    "euler_net": euler_net.build(euler_net.Config(channels=8, groups=2, blocks=6), **SHAPE),
    "neural_ode": neural_ode.build(neural_ode.Config(channels=8, groups=2, solver=RK4), **SHAPE),
    "tisode": tisode.build(tisode.Config(channels=8, groups=2, solver=RK4), **SHAPE),
}


def images(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 28, 28, generator=generator), torch.arange(n) % 3


@pytest.mark.parametrize("name", TIED)
def test_the_first_is_the_net_itself(name: str) -> None:
    net, (inputs, labels) = TIED[name].eval(), images()
    native = native_solver(net)
    assert native is not None
    assert (native.method, native.steps) == (("euler", 6) if name == "euler_net" else ("rk4", 4))
    found = refine(net, inputs, labels)
    assert native.steps is not None
    assert [one.steps for one in found] == [*(native.steps * k for k in (1, 2, 4, 8)), None]
    with torch.no_grad():
        predictions = net(inputs).argmax(1)
    assert found[0].accuracy == pytest.approx((predictions == labels).double().mean().item())


@pytest.mark.parametrize("name", TIED)
def test_finer_steps_come_nearer_to_the_flow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = dataclasses.replace(refining.REFERENCE, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(refining, "REFERENCE", tight)
    inputs, labels = images(4)
    found = refine(copy.deepcopy(TIED[name]).double().eval(), inputs.double(), labels)
    shifts = [one.logit_shift for one in found]
    assert shifts[-1] == 0
    assert found[-1].agreement == 1
    assert shifts[3] < shifts[0] / 4
    if name == "euler_net":  # of order one: half the steps, half the error
        assert shifts[2] / shifts[3] == pytest.approx(2, abs=0.3)


def test_a_stiff_net_is_told_from_its_flow() -> None:
    """Six Euler steps of a much stronger field are a map of their own, not a flow."""
    torch.manual_seed(0)
    net = euler_net.build(euler_net.Config(channels=8, groups=2, blocks=6), **SHAPE)
    net[2] = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 6, 3))  # type: ignore[index, operator]
    agreements = []
    for scale in (0.01, 1e4):
        with torch.no_grad():
            for parameter in net[1].field.conv2.parameters():  # type: ignore[index]
                parameter.mul_(scale)
        found = refine(net.eval(), *images(100))
        agreements.append(found[0].agreement)
        assert is_ode(found) == (scale < 1)
    assert agreements[1] < 0.9 < agreements[0]


@pytest.mark.parametrize(
    "net",
    [
        cnn.build(cnn.Config(channels=8, groups=2, blocks=2), **SHAPE),
        resnet.build(resnet.Config(channels=8, groups=2, blocks=2), **SHAPE),
        nn.Linear(3, 3),
    ],
    ids=["cnn", "resnet", "linear"],
)
def test_what_has_no_tied_block_is_left_out(net: nn.Module) -> None:
    assert refine(net.eval(), *images(2)) == []
