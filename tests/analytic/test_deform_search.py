"""Random search over fields: its constraints, its queries, and models whose gradients say nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.attacks import deform_pgd, deform_search
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.deform import deformation_size, folded_share, warp

SIDE = 12
CONFIG = deform_search.Config(norm="deformation", fold_free=True, queries=150, first_width=3.0, last_width=1.0)
every_threat = pytest.mark.parametrize("fold_free", [False, True])


class Logits(nn.Module):
    """A model given by a function of the images; keeps what it is asked about."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.seen = function, list[Tensor]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.clone())
        return self.function(inputs)


def linear(weights: Tensor, bias: float) -> Logits:
    """Label 0 against label 1 by the margin ⟨w, x⟩ + bias."""
    return Logits(lambda x: torch.stack((torch.zeros_like(x[:, 0, 0, 0]), (x[:, 0] * weights).sum((1, 2)) + bias), 1))


def ramp(slope_x: float, slope_y: float, n: int = 1) -> Tensor:
    """(n, 1, 12, 12): images of constant gradient, 0.5 in the middle."""
    rows, columns = torch.meshgrid(*2 * [torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2], indexing="ij")
    return (0.5 + slope_x * columns + slope_y * rows).expand(n, 1, -1, -1)


def interior(weights: Tensor) -> Tensor:
    """Without a frame of three pixels: disks of that radius around the others stay in the image."""
    result = torch.zeros_like(weights)
    result[3:-3, 3:-3] = weights[3:-3, 3:-3]
    return result


def blobs(n: int = 4) -> Tensor:
    """(n, 1, 12, 12): a bright blob on black, elsewhere in every image."""
    axis = torch.arange(SIDE, dtype=torch.float64)
    centres = 3 + 5 * torch.rand(n, 2, dtype=torch.float64)
    down, across = (torch.exp(-0.2 * (axis - centres[:, k, None]) ** 2) for k in range(2))
    return (down[:, :, None] * across[:, None, :])[:, None]


def run(
    model: nn.Module,
    inputs: Tensor,
    *,
    epsilon: float,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    **changes: Any,
) -> AttackOutput:
    labels = torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="deform_search")
    config = dataclasses.replace(CONFIG, **changes)
    return deform_search.attack(model, inputs, labels, targets=targets, epsilon=epsilon, config=config, rng=rng)


def climb(model: nn.Module, inputs: Tensor, *, fold_free: bool) -> AttackOutput:
    """deform_pgd within 2 pixels."""
    config = deform_pgd.Config(
        norm="deformation", fold_free=fold_free, sigma=0.5, steps=20, step_size=1.0, restarts=1, loss="margin"
    )
    labels = torch.zeros(len(inputs), dtype=torch.long)
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="deform_pgd")
    return deform_pgd.attack(model, inputs, labels, targets=None, epsilon=2.0, config=config, rng=rng)


def gain(model: Logits, inputs: Tensor, output: AttackOutput) -> Tensor:
    return (model.function(output.adv_inputs) - model.function(inputs))[:, 1]


# --- strength


@every_threat
@pytest.mark.parametrize("slopes", [(0.04, 0), (0, -0.03), (0.03, 0.03)])
def test_moves_a_ramp_uphill_where_that_pays(slopes: tuple[float, float], fold_free: bool) -> None:
    """All weights alike: τ = ε ∇x/|∇x| gains ε |∇x| Σw, and nothing gains more. It folds nowhere."""
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    model, inputs = linear(weights, -100), ramp(*slopes)
    best = 0.7 * math.hypot(*slopes) * weights.sum().item()
    found = gain(model, inputs, run(model, inputs, epsilon=0.7, fold_free=fold_free)).item()
    assert 0.97 * best < found <= best * (1 + 1e-9)


def test_uses_folds_only_where_it_may() -> None:
    """Weights of both signs side by side ask neighbours to move apart."""
    checks = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    checks[:, ::2] *= -1
    model, inputs = linear(checks, -100), ramp(0.04, 0)
    free, folded = (run(model, inputs, epsilon=2, fold_free=fold_free, last_width=0.5) for fold_free in (True, False))
    assert free.deformation is not None
    assert folded.deformation is not None
    assert folded_share(free.deformation).item() == 0
    assert folded_share(folded.deformation).item() > 0
    assert gain(model, inputs, folded) > gain(model, inputs, free)


@every_threat
def test_a_model_whose_gradient_is_zero_falls(fold_free: bool) -> None:
    """Stairs over a linear model: deform_pgd stands still at its first look, the search does not."""
    weights, inputs = torch.randn(SIDE, SIDE, dtype=torch.float64), blobs(1)
    smooth_model = linear(weights, -100)
    climbable = gain(smooth_model, inputs, climb(smooth_model, inputs, fold_free=fold_free)).item()
    height = (weights * inputs[0, 0]).sum().item() + 0.3 * climbable
    step = climbable / 30
    stairs = Logits(lambda x: (linear(weights, -height).function(x) / step).round() * step)
    stopped = climb(stairs, inputs, fold_free=fold_free)
    assert stopped.status.tolist() == [Status.STOPPED]
    assert stairs(stopped.adv_inputs).argmax(1).item() == 0
    output = run(stairs, inputs, epsilon=2, fold_free=fold_free)
    assert stairs(output.adv_inputs).argmax(1).item() == 1


def test_more_queries_raise_the_margin() -> None:
    model, inputs = linear(torch.randn(SIDE, SIDE, dtype=torch.float64), -100), blobs()
    few, some, many = (gain(model, inputs, run(model, inputs, epsilon=1, queries=queries)) for queries in (2, 20, 200))
    assert (few >= 0).all()
    assert (some > few).all()
    assert (many > some).all()


def test_a_target_is_reached() -> None:
    weights = torch.randn(3, SIDE, SIDE, dtype=torch.float64)
    inputs = blobs(1)
    scores = torch.einsum("khw,bhw->bk", weights, inputs[:, 0])
    model = Logits(lambda x: torch.einsum("khw,bhw->bk", weights, x[:, 0]) - scores + torch.tensor([0.5, 0.2, 0.0]))
    for target in (1, 2):
        output = run(model, inputs, epsilon=2, targets=torch.tensor([target]))
        assert model(output.adv_inputs).argmax(1).item() == target


# --- queries


def test_starts_at_the_image_and_costs_what_it_says() -> None:
    model, inputs = linear(torch.randn(SIDE, SIDE, dtype=torch.float64), -100), blobs()
    output = run(model, inputs, epsilon=1, queries=70)
    torch.testing.assert_close(model.seen[0], inputs)
    assert output.n_forwards.tolist() == [70] * 4
    assert output.n_backwards.tolist() == [0] * 4
    assert output.status.tolist() == [Status.OK] * 4


def test_returns_the_best_query_and_its_field() -> None:
    model, inputs = linear(torch.randn(SIDE, SIDE, dtype=torch.float64), -100), blobs()
    output = run(model, inputs, epsilon=1, queries=70)
    best = torch.stack([model.function(images)[:, 1] for images in model.seen]).argmax(0)
    assert output.deformation is not None
    assert torch.equal(output.adv_inputs, torch.stack(model.seen)[best, torch.arange(4)])
    assert torch.equal(output.adv_inputs, warp(inputs, output.deformation).clamp(0, 1))


def test_asks_about_the_edges_only() -> None:
    """A bright half: nothing moves far from its border, along which no field points."""
    image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    image[..., SIDE // 2 :] = 1
    output = run(linear(interior(torch.ones(SIDE, SIDE, dtype=torch.float64)), -100), image, epsilon=0.5)
    assert output.deformation is not None
    assert output.deformation[..., 1].abs().max() < 1e-9
    assert output.deformation[:, 3:-3, 5:7, 0].abs().min() > 0.25
    assert deformation_size(output.deformation[:, :, :1]).item() < 1e-2


def test_no_query_is_spent_where_the_image_is_flat() -> None:
    image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    image[..., SIDE // 2 :] = 1
    model = linear(-torch.ones(SIDE, SIDE, dtype=torch.float64), -100)
    run(model, image, epsilon=0.5, queries=40, first_width=0.5, last_width=0.5)
    assert min((seen - image).abs().max().item() for seen in model.seen[1:]) > 0.1


def test_an_image_without_slopes_is_survived() -> None:
    inputs = torch.full((2, 1, SIDE, SIDE), 0.5)
    output = run(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)), inputs, epsilon=1, queries=5)
    torch.testing.assert_close(output.adv_inputs, inputs)


def test_windows_that_grow_are_refused() -> None:
    with pytest.raises(ValueError, match="last_width"):
        dataclasses.replace(CONFIG, last_width=4.0)


@settings(max_examples=40, deadline=None)
@given(
    fold_free=st.booleans(),
    epsilon=st.just(0.0) | st.floats(1e-3, 8),
    width=st.floats(0.2, 8),
    noise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_field_is_short_enough_and_folds_nowhere(
    fold_free: bool, epsilon: float, width: float, noise: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = torch.rand(3, 1, SIDE, SIDE) if noise else blobs(3).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval()
    labels = model(inputs).argmax(1)
    changes: dict[str, Any] = {"fold_free": fold_free, "first_width": width, "last_width": width / 2, "queries": 25}
    output = run(model, inputs, epsilon=epsilon, labels=labels, **changes)
    assert output.deformation is not None
    assert (deformation_size(output.deformation.double()) <= epsilon).all()
    if fold_free:
        assert folded_share(output.deformation).tolist() == [0] * 3
    assert ((output.adv_inputs >= 0) & (output.adv_inputs <= 1)).all()
    assert output.status.tolist() == [Status.OK] * 3
