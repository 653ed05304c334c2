"""Random search over smooth displacement fields of size ‖τ‖_T ≤ ε, folding or not, without gradients of the model.

τ ← P(τ ± 2ε w n), kept if the margin rises: n(u) points to where the image becomes brighter, w is a Gaussian window of
height 1 around a random place, and P the way back to ‖τ‖_T ≤ ε and, if asked for, to fields that fold nowhere
(``displacement.advance``). A query thus thickens or thins the strokes at one place. It is Square attack (Andriushchenko
et al. 2020) for deformations: a random place, an extreme value there, windows that shrink.

What makes it strong is to ask only for what can change the image: a displacement along an edge, or where the image is
flat, changes nothing. Places are therefore drawn in proportion to the slope of the image, and fields go along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm
from pipeline.attacks.displacement import advance
from pipeline.attacks.random_search import search
from pipeline.deform import image_gradient, smooth, warp
from pipeline.fields import PositiveFloat, PositiveInt

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("deformation",)

EDGE = 1.0  # pixels: width of the filter of the image's slopes; without one, neighbours on an edge disagree
FLAT = 1e-3  # slopes, in intensity a pixel, below which a direction fades: it would be rounding's


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: ‖τ‖_T = max over pixels of |τ|.
        fold_free: only fields with det(I + ∇τ) > 0 at every corner of every pixel cell.
        queries: most forwards per image; the first is the image as it is.
        first_width: standard deviation in pixels of the first windows.
        last_width: of the last; between them it falls geometrically.
    """

    norm: Literal["deformation"]
    fold_free: bool
    queries: PositiveInt
    first_width: PositiveFloat
    last_width: PositiveFloat

    def __post_init__(self) -> None:
        if self.last_width > self.first_width:
            raise ValueError("last_width: must be at most first_width")


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,
    config: Config,
    rng: ExampleRng,
) -> AttackOutput:
    """At most ``queries`` forwards per image and no backwards.

    A fooled image is finished; for others the field of the highest margin is returned. ``epsilon`` is in pixels.
    """
    assert epsilon is not None, "a budget attack needs a strength"
    height, width = inputs.shape[-2:]
    uphill, places = _edges(inputs)
    radius = inputs.new_full((len(inputs),), epsilon)

    def propose(rows: Tensor, fields: Tensor, uniforms: Tensor, progress: float) -> Tensor:
        sigma = config.first_width * (config.last_width / config.first_width) ** progress
        # A number may round to 1 in the images' precision.
        pixels = torch.searchsorted(places[rows], uniforms[:, :1].contiguous()).clamp_(max=height * width - 1)
        ways = torch.where(uniforms[:, 1] < 0.5, -2 * epsilon, 2 * epsilon).to(fields)
        step = (ways[:, None, None] * _windows(pixels, height, width, sigma, like=fields))[..., None] * uphill[rows]
        return advance(fields, step, radius[rows], fold_free=config.fold_free)

    def render(rows: Tensor, fields: Tensor) -> Tensor:
        return warp(inputs[rows], fields).clamp_(0, 1)

    found = search(
        model,
        torch.zeros_like(uphill),
        labels,
        targets,
        queries=config.queries,
        propose=propose,
        render=render,
        draws=2,
        rng=rng,
    )
    adv_inputs = render(torch.arange(len(inputs), device=inputs.device), found.points)
    return AttackOutput(adv_inputs, found.points, found.n_forwards, torch.zeros_like(labels), found.status)


def _edges(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, H, W, 2) towards brighter pixels; and the distribution (B, H·W) of places, as sums up to 1."""
    slopes = torch.stack([slope.squeeze(1) for slope in image_gradient(inputs.mean(1, keepdim=True))], dim=-1)
    steepness = slopes.square().sum(-1).sqrt()
    smoothed = smooth(slopes, EDGE)
    uphill = smoothed / smoothed.square().sum(-1, keepdim=True).sqrt().clamp_min(FLAT)
    # The least keeps an image without slopes from a division by 0.
    weights = steepness.flatten(1) + torch.finfo(inputs.dtype).tiny
    sums = weights.cumsum(1)
    return uphill, sums / sums[:, -1:]


def _windows(pixels: Tensor, height: int, width: int, sigma: float, *, like: Tensor) -> Tensor:
    """Gaussians (b, H, W) of height 1 and standard deviation ``sigma`` around pixels (b, 1), counted by rows."""
    down, across = (
        (-0.5 * ((torch.arange(size, device=like.device, dtype=like.dtype) - centres) / sigma).square()).exp()
        for size, centres in ((height, pixels // width), (width, pixels % width))
    )
    return down[:, :, None] * across[:, None, :]
