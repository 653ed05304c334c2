"""The benchmarks' own arithmetic: turns, floors, verdicts and comparisons. Their figures are nobody's test."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import strength
from benchmarks.passes import Recorder, floor
from benchmarks.peers import scipy_peer
from benchmarks.targets import Target
from benchmarks.timing import in_turns, ratio
from pipeline.attacks import adef, lbfgs
from pipeline.attacks.base import AttackOutput, ExampleRng
from pipeline.config import Params
from pipeline.deform import warp
from pipeline.errors import UserError


@pytest.fixture
def linear() -> nn.Module:
    """Three classes on images (B, 1, 6, 6)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False)


def test_tasks_take_turns() -> None:
    order: list[str] = []
    seconds = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)  # type: ignore[misc]
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_drift_divides_out_of_a_ratio() -> None:
    assert ratio({"a": [2.0, 40.0, 30.0], "b": [1.0, 20.0, 10.0]}, "a", "b") == 2


def test_floor_makes_the_recorded_passes(linear: nn.Module) -> None:
    inputs = torch.rand(8, 1, 6, 6)
    config = adef.Config(norm="deformation", candidates=2, sigma=0.5, max_iter=5, max_norm=math.inf, overshoot=1.2)
    recorder, again = Recorder(linear), Recorder(linear)
    rng = ExampleRng.for_examples(range(8), seed=0, dataset="d", attack="adef")
    labels = linear(inputs).argmax(1)
    output = adef.attack(recorder, inputs, labels, targets=None, epsilon=None, config=config, rng=rng)
    floor(again, inputs, recorder.passes)
    assert again.passes == recorder.passes
    assert len({size for size, _ in recorder.passes}) > 1, "a constant batch tests little"
    spent = int(output.n_forwards.sum()), int(output.n_backwards.sum())
    assert recorder.per_image(8) == f"{spent[0] / 8:.1f} + {spent[1] / 8:.1f}"


def test_scipy_comes_to_the_boundary_of_a_linear_classifier() -> None:
    """Two classes, and no bound of the box in the way: the least ‖r‖₂ is |f| / ‖∇f‖₂."""
    linear = nn.Linear(36, 2)
    net = nn.Sequential(nn.Flatten(), linear).double().eval().requires_grad_(False)
    inputs = torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64)
    gap = linear.weight[0] - linear.weight[1]
    linear.bias.add_(0.3 * gap.norm() * torch.tensor([1.0, 0.0]) - net(inputs)[0])
    config = lbfgs.Config(
        norm="l2",
        targets="runner_up",
        search_steps=12,
        iterations=20,
        memory=5,
        initial_c=30.0,
        bracket_factor=4.0,
        tolerance=1e-3,
    )
    found = scipy_peer(config, iterations=60, tolerance=1e-9)(net, inputs, net(inputs).argmax(1))
    assert 0.3 <= float((found - inputs).norm()) <= 0.303


def test_comparison_is_of_images_that_both_fool() -> None:
    inf = math.inf
    found = strength.compare(torch.tensor([1.0, 3.0, inf, 2.0, 0.5]), torch.tensor([2.0, 2.0, 1.0, inf, 6.0]))
    assert found == strength.Comparison(both=3, ours=1.5, theirs=10 / 3, share_larger=1 / 3)
    assert found.ratio == pytest.approx(0.45)
    assert math.isnan(strength.compare(torch.tensor([inf]), torch.tensor([1.0])).ratio)


def test_verdict_says_figure_target_and_outcome() -> None:
    assert Target("≤", 0.7).verdict(0.7) == "0.700 (≤ 0.7: met)"
    assert Target("≤", 0.7).verdict(0.71) == "0.710 (≤ 0.7: MISSED)"
    assert Target("≥", 5).verdict(5.2) == "5.200 (≥ 5: met)"
    assert not Target("≥", 5).is_met(4.9)
    assert not Target("≤", 5).is_met(math.nan)


def output(adv_inputs: Tensor, deformation: Tensor | None) -> AttackOutput:
    zeros = torch.zeros(len(adv_inputs), dtype=torch.int64)
    return AttackOutput(adv_inputs, deformation, zeros, zeros, zeros)


def test_success_is_judged_from_predictions_and_fields(linear: nn.Module) -> None:
    inputs = torch.rand(1, 1, 6, 6)
    swapped = torch.zeros(1, 6, 6, 2)
    swapped[0, 2, 2, 0], swapped[0, 2, 3, 0] = 1.5, -1.5  # two neighbours change sides: a fold
    adv_inputs = warp(inputs, swapped).clamp(0, 1)
    right = linear(adv_inputs).argmax(1)
    fooled = strength.Victim("linear", linear, (0,), inputs, (right + 1) % 3)
    standing = strength.Victim("linear", linear, (0,), inputs, right)

    assert strength.sizes(fooled, adv_inputs, "l2").item() == pytest.approx(float((adv_inputs - inputs).norm()))
    assert strength.sizes(standing, adv_inputs, "linf").isinf()
    honest = output(adv_inputs, swapped)
    assert strength.deformation_sizes(fooled, honest, fold_free=False).item() == pytest.approx(1.5)
    assert strength.deformation_sizes(fooled, honest, fold_free=True).isinf()
    assert strength.deformation_sizes(standing, honest, fold_free=False).isinf()
    assert strength.deformation_sizes(fooled, output(adv_inputs, 0.5 * swapped), fold_free=False).isinf()


def test_missing_checkpoints_are_one_clear_error(
    shipped: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run `make repro` first"):
        strength.load_victims(shipped, seed=0)
