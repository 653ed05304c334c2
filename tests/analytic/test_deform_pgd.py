"""Ascent on deformations against its closed forms on linear classifiers of linear images, and its bookkeeping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import deform_pgd
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.attacks.displacement import ANGLES, LEAST_DETERMINANT
from pipeline.attacks.losses import margin
from pipeline.deform import deformation_size, folded_share, warp

SIDE = 12
CONFIG = deform_pgd.Config(
    norm="deformation", fold_free=False, sigma=0, steps=30, step_size=0.5, restarts=1, loss="margin"
)
every_threat = pytest.mark.parametrize("fold_free", [False, True])


def ramp(slope_x: float, slope_y: float) -> Tensor:
    """(1, 1, 12, 12): an image of constant gradient, 0.5 in the middle."""
    rows, columns = torch.meshgrid(*2 * [torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2], indexing="ij")
    return (0.5 + slope_x * columns + slope_y * rows)[None, None]


def interior(weights: Tensor) -> Tensor:
    """Weights (12, 12) without a frame of three pixels: disks of that radius around the others stay in the image."""
    result = torch.zeros_like(weights)
    result[3:-3, 3:-3] = weights[3:-3, 3:-3]
    return result


class Logits(nn.Module):
    """A model given by a function of the images."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def linear(weights: Tensor, bias: float) -> nn.Module:
    """Label 0 against label 1 by the margin ⟨w, x⟩ + bias."""
    return Logits(lambda x: torch.stack((torch.zeros_like(x[:, 0, 0, 0]), (x[:, 0] * weights).sum((1, 2)) + bias), 1))


def run(
    model: nn.Module,
    inputs: Tensor,
    *,
    epsilon: float,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    **changes: Any,
) -> AttackOutput:
    labels = torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels
    rng = ExampleRng.for_examples(range(len(inputs)), seed=seed, dataset="d", attack="deform_pgd")
    config = dataclasses.replace(CONFIG, **changes)
    return deform_pgd.attack(model, inputs, labels, targets=targets, epsilon=epsilon, config=config, rng=rng)


def gain(model: nn.Module, inputs: Tensor, output: AttackOutput) -> float:
    zero = torch.zeros(len(inputs), dtype=torch.long)
    return (margin(model(output.adv_inputs), zero) - margin(model(inputs), zero)).item()


# --- closed forms


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("epsilon", [0.3, 1.7])
@pytest.mark.parametrize("slopes", [(0.05, 0), (0, -0.04), (0.03, 0.03), (-0.03, 0.03)])
def test_reaches_the_optimum_over_all_fields(
    slopes: tuple[float, float], epsilon: float, loss: Literal["cross_entropy", "margin"]
) -> None:
    """τ(u) = ε sign(w(u)) ∇x/|∇x| gains ε |∇x| Σ|w|, and nothing gains more."""
    weights = interior(torch.randn(SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    inputs, model = ramp(*slopes), linear(weights, -100)
    output = run(model, inputs, epsilon=epsilon, loss=loss)
    assert gain(model, inputs, output) == pytest.approx(epsilon * math.hypot(*slopes) * weights.abs().sum().item())
    assert output.deformation is not None
    expected = epsilon * weights.sign()[..., None] * torch.tensor(slopes) / math.hypot(*slopes)
    inside = weights != 0
    torch.testing.assert_close(output.deformation[0][inside], expected[inside].double())


def test_loses_no_more_than_its_grid_of_directions_where_the_gradient_lies_between_two() -> None:
    angle = math.pi / ANGLES
    inputs = ramp(0.04 * math.cos(angle), 0.04 * math.sin(angle))
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    model = linear(weights, -100)
    best = 0.04 * weights.sum().item()
    assert math.cos(angle) * best * (1 - 1e-9) <= gain(model, inputs, run(model, inputs, epsilon=1)) <= best


@pytest.mark.parametrize("epsilon", [0.3, 0.45])
def test_reaches_the_optimum_over_fold_free_fields_that_is_no_different_while_small(epsilon: float) -> None:
    """Neighbours that move towards each other by ε < (1 − least determinant)/2 do not meet."""
    weights = interior((-1.0) ** torch.arange(SIDE, dtype=torch.float64).expand(SIDE, SIDE))
    inputs, model = ramp(0.05, 0), linear(weights, -100)
    output = run(model, inputs, epsilon=epsilon, fold_free=True)
    assert gain(model, inputs, output) == pytest.approx(epsilon * 0.05 * weights.abs().sum().item())


@pytest.mark.parametrize("epsilon", [0.7, 2.0])
def test_comes_close_to_the_optimum_over_fold_free_fields_where_it_differs(epsilon: float) -> None:
    """Columns of alternating sign move towards each other in pairs, which can share 1 − least determinant pixels.

    The six interior columns are three pairs; within a row all pixels are alike.
    """
    weights = interior((-1.0) ** torch.arange(1, SIDE + 1, dtype=torch.float64).expand(SIDE, SIDE))
    assert weights[5, 3:9].tolist() == [1, -1, 1, -1, 1, -1]
    inputs, model = ramp(0.05, 0), linear(weights, -100)
    optimum = (1 - LEAST_DETERMINANT) / 2 * 0.05 * weights.abs().sum().item()
    free, folding = (run(model, inputs, epsilon=epsilon, fold_free=fold_free) for fold_free in (True, False))
    assert 0.95 * optimum <= gain(model, inputs, free) <= optimum
    assert gain(model, inputs, folding) > 1.05 * optimum
    assert free.deformation is not None
    assert folding.deformation is not None
    assert folded_share(free.deformation) == 0
    assert folded_share(folding.deformation) > 0


@every_threat
def test_fools_as_soon_as_a_deformation_can(fold_free: bool) -> None:
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    inputs = ramp(0.05, 0)
    reachable = 0.8 * 0.05 * weights.sum().item()
    level = (inputs[0, 0] * weights).sum().item()
    for share, fooled in ((0.999, True), (1.001, False)):
        model = linear(weights, -level - share * reachable)
        output = run(model, inputs, epsilon=0.8, fold_free=fold_free)
        assert (model(output.adv_inputs).argmax(1) == 1).item() is fooled


@every_threat
def test_targeted_goes_to_the_target(fold_free: bool) -> None:
    """Two others are equally near on opposite sides; label 1 is the target, then label 2."""
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    inputs = ramp(0.05, 0)
    level = (inputs[0, 0] * weights).sum().item()

    def logits(x: Tensor) -> Tensor:
        shift = (x[:, 0] * weights).sum((1, 2)) - level
        return torch.stack((0 * shift + 0.5, shift, -shift), 1)

    for target in (1, 2):
        output = run(Logits(logits), inputs, epsilon=0.9, targets=torch.tensor([target]), fold_free=fold_free)
        assert logits(output.adv_inputs).argmax(1).item() == target


# --- images like those of a data set


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (4 / parameter[0].numel()) ** 0.5
    return model.to(dtype)


def blobs(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 1, 12, 12): smooth bright spots on black."""
    generator = torch.Generator().manual_seed(2)
    axis = torch.arange(SIDE, dtype=torch.float64)
    centers = 3 + 5 * torch.rand(n, 3, 2, generator=generator, dtype=torch.float64)
    along_y, along_x = (torch.exp(-0.4 * (axis - centers[..., k, None]) ** 2) for k in range(2))
    return (along_y[..., :, None] * along_x[..., None, :]).sum(1, keepdim=True).clamp(0, 1).to(dtype)


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    model, inputs = net(), blobs(16)
    return model, inputs, model(inputs).argmax(1)


@every_threat
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0, 0.5, 2])
def test_every_field_keeps_to_the_threat_model(
    setting: tuple[nn.Module, Tensor, Tensor], sigma: float, epsilon: float, fold_free: bool
) -> None:
    model, inputs, labels = setting
    changes: dict[str, Any] = {"sigma": sigma, "fold_free": fold_free, "steps": 8, "restarts": 2}
    output = run(model, inputs, labels=labels, epsilon=epsilon, **changes)
    assert output.deformation is not None
    assert (deformation_size(output.deformation.double()) <= epsilon).all()
    assert not fold_free or (folded_share(output.deformation) == 0).all()
    torch.testing.assert_close(output.adv_inputs, warp(inputs, output.deformation).clamp(0, 1))
    assert (output.status == Status.OK).all()


class Recorder(nn.Module):
    """A model that remembers every image it saw, and its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        self.seen.append((inputs.detach(), logits.detach()))
        return logits


@every_threat
def test_keeps_the_best_iterate_the_last_included(fold_free: bool) -> None:
    best_positions = set()
    for inputs in blobs(16, torch.float64)[:, None]:
        labels = net(torch.float64)(inputs).argmax(1)
        model = Recorder(net(torch.float64))
        # Large steps that do not settle: the best may come anywhere.
        output = run(model, inputs, labels=labels, epsilon=0.05, step_size=2, steps=4, fold_free=fold_free)
        margins = torch.cat([margin(logits, labels) for _, logits in model.seen])
        assert output.n_forwards.item() == len(margins)
        assert torch.equal(output.adv_inputs, model.seen[int(margins.argmax())][0])
        best_positions.add(int(margins.argmax()))
    assert {4} < best_positions  # the last iterate and others


def test_fooled_images_leave_at_once_and_for_good() -> None:
    """Three images: wrong from the start, fooled by the first step, never fooled."""
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    level = (ramp(0.05, 0)[0, 0] * weights).sum().item()
    inputs = torch.cat((ramp(0.05, 0) + 0.1, ramp(0.05, 0), ramp(0.05, 0) - 0.1))
    model = Recorder(linear(weights, -level - 1e-3))
    output = run(model, inputs, epsilon=0.5, steps=5, restarts=3)
    first, second, third = output.n_forwards.tolist()
    assert (first, second) == (1, 2)
    assert 2 * 6 < third <= 3 * 6  # a restart ends early where nothing can be gained any more
    assert [len(images) for images, _ in model.seen] == [3, 2] + [1] * (third - 2)
    assert output.deformation is not None
    assert not output.deformation[0].any()


def test_restarts_aim_at_other_labels() -> None:
    """The runner-up draws the untargeted attack to where it saturates below the label; the third lies the other way."""
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    inputs = ramp(0.05, 0)
    level = (inputs[0, 0] * weights).sum().item()

    def logits(x: Tensor) -> Tensor:
        shift = (x[:, 0] * weights).sum((1, 2)) - level
        return torch.stack((0 * shift, 0.05 * shift.tanh() - 0.1, -2 * shift - 1), 1)

    for restarts, fooled in ((1, False), (2, True)):
        output = run(Logits(logits), inputs, epsilon=0.9, restarts=restarts)
        assert (logits(output.adv_inputs).argmax(1) == 2).item() is fooled


def test_restarts_are_drawn_from_the_examples_randomness(setting: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, labels = setting

    def last_seen(restarts: int, seed: int) -> Tensor:
        recorder = Recorder(model)
        run(recorder, inputs, labels=labels, epsilon=0.02, steps=2, restarts=restarts, seed=seed)
        return recorder.seen[-1][0]

    assert torch.equal(last_seen(2, 0), last_seen(2, 0))
    assert not torch.equal(last_seen(2, 0), last_seen(2, 1))
    assert torch.equal(last_seen(1, 0), last_seen(1, 1))  # the first start is the image itself


@every_threat
def test_an_image_does_not_depend_on_its_batch(fold_free: bool) -> None:
    model, inputs = net(torch.float64), blobs(6, torch.float64)
    labels = model(inputs).argmax(1)
    config = dataclasses.replace(CONFIG, fold_free=fold_free, steps=6, restarts=2, sigma=0.5)
    rng = ExampleRng.for_examples(range(6), seed=0, dataset="d", attack="deform_pgd")
    whole = deform_pgd.attack(model, inputs, labels, targets=None, epsilon=0.3, config=config, rng=rng)
    rows = torch.tensor([4, 1])
    rng = rng.subset(rows)
    part = deform_pgd.attack(model, inputs[rows], labels[rows], targets=None, epsilon=0.3, config=config, rng=rng)
    assert part.deformation is not None
    assert whole.deformation is not None
    torch.testing.assert_close(part.deformation, whole.deformation[rows])
    assert torch.equal(part.n_forwards, whole.n_forwards[rows])


def test_a_model_that_turns_nan_ends_the_image_with_its_best_iterate() -> None:
    weights = interior(torch.ones(SIDE, SIDE, dtype=torch.float64))
    inputs = torch.cat((ramp(0.05, 0), ramp(0.01, 0)))
    level = (inputs[0, 0] * weights).sum().item()

    def logits(x: Tensor) -> Tensor:
        shift = (x[:, 0] * weights).sum((1, 2)) - level
        return torch.stack((0 * shift, torch.where(shift > 1, torch.nan, shift - 100)), 1)

    output = run(Logits(logits), inputs, epsilon=1, steps=40, step_size=0.1, restarts=2)
    assert output.status.tolist() == [Status.NON_FINITE, Status.OK]
    shift = (output.adv_inputs[:, 0] * weights).sum((1, 2)) - level
    assert 0.5 < shift[0] <= 1
    assert shift[1] == pytest.approx(0.01 * 36)


def test_a_flat_image_is_given_up() -> None:
    output = run(linear(torch.ones(SIDE, SIDE), -1000), torch.full((1, 1, SIDE, SIDE), 0.3), epsilon=1.0, steps=5)
    assert output.status.item() == Status.STOPPED
    assert (output.n_forwards.item(), output.n_backwards.item()) == (1, 1)
