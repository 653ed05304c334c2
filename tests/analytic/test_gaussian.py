"""Gaussian noise: its moments, its clipping, and whose noise it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import gaussian
from pipeline.attacks.base import ExampleRng, Status

CONFIG = gaussian.Config(norm="sigma", draws=2)


class NeverAsked(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("noise is blind to the model")


def noisy(inputs: Tensor, sigma: float, *, indices: range | None = None, draw: int = 0) -> Tensor:
    rng = ExampleRng.for_examples(indices or range(len(inputs)), seed=0, dataset="d", attack="noise", draw=draw)
    labels = torch.zeros(len(inputs), dtype=torch.long)
    output = gaussian.attack(NeverAsked(), inputs, labels, targets=None, epsilon=sigma, config=CONFIG, rng=rng)
    assert output.n_forwards.tolist() == output.n_backwards.tolist() == [0] * len(inputs)
    assert output.status.tolist() == [Status.OK] * len(inputs)
    return output.adv_inputs


def test_moments() -> None:
    """Of 100,000 numbers, far from the box: each estimate within five of its standard errors."""
    inputs, sigma = torch.full((10, 1, 100, 100), 0.5, dtype=torch.float64), 0.05
    noise = (noisy(inputs, sigma) - inputs) / sigma
    error = 5 / math.sqrt(noise.numel())
    assert noise.mean().abs() < error
    assert (noise.square().mean() - 1).abs() < error * math.sqrt(2)
    assert (noise.pow(3).mean()).abs() < error * math.sqrt(15)
    assert (noise.pow(4).mean() - 3).abs() < error * math.sqrt(96)


def test_clipping_halves_the_noise_on_the_border() -> None:
    black, white = (noisy(torch.full((1, 1, 100, 100), value), 0.1) for value in (0.0, 1.0))
    for images, at in ((black, 0), (white, 1)):
        assert ((images >= 0) & (images <= 1)).all()
        assert (images == at).float().mean() == pytest.approx(0.5, abs=0.03)


def test_draws_differ_and_repeat() -> None:
    inputs = torch.rand(3, 1, 8, 8)
    first, second = noisy(inputs, 0.1), noisy(inputs, 0.1, draw=1)
    assert torch.equal(first, noisy(inputs, 0.1))
    assert (first != second).flatten(1).any(1).all()
    assert (noisy(inputs[:1], 0.1, indices=range(7, 8)) != first[:1]).any()


def test_noise_belongs_to_the_example() -> None:
    """Whatever the batch; and it grows in proportion to σ, so that strengths are compared on the same noise."""
    inputs = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    whole = noisy(inputs, 0.01)
    assert torch.equal(noisy(inputs[2:], 0.01, indices=range(2, 4)), whole[2:])
    torch.testing.assert_close(noisy(inputs, 0.02) - 0.5, 2 * (whole - 0.5))
