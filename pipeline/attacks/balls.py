"""The ℓ∞ and ℓ2 balls within the box [0, 1], and directions in them. Not a component: attacks import it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.attacks.base import ExampleRng

BallNorm = Literal["linf", "l2"]


def project(points: Tensor, inputs: Tensor, epsilon: float | Tensor, norm: BallNorm) -> Tensor:
    """Into the box and into the ball of radius ``epsilon`` around ``inputs`` (B, C, H, W), which lie in the box.

    ℓ∞: the nearest point. ℓ2: clipped to the box, then drawn towards the inputs until the ball is reached, which stays
    in the box and uses the whole radius (clipping last would fall short of it).

    Args:
        epsilon: one radius, or one per image, (B, 1, 1, 1).

    Returns:
        (B, C, H, W). In ℓ∞ its size is at most epsilon in floating point too, in ℓ2 up to the rounding of the sum.
    """
    radius = torch.as_tensor(epsilon, dtype=inputs.dtype, device=inputs.device)
    offsets = points.clamp(0, 1).sub_(inputs)
    if norm == "linf":
        offsets.clamp_(-radius, radius)
    else:
        offsets.mul_((radius / lengths(offsets).clamp_min_(torch.finfo(inputs.dtype).tiny)).clamp_(max=1))
    # inputs + offsets is rounded by about 1e-8 a pixel, much against a small epsilon: round towards the inputs.
    moved = inputs + offsets
    beyond = (moved - inputs).abs_().sub_(offsets.abs_()).sign_().clamp_(min=0)  # 1 or 0
    # One unit in the last place, exactly; booleans in place of numbers, or a torch.where, take several times as long.
    return moved.add_(torch.nextafter(moved, inputs).sub_(moved).mul_(beyond))


def steepest(gradient: Tensor, norm: BallNorm) -> Tensor:
    """The direction of size 1 along which a linear function grows fastest; 0 for a gradient of 0."""
    if norm == "linf":
        return gradient.sign()
    # Scaled first: squares of float32 overflow at 1e19 and vanish at 1e-23, and the direction with them.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min_(0.5)


def random_point(inputs: Tensor, epsilon: float, norm: BallNorm, rng: ExampleRng, *, stream: int) -> Tensor:
    """Points (B, C, H, W) of ball and box: ℓ∞ uniformly, ℓ2 on the sphere; others for each stream."""
    shape = inputs.shape[1:]
    if norm == "linf":
        offsets = 2 * rng.uniform(shape, like=inputs, stream=stream) - 1
    else:
        offsets = steepest(rng.normal(shape, like=inputs, stream=stream), "l2")
    return project(inputs + epsilon * offsets, inputs, epsilon, norm)


def lengths(images: Tensor) -> Tensor:
    """Euclidean norm of each image, (B, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return norms
