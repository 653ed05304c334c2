"""ADef against closed forms on linear classifiers, and its rules of stopping on small nets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from pipeline.attacks import adef
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.deform import deformation_size, warp

SIDE, K = 16, 4


def config(**changes: Any) -> adef.Config:
    paper = {"candidates": 9, "sigma": 0.5, "max_iter": 100, "max_norm": math.inf, "overshoot": 1.2}
    return adef.Config(norm="deformation", **{**paper, **changes})


def run(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, targets: Tensor | None = None, **changes: Any
) -> AttackOutput:
    return adef.attack(
        model, inputs, labels, targets=targets, epsilon=None, config=config(**changes), rng=ExampleRng(())
    )


class Linear(nn.Module):
    """F_k(y) = w_k · y + b_k with weights that vanish near the border, where differences are one-sided."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.zeros(K, channels, SIDE, SIDE, dtype=torch.float64)
        weight[..., 6:10, 6:10] = torch.randn(K, channels, 4, 4, dtype=torch.float64, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(0.1 * torch.randn(K, dtype=torch.float64, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) @ self.weight.flatten(1).T + self.bias


def smooth_images(n: int, channels: int = 1) -> Tensor:
    """(n, channels, SIDE, SIDE) in [0, 1], of a few waves."""
    generator = torch.Generator().manual_seed(1)
    phase, frequency = torch.rand(2, n, channels, 2, dtype=torch.float64, generator=generator)
    axis = torch.arange(SIDE, dtype=torch.float64)
    along_x, along_y = (
        torch.sin(2 * math.pi * phase[..., i, None] + (0.2 + frequency[..., i, None]) * axis) for i in range(2)
    )
    return (2 + along_x[..., None, :] + along_y[..., :, None]) / 4


def closed_form(model: Linear, image: Tensor, label: int, k: int, sigma: float) -> NDArray[np.float64]:
    """τ_k of FIELD's step 4, (SIDE, SIDE, 2), by NumPy and SciPy."""
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    logits = (weight * image.numpy()).sum((1, 2, 3)) + bias
    along_y, along_x = np.gradient(image.numpy(), axis=(1, 2))
    difference = weight[k] - weight[label]
    alpha = np.stack(((difference * along_x).sum(0), (difference * along_y).sum(0)), axis=-1)
    once, twice = alpha, alpha
    if sigma:
        once = gaussian_filter(alpha, (sigma, sigma, 0), mode="constant", truncate=4)
        twice = gaussian_filter(once, (sigma, sigma, 0), mode="constant", truncate=4)
    step: NDArray[np.float64] = -(logits[k] - logits[label]) * twice / (once**2).sum()
    return step


def longest(field: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(field, axis=-1).max())


# --- the step


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0, 0.5, 2])
def test_one_step_is_the_smallest_of_the_closed_forms(channels: int, sigma: float) -> None:
    model, inputs = Linear(channels), smooth_images(12, channels)
    labels = model(inputs).argmax(1)
    output = run(model, inputs, labels, sigma=sigma, max_iter=1, overshoot=1)
    assert output.deformation is not None
    chosen = set()
    for image, label, field in zip(inputs, labels.tolist(), output.deformation, strict=True):
        steps = {k: closed_form(model, image, label, k, sigma) for k in range(K) if k != label}
        best = min(steps, key=lambda k: longest(steps[k]))
        chosen.add(best)
        torch.testing.assert_close(field, torch.from_numpy(steps[best]))
    assert len(chosen) > 1  # or the choice would be untested


def test_candidates_are_the_next_ranked_labels() -> None:
    model, inputs = Linear(), smooth_images(6)
    ranked = model(inputs).argsort(dim=1, descending=True)
    output = run(model, inputs, ranked[:, 0], candidates=1, max_iter=1, overshoot=1)
    assert output.deformation is not None
    for image, (label, runner_up), field in zip(inputs, ranked[:, :2].tolist(), output.deformation, strict=True):
        torch.testing.assert_close(field, torch.from_numpy(closed_form(model, image, label, runner_up, 0.5)))
    assert set(output.n_backwards.tolist()) == {1}


@given(seed=st.integers(0, 2**32 - 1), sigma=st.sampled_from([0.0, 0.5, 1.0]), gap=st.floats(-10, -0.1))
@settings(max_examples=20, deadline=None)
def test_the_step_has_the_least_norm_before_smoothing(seed: int, sigma: float, gap: float) -> None:
    """Of all ρ with ⟨α, Gρ⟩ = −f, LAPACK's minimum-norm solution; the step is G ρ."""
    side = 5
    alpha = np.random.default_rng(seed).normal(size=(side, side, 2))
    unit_fields = np.eye(alpha.size).reshape(-1, *alpha.shape)
    smoothing = unit_fields
    if sigma:
        smoothing = gaussian_filter(unit_fields, (0, sigma, sigma, 0), mode="constant", truncate=4)
    matrix = smoothing.reshape(alpha.size, -1).T
    rho = np.linalg.lstsq(alpha.reshape(1, -1) @ matrix, np.array([-gap]))[0]
    step = adef._minimum_norm_step(torch.tensor([gap], dtype=torch.float64), torch.from_numpy(alpha)[None], sigma)
    torch.testing.assert_close(step[0], torch.from_numpy((matrix @ rho).reshape(alpha.shape)))


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.1, 2))
@settings(max_examples=10, deadline=None)
def test_a_linear_image_reaches_the_boundary_in_one_step_and_the_overshoot_crosses_it(seed: int, size: float) -> None:
    """Model and image are linear: one step takes the gap to exactly 0, and stretched by η to (η − 1)·|gap|."""
    generator = np.random.default_rng(seed)
    slope_x, slope_y = generator.uniform(0.005, 0.015, 2)
    axis = torch.arange(SIDE, dtype=torch.float64)
    ramp = (0.2 + slope_x * axis + slope_y * axis[:, None])[None, None]
    model = Linear()
    label, k = 0, 1
    with torch.no_grad():
        model.weight[2:] = 0
        model.weight[:2, ..., 6:10, 6:10] = torch.from_numpy(generator.normal(size=(2, 1, 4, 4)))
        model.bias[2:] = -100
        logits = model(ramp)[0]
        model.bias[k] += logits[label] - logits[k] - 1  # the gap is −1 ...
        gap = -size / longest(closed_form(model, ramp[0], label, k, 0.5))  # ... and now one that takes ``size`` pixels
        model.bias[k] += gap + 1
    labels = torch.tensor([label])
    for overshoot in (1, 1.2):
        output = run(model, ramp, labels, max_iter=1, overshoot=overshoot)
        logits = model(output.adv_inputs)[0]
        assert (logits[k] - logits[label]).item() == pytest.approx((overshoot - 1) * -gap, abs=1e-9)
        assert output.deformation is not None
        assert deformation_size(output.deformation).item() == pytest.approx(overshoot * size)


# --- the end


class Bump(nn.Module):
    """Two classes, F = (0, g(brightness of the middle)): steps of every kind by the choice of g."""

    def __init__(self, g: Any) -> None:
        super().__init__()
        self.g = g

    def forward(self, inputs: Tensor) -> Tensor:
        value = self.g(inputs[:, 0, 8, 8])
        return torch.stack((torch.zeros_like(value), value), dim=1)


def one_ramp() -> Tensor:
    """(1, 1, SIDE, SIDE): brightness 0.5 in pixel (8, 8), 0.05 more with every column."""
    return (0.5 + 0.05 * (torch.arange(SIDE, dtype=torch.float64) - 8)).expand(1, 1, SIDE, SIDE).clamp(0, 1)


def parabola(brightness: Tensor) -> Tensor:
    """s − 2 s² − 0.1 at brightness 0.5 + s: Newton's points are s = 0.1, 0.1333, ... and the zero lies at 0.1382."""
    s = brightness - 0.5
    return s - 2 * s**2 - 0.1


ZERO = torch.zeros(1, dtype=torch.long)


def test_newtons_iteration_on_a_curved_gap() -> None:
    """One pixel, a ramp, no smoothing: ADef is Newton's method on g(0.5 + s) = s − 2 s² − 0.1, s = 0.05 τ_x."""

    shift = 0.0
    for _ in range(3):
        s = 0.05 * shift
        shift -= (s - 2 * s**2 - 0.1) / (0.05 * (1 - 4 * s))
    output = run(Bump(parabola), one_ramp(), ZERO, sigma=0, max_iter=3, overshoot=1)
    assert output.deformation is not None
    assert output.deformation[0, 8, 8].tolist() == pytest.approx([shift, 0])
    assert output.deformation.count_nonzero() == 1
    assert output.n_forwards.tolist() == [2 * 3 + 1]
    assert output.n_backwards.tolist() == [3]
    assert output.status.tolist() == [Status.OK]


def test_stops_as_soon_as_the_model_errs() -> None:
    """g overshoots its own zero: the first step, to 0.6, already lands beyond it."""
    output = run(Bump(lambda s: (s - 0.6) + 2 * (s - 0.5) ** 2), one_ramp(), ZERO, sigma=0)
    assert output.deformation is not None
    assert output.deformation[0, 8, 8].tolist() == pytest.approx([2, 0])  # not stretched: it was fooled
    assert (output.n_forwards.item(), output.n_backwards.item(), output.status.item()) == (3, 1, Status.OK)


def test_a_step_to_max_norm_is_not_taken() -> None:
    """The parabola needs 2 pixels, then 2.67. Whatever stands in the end is stretched, to ``max_norm`` at most."""
    for max_norm, size, cost in ((1.5, 0, (2, 1)), (2.1, 2.1, (4, 2)), (2.6, 2.4, (4, 2))):
        output = run(Bump(parabola), one_ramp(), ZERO, sigma=0, max_norm=max_norm)
        assert output.deformation is not None
        assert deformation_size(output.deformation).item() == pytest.approx(size)
        assert (output.n_forwards.item(), output.n_backwards.item()) == cost
        assert output.status.tolist() == [Status.STOPPED]
        if not size:
            assert torch.equal(output.adv_inputs, one_ramp())


def test_an_image_on_the_boundary_stops() -> None:
    output = run(Bump(lambda s: s - 0.5), one_ramp(), ZERO)
    assert output.status.tolist() == [Status.STOPPED]
    assert torch.equal(output.adv_inputs, one_ramp())


def test_a_second_logit_within_1e_6_counts_as_a_boundary() -> None:
    for lead, stretched in ((5e-7, True), (2e-6, False)):
        output = run(Bump(lambda s, lead=lead: torch.where(s > 0.55, lead, s - 0.6)), one_ramp(), ZERO, sigma=0)
        assert output.deformation is not None
        assert deformation_size(output.deformation).item() == pytest.approx(2.4 if stretched else 2)


def test_a_zero_gradient_stops() -> None:
    output = run(Bump(lambda s: 0 * s - 1), one_ramp(), ZERO)
    assert output.status.tolist() == [Status.STOPPED]
    assert (output.n_forwards.item(), output.n_backwards.item()) == (2, 1)
    assert torch.equal(output.adv_inputs, one_ramp())


def test_not_finite_ends_an_image_with_its_last_finite_field() -> None:
    def gradients(s: Tensor) -> Tensor:
        return (s - 0.5).sqrt() - 1  # slope ∞ at the start

    def logits_later(s: Tensor) -> Tensor:
        return torch.where(s > 0.61, torch.nan, parabola(s))  # the second step's

    start = run(Bump(lambda s: s * torch.nan), one_ramp(), ZERO)
    assert (start.n_forwards.item(), start.n_backwards.item(), start.status.item()) == (1, 0, Status.NON_FINITE)
    first = run(Bump(gradients), one_ramp(), ZERO)
    assert (first.n_forwards.item(), first.n_backwards.item(), first.status.item()) == (2, 1, Status.NON_FINITE)
    for output in (start, first):
        assert torch.equal(output.adv_inputs, one_ramp())
    later = run(Bump(logits_later), one_ramp(), ZERO, sigma=0)
    assert later.deformation is not None
    assert later.deformation[0, 8, 8].tolist() == pytest.approx([2, 0])  # the first step's, and not stretched
    assert (later.n_forwards.item(), later.n_backwards.item(), later.status.item()) == (5, 2, Status.NON_FINITE)


# --- the batch


class Net(nn.Module):
    """A small smooth net on SIDE × SIDE images, float64, that counts the rows of its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 16), nn.Tanh(), nn.Linear(16, K)).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.layers.parameters():
                scale = 4 * (2 / parameter.shape[-1]) ** 0.5  # curved enough for paths that cross and paths that do not
                parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
        self.n_forwards = self.n_backwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.n_forwards += len(inputs)
        logits: Tensor = self.layers(inputs)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.n_backwards += len(gradient)


@pytest.fixture
def batch() -> tuple[Net, Tensor, Tensor]:
    """Eight images, the fourth misclassified."""
    net, inputs = Net().eval(), smooth_images(8)
    with torch.no_grad():
        labels = net(inputs).argmax(1)
    labels[3] = (labels[3] + 1) % K
    net.n_forwards = 0
    return net, inputs, labels


def test_counts_are_what_the_model_saw_and_finished_images_leave(batch: tuple[Net, Tensor, Tensor]) -> None:
    net, inputs, labels = batch
    output = run(net, inputs, labels)
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (net.n_forwards, net.n_backwards)
    assert len(set(output.n_forwards.tolist())) > 3
    assert torch.equal(output.n_backwards, (K - 1) * (output.n_forwards // 2))


def test_images_that_are_wrong_already_cost_one_forward(batch: tuple[Net, Tensor, Tensor]) -> None:
    net, inputs, labels = batch
    output = run(net, inputs, labels)
    assert output.deformation is not None
    assert [int(column[3]) for column in (output.n_forwards, output.n_backwards, output.status)] == [1, 0, Status.OK]
    assert torch.equal(output.adv_inputs[3], inputs[3])
    assert not output.deformation[3].any()
    assert output.deformation.flatten(1).any(1).sum() == len(inputs) - 1


@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_does_not_depend_on_its_batch(batch: tuple[Net, Tensor, Tensor], targeted: bool) -> None:
    net, inputs, labels = batch
    targets = (labels + 1 + torch.arange(8) % (K - 1)) % K if targeted else None
    whole = run(net, inputs, labels, targets=targets)
    for i in range(len(inputs)):
        row = slice(i, i + 1)
        alone = run(net, inputs[row], labels[row], targets=None if targets is None else targets[row])
        for name, value in vars(alone).items():
            torch.testing.assert_close(value, getattr(whole, name)[row], rtol=1e-7, atol=1e-9, msg=f"{name} of {i}")


def test_the_field_makes_the_image_and_fools_the_model(batch: tuple[Net, Tensor, Tensor]) -> None:
    net, inputs, labels = batch
    output = run(net, inputs, labels)
    assert output.deformation is not None
    torch.testing.assert_close(output.adv_inputs, warp(inputs, output.deformation), rtol=0, atol=1e-12)
    assert (net(output.adv_inputs).argmax(1) != labels).all()


def test_targeted_ends_at_the_target_and_nowhere_else(batch: tuple[Net, Tensor, Tensor]) -> None:
    """On the way some images pass through a third class, where the untargeted attack would have stopped."""
    net, inputs, labels = batch
    targets = net(inputs).argmin(1)
    output = run(net, inputs, labels, targets=targets)
    assert (net(output.adv_inputs).argmax(1) == targets).all()
    assert torch.equal(output.n_backwards, output.n_forwards // 2)  # one candidate
    on_the_way = [
        net(run(net, inputs, labels, targets=targets, max_iter=n, overshoot=1).adv_inputs).argmax(1)
        for n in range(1, int(output.n_backwards.max()))
    ]
    assert any(((third != targets) & (third != labels)).any() for third in on_the_way)


def test_images_that_are_the_target_already_cost_one_forward(batch: tuple[Net, Tensor, Tensor]) -> None:
    net, inputs, labels = batch
    output = run(net, inputs, labels, targets=net(inputs).argmax(1))
    assert torch.equal(output.adv_inputs, inputs)
    assert output.n_forwards.tolist() == [1] * len(inputs)
    assert not output.n_backwards.any()
