"""FMN against the distance |f| / ‖w‖ to the boundary of a linear classifier, and its bookkeeping."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import fmn
from pipeline.attacks.base import AttackOutput, ExampleRng, Status

BallNorm = Literal["linf", "l2"]
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
CONFIG = fmn.Config(norm="l2", steps=20, step_size=1.0, gamma=0.3, loss="both")


def run(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    config: fmn.Config = CONFIG,
) -> AttackOutput:
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="fmn")
    return fmn.attack(model, inputs, labels, targets=targets, epsilon=None, config=config, rng=rng)


def linear_model(classes: int, dtype: torch.dtype = torch.float64, scale: float = 1) -> tuple[nn.Module, nn.Linear]:
    """On (B, 1, 4, 4), undecided at the grey image: boundaries are nearer than the box."""
    linear = nn.Linear(16, classes).to(dtype)
    linear.weight.data *= scale
    linear.bias.data = -0.5 * linear.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), linear).eval(), linear


def interior_images(dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.4 + 0.2 * torch.rand(6, 1, 4, 4, dtype=dtype)


def size(perturbation: Tensor, norm: BallNorm) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)
    return sizes


@every_norm
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_finds_the_distance_to_a_linear_boundary(
    norm: BallNorm, loss: Literal["cross_entropy", "margin", "both"], dtype: torch.dtype
) -> None:
    model, linear = linear_model(2, dtype)
    inputs = interior_images(dtype)
    logits = model(inputs)
    slope = torch.linalg.vector_norm(linear.weight.diff(dim=0), ord=1 if norm == "linf" else 2)
    expected = logits.diff(dim=1).abs().squeeze(1) / slope
    output = run(model, inputs, logits.argmax(1), config=dataclasses.replace(CONFIG, norm=norm, loss=loss))
    found = size(output.adv_inputs - inputs, norm)
    assert (model(output.adv_inputs).argmax(1) != logits.argmax(1)).all()
    assert (found >= expected * (1 - 1e-5)).all()
    assert (found <= expected * 1.005).all()


@every_norm
@torch.no_grad()
def test_finds_the_nearest_of_several_boundaries(norm: BallNorm) -> None:
    model, linear = linear_model(4)
    inputs = interior_images()
    logits = model(inputs)
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = torch.linalg.vector_norm(
        linear.weight[labels][:, None] - linear.weight, ord=1 if norm == "linf" else 2, dim=2
    )
    distances = (gaps / slopes).scatter(1, labels[:, None], torch.inf)
    output = run(model, inputs, labels, config=dataclasses.replace(CONFIG, norm=norm, steps=100, loss="margin"))
    found = size(output.adv_inputs - inputs, norm)
    assert (found >= distances.amin(1) * (1 - 1e-9)).all()
    assert found.median() <= distances.amin(1).median() * 1.05


@every_norm
@torch.no_grad()
def test_finds_the_distance_to_a_target(norm: BallNorm) -> None:
    model, _ = linear_model(2)
    inputs = interior_images()
    labels = model(inputs).argmax(1)
    config = dataclasses.replace(CONFIG, norm=norm)
    untargeted, targeted = (run(model, inputs, labels, targets=t, config=config) for t in (None, 1 - labels))
    assert torch.equal(untargeted.adv_inputs, targeted.adv_inputs)
    there = run(model, inputs, labels, targets=labels, config=config)
    assert torch.equal(there.adv_inputs, inputs)


def test_costs_what_it_says() -> None:
    model, _ = linear_model(2)
    inputs = interior_images()
    labels = model(inputs).argmax(1)
    labels[2] = 1 - labels[2]
    output = run(model, inputs, labels)
    assert output.n_forwards.tolist() == [21, 21, 1, 21, 21, 21]
    assert output.n_backwards.tolist() == [20, 20, 1, 20, 20, 20]
    assert torch.equal(output.adv_inputs[2], inputs[2])
    assert output.status.tolist() == [Status.OK] * 6


class Recorder(nn.Module):
    """Class 1 where the image is as bright as ``threshold`` on average; keeps what it is asked."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.detach().clone())
        brightness = 10 * inputs.flatten(1).mean(1)
        return torch.stack((torch.full_like(brightness, 10 * self.threshold), brightness), dim=1)


@every_norm
def test_the_smallest_success_is_kept(norm: BallNorm) -> None:
    model, inputs = Recorder(0.7), interior_images()
    output = run(model, inputs, torch.zeros(6, dtype=torch.long), config=dataclasses.replace(CONFIG, norm=norm))
    seen = torch.stack(model.seen)
    sizes = torch.stack([size(points - inputs, norm) for points in seen])
    smallest = sizes.where(seen.flatten(2).mean(2) > 0.7, torch.inf).argmin(0)
    assert torch.equal(output.adv_inputs, seen[smallest, torch.arange(6)])


def test_a_failure_returns_the_best_attempt() -> None:
    model, inputs = Recorder(1.5), interior_images()
    output = run(model, inputs, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(output.adv_inputs, torch.ones_like(inputs))
    assert output.status.tolist() == [Status.OK] * 6


@every_norm
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_scale_of_the_logits_is_of_no_account(norm: BallNorm, scale: float) -> None:
    inputs, config, sizes = interior_images(torch.float32), dataclasses.replace(CONFIG, norm=norm), []
    for factor in (1, scale):
        torch.manual_seed(1)
        model, _ = linear_model(2, torch.float32, factor)
        output = run(model, inputs, model(inputs).argmax(1), config=config)
        sizes.append(size(output.adv_inputs - inputs, norm))
    torch.testing.assert_close(*sizes, rtol=1e-2, atol=0)
