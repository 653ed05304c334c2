"""Probes against nets whose answer is known, and planted defects against a sound net of the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.defects import DEFECTS
from pipeline.evaluate import Examples
from pipeline.masking import alarms
from pipeline.models import neural_ode
from pipeline.models.neural_ode import Config
from pipeline.ode import SolverConfig
from pipeline.probe import Probe
from pipeline.probing import Subject, finer, measure
from pipeline.settings import ProbeConfig

N = 8
CONFIG = ProbeConfig(n_images=N, most_steps=50)
RK4 = SolverConfig(method="rk4", steps=2, gradient="backprop")
TSIT5 = SolverConfig(method="tsit5", rtol=1e-3, atol=1e-3, max_steps=200, control="sample", gradient="backprop")


class Linear(nn.Module):
    """Two classes by mean brightness: logits ∓ scale · (mean − .5)."""

    def __init__(self, scale: float = 40.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        excess = self.scale * (inputs.flatten(1).mean(1) - 0.5)
        return torch.stack((-excess, excess), 1)


def dark(brightness: float = 0.38) -> Examples:
    """Images of class 0 that fall at ℓ∞ strengths of .5 − ``brightness`` and above."""
    inputs = torch.full((N, 1, 4, 4), brightness)
    return Examples(tuple(range(N)), inputs, torch.zeros(N, dtype=torch.int64), ("",) * N)


def test_a_linear_net_is_measured_exactly() -> None:
    probe = measure(Subject(Linear()), dark(), CONFIG, seed=0)
    assert probe.logit_scale == pytest.approx(2 * 40 * 0.12)
    assert probe.epsilon == 0.1, "all stand up to .12 and none above; of the strengths that leave any, the largest"
    assert probe.ladder == [25, 50]
    assert probe.robust_accuracy == [1.0, 1.0]
    assert (probe.repeat_shift, probe.dead_gradients, probe.failed_ascents, probe.unbounded) == (0, 0, 0, 0)
    assert probe.batch_shift < 1e-6
    assert (probe.solver_shift, probe.adjoint_angle, probe.nfe_ratio) == (None, None, None)
    assert (probe.one_step, probe.probabilities, probe.clipped) == (0, 0, 1), "all logits equal one of two values"


def test_wrong_predictions_are_left_out() -> None:
    """All measurements on attacks are of the correctly classified."""
    mixed = dark()
    mixed.inputs[: N // 2] = 0.9
    alone = measure(Subject(Linear()), dark(), CONFIG, seed=0)
    assert measure(Subject(Linear()), mixed, CONFIG, seed=0).robust_accuracy == alone.robust_accuracy


def _labelled_by(net: nn.Module) -> Examples:
    """Noise, with the net's own predictions for labels."""
    inputs = torch.rand(N, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Examples(tuple(range(N)), inputs, net(inputs).argmax(1).detach(), ("",) * N)


def _solved(solver: SolverConfig, *, stiffness: float = 3.0) -> nn.Module:
    """An untrained Neural ODE, the same weights under any solver; a loose one gets stiff dynamics wrong."""
    torch.manual_seed(1)
    net = neural_ode.build(Config(channels=8, groups=4, solver=solver), in_shape=(1, 28, 28), n_classes=10)
    with torch.no_grad():
        for parameter in net[1].parameters():  # type: ignore[index]
            parameter.mul_(stiffness)
        net[2][-1].weight.mul_(100)  # type: ignore[index, union-attr]
    return net.eval()


def _raised(probe: Probe) -> set[str]:
    return {alarm.name for alarm in alarms("net", [probe], {}) if alarm.raised}


@pytest.mark.parametrize("solver", [RK4, TSIT5], ids=["rk4", "tsit5"])
def test_a_sound_ode_raises_no_alarm(solver: SolverConfig) -> None:
    net, fine, exact = (_solved(one, stiffness=1.0) for one in (solver, finer(solver), solver))
    assert _raised(measure(Subject(net, fine, exact), _labelled_by(net), CONFIG, seed=0)) == set()


@pytest.mark.parametrize("label", [label for label, defect in DEFECTS.items() if defect.plant])
def test_every_planted_defect_raises_its_alarm(label: str) -> None:
    torch.manual_seed(2)
    defect = DEFECTS[label]
    assert defect.plant
    planted = defect.plant(_solved(RK4)).eval()
    assert _raised(measure(Subject(planted), _labelled_by(planted), CONFIG, seed=0)) & set(defect.alarms)


@pytest.mark.parametrize("label", [label for label, defect in DEFECTS.items() if defect.solver])
def test_every_solver_that_is_a_defect_raises_its_alarm(label: str) -> None:
    solver = DEFECTS[label].solver
    assert solver
    exact = SolverConfig(
        method=solver.method, rtol=solver.rtol, atol=solver.atol, max_steps=100, control="batch", gradient="backprop"
    )
    subject = Subject(_solved(solver), finer=_solved(finer(solver)), exact=_solved(exact))
    assert _raised(measure(subject, _labelled_by(subject.net), CONFIG, seed=0)) & set(DEFECTS[label].alarms)


@pytest.mark.parametrize(("solver", "check"), [(RK4, lambda s: s.steps == 8), (TSIT5, lambda s: s.rtol < 1e-4)])
def test_finer_is_finer(solver: SolverConfig, check: Callable[[SolverConfig], bool]) -> None:
    assert check(finer(solver))
    assert not finer(solver).couples_batch


def test_nan_logits_are_never_sound() -> None:
    class Broken(nn.Module):
        """Its logits are NaN where a gradient is asked for."""

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = Linear()(inputs)
            return logits * math.nan if inputs.requires_grad else logits

    assert _raised(measure(Subject(Broken()), dark(), CONFIG, seed=0)) & {"dead gradient", "no ascent"}
