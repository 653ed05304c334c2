"""The ℓ∞ and ℓ2 balls within the box [0, 1], and directions in them. Not a component: attacks import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.attacks.base import ExampleRng

BallNorm = Literal["linf", "l2"]


class Ball(Protocol):
    """The points within a radius of each of B inputs, (B, C, H, W), and within the box [0, 1]."""

    def project(self, points: Tensor) -> Tensor:
        """Into ball and box, (B, C, H, W). In ℓ∞ the size is at most the radius in floating point too, in ℓ2 up to the
        rounding of the sum."""

    def __getitem__(self, rows: Tensor) -> Ball:
        """The balls of some of the inputs, by a boolean mask (B,) or by indices."""


@dataclass(frozen=True)
class LinfBall:
    """The images between ``low`` and ``high``; both are :func:`bounds`."""

    low: Tensor
    high: Tensor

    def project(self, points: Tensor) -> Tensor:
        """The nearest point."""
        return points.clamp(self.low, self.high)

    def __getitem__(self, rows: Tensor) -> LinfBall:
        return LinfBall(self.low[rows], self.high[rows])


@dataclass(frozen=True)
class L2Ball:
    """Around ``inputs`` with a ``radius`` each, (B, 1, 1, 1)."""

    inputs: Tensor
    radius: Tensor

    def project(self, points: Tensor) -> Tensor:
        """Clipped to the box, then drawn towards the inputs until the ball is reached.

        This stays in the box and uses the whole radius; clipping last would fall short of it.
        """
        offsets = points.clamp(0, 1).sub_(self.inputs)
        offsets.mul_((self.radius / lengths(offsets).clamp_min_(torch.finfo(offsets.dtype).tiny)).clamp_(max=1))
        return _inwards(self.inputs + offsets, self.inputs, offsets.abs_())

    def __getitem__(self, rows: Tensor) -> L2Ball:
        return L2Ball(self.inputs[rows], self.radius[rows])


def ball(inputs: Tensor, epsilon: float | Tensor, norm: BallNorm) -> Ball:
    """Around ``inputs`` (B, C, H, W), which lie in the box, with one radius or one per image, (B, 1, 1, 1)."""
    if norm == "linf":
        return LinfBall(*bounds(inputs, epsilon))
    return L2Ball(inputs, _radius(inputs, epsilon).expand(len(inputs), 1, 1, 1))


def project(points: Tensor, inputs: Tensor, epsilon: float | Tensor, norm: BallNorm) -> Tensor:
    """Into the :func:`ball`; who projects often into the same ball keeps it."""
    return ball(inputs, epsilon, norm).project(points)


def bounds(inputs: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest image (B, C, H, W) of the ℓ∞ ball within the box.

    In floating point, too, both and all between them are at most epsilon from the inputs.
    """
    radius = _radius(inputs, epsilon)
    low, high = (inputs - radius).clamp_(min=0), (inputs + radius).clamp_(max=1)
    return _inwards(low, inputs, radius), _inwards(high, inputs, radius)


def _radius(inputs: Tensor, epsilon: float | Tensor) -> Tensor:
    return torch.as_tensor(epsilon, dtype=inputs.dtype, device=inputs.device)


def _inwards(points: Tensor, inputs: Tensor, limits: Tensor) -> Tensor:
    """``points``, one unit in the last place nearer to ``inputs`` where rounding put them beyond ``limits``.

    The sum of an image and an offset is rounded by about 1e-8 a pixel: much against a small epsilon.
    """
    beyond = (points - inputs).abs_().sub_(limits).sign_().clamp_(min=0)  # 1 or 0
    # Exact; booleans in place of numbers, or a torch.where, take several times as long.
    return points.add_(torch.nextafter(points, inputs).sub_(points).mul_(beyond))


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
