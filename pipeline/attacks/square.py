"""Square attack (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020): random search by squares, without gradients.

Every query changes one square (ℓ∞) or moves the perturbation's mass from one square to another (ℓ2), and is kept if the
margin rises. The squares become smaller by the paper's schedule (section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import BallNorm, bounds, lengths, project
from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm
from pipeline.attacks.random_search import search
from pipeline.fields import PositiveInt, Range

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("linf", "l2")

HALVINGS = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the queries after which p is halved (section 3.2)
TRIES = 8  # squares drawn for a query in ℓ∞, of which the first that changes a pixel is taken
TILES = 5  # of the ℓ2 start, along each side (section 3.4)
LEAST_SIDE = 3  # of a square in ℓ2, whose pattern has two halves


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: the ball's norm.
        queries: most forwards per image, the one of the start included.
        p_init: share of the image's pixels in the first squares; the paper's p.
    """

    norm: BallNorm
    queries: PositiveInt
    p_init: Annotated[float, Range(gt=0, le=1)]


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

    A fooled image is finished; for others the image of the highest margin is returned, whose clean image is never among
    the queries. ``epsilon`` is in [0, 1] units.
    """
    assert epsilon is not None, "a budget attack needs a strength"
    plan = _Linf(inputs, epsilon) if config.norm == "linf" else _L2(inputs, epsilon)

    def propose(rows: Tensor, points: Tensor, uniforms: Tensor, progress: float) -> Tensor:
        return plan.change(rows, points, uniforms, square_side(config.p_init, progress, *inputs.shape[-2:]))

    found = search(
        model,
        plan.start(rng),
        labels,
        targets,
        queries=config.queries,
        propose=propose,
        render=lambda _, points: points,
        draws=plan.draws,
        rng=rng,
    )
    return AttackOutput(found.points, None, found.n_forwards, torch.zeros_like(labels), found.status)


def square_side(p_init: float, progress: float, height: int, width: int) -> int:
    """Side in pixels of the square whose area is nearest to p of the image, p after this share of the queries."""
    p = p_init / 2 ** sum(progress >= share for share in HALVINGS)
    return min(max(round(math.sqrt(p * height * width)), 1), height, width)


class _Linf:
    """Squares of one colour: every pixel stays at x + ε or x − ε (section 3.3, algorithm 2)."""

    def __init__(self, inputs: Tensor, epsilon: float) -> None:
        self.inputs = inputs
        # In ℓ∞ the projection acts on each pixel alone, so these are all values that a search ever takes.
        self.down, self.up = bounds(inputs, epsilon)
        self.draws = TRIES * (2 + inputs.shape[1])

    def start(self, rng: ExampleRng) -> Tensor:
        """Columns one pixel wide, each channel up or down."""
        channels, _, width = self.inputs.shape[1:]
        return torch.where(rng.uniform((channels, 1, width), like=self.inputs) < 0.5, self.down, self.up)

    def change(self, rows: Tensor, points: Tensor, uniforms: Tensor, side: int) -> Tensor:
        """One square up or down in each channel: the first drawn that changes a pixel, or the query would be wasted."""
        batch, channels, height, width = points.shape
        result, same = points.clone(), torch.arange(batch, device=points.device)
        for numbers in uniforms.view(batch, TRIES, 2 + channels).unbind(1):
            numbers, images, before = numbers[same], rows[same], points[same]
            inside = _inside(_corners(numbers[:, :2], height, width, side), height, width, side)[:, None]
            colours = torch.where(numbers[:, 2:, None, None] < 0.5, self.down[images], self.up[images])
            result[same] = after = torch.where(inside, colours, before)
            same = same[(after == before).flatten(1).all(1)]
            if len(same) == 0:
                break
        return result


class _L2:
    """Patterns η that take over the size of a perturbation elsewhere (section 3.4, algorithm 3)."""

    def __init__(self, inputs: Tensor, epsilon: float) -> None:
        self.inputs, self.epsilon = inputs, epsilon
        self.draws = 5 + inputs.shape[1]

    def start(self, rng: ExampleRng) -> Tensor:
        """A grid of patterns, each channel up or down, on the sphere before the box cuts it."""
        channels, height, width = self.inputs.shape[1:]
        uniforms = rng.uniform((channels + 1, TILES, TILES), like=self.inputs)
        side = max(min(height, width) // TILES, 1)
        tiles = _turned(_pattern(side, like=self.inputs), uniforms[:, -1])[:, None]
        tiles = tiles * _signs(uniforms[:, :-1])[..., None, None]  # (B, C, TILES, TILES, side, side)
        grid = tiles.movedim(4, 3).flatten(4).flatten(2, 3)
        offsets = torch.zeros_like(self.inputs)
        top, left = (max(size - TILES * side, 0) // 2 for size in (height, width))
        offsets[..., top : top + TILES * side, left : left + TILES * side] = grid[..., : height - top, : width - left]
        return self._at(self.inputs, offsets / lengths(offsets) * self.epsilon)

    def change(self, rows: Tensor, points: Tensor, uniforms: Tensor, side: int) -> Tensor:
        """The mass of square 2, and what the ball has left, goes to square 1, as its own pattern plus a random η."""
        batch, channels, height, width = points.shape
        side = min(max(side, LEAST_SIDE), height, width)
        inputs = self.inputs[rows]
        offsets = points - inputs
        corners = _corners(uniforms[:, :4].view(batch, 2, 2), height, width, side)
        inside = _inside(corners, height, width, side)[:, :, None]  # (b, 2, 1, H, W)
        first, either = inside[:, 0], inside.any(1)
        unused = (self.epsilon**2 - lengths(offsets).square()).clamp_min(0)
        available = ((offsets * either).square().sum((2, 3), keepdim=True) + unused / channels).sqrt()

        pattern = _turned(_pattern(side, like=points), uniforms[:, 4])[:, None] * _signs(uniforms[:, 5:, None, None])
        placed = torch.zeros_like(points)
        placed.masked_scatter_(first.expand_as(points), pattern)
        mixed = placed + _unit(offsets * first)
        return self._at(inputs, torch.where(first, _unit(mixed) * available, offsets * ~either))

    def _at(self, inputs: Tensor, offsets: Tensor) -> Tensor:
        return project(inputs + offsets, inputs, self.epsilon, "l2")


def _corners(uniforms: Tensor, height: int, width: int, side: int) -> Tensor:
    """Upper left pixels (..., 2) of squares within the image, from numbers (..., 2) in [0, 1)."""
    places = uniforms.new_tensor((height - side + 1, width - side + 1))
    return (uniforms * places).floor().minimum(places - 1)  # a number may round to 1 in the images' precision


def _inside(corners: Tensor, height: int, width: int, side: int) -> Tensor:
    """The squares' pixels, (..., H, W)."""
    ahead = (
        torch.arange(size, device=corners.device, dtype=corners.dtype) - corners[..., axis, None]
        for axis, size in enumerate((height, width))
    )
    down, across = ((offset >= 0) & (offset < side) for offset in ahead)
    return down[..., :, None] & across[..., None, :]


def _signs(uniforms: Tensor) -> Tensor:
    return torch.where(uniforms < 0.5, -1.0, 1.0).to(uniforms)


def _turned(pattern: Tensor, uniforms: Tensor) -> Tensor:
    """``pattern`` (h, h), or transposed, for each of the numbers (...): (..., h, h)."""
    return torch.where(uniforms[..., None, None] < 0.5, pattern, pattern.T)


def _unit(images: Tensor) -> Tensor:
    """Each channel at Euclidean length 1, or 0 if it is 0."""
    size = images.square().sum((2, 3), keepdim=True).sqrt()
    return images / size.where(size > 0, 1)


def _pattern(side: int, *, like: Tensor) -> Tensor:
    """η / ‖η‖, (side, side): a bump above and the same below, upside down in sign (equation 2)."""
    upper = side // 2
    halves = (_bump(upper, side), [[-value for value in row] for row in _bump(side - upper, side)])
    pattern = like.new_tensor([row for half in halves for row in half])
    normed: Tensor = pattern / torch.linalg.vector_norm(pattern)
    return normed


def _bump(height: int, width: int) -> list[list[float]]:
    """η of height × width: rectangles 1/k² higher the smaller they are, piled up in the middle (section 3.4).

    Its value is Σ_{k=0}^{M} 1 / (n + 1 − k)² with n = ⌊max(height, width) / 2⌋ and M the n-th part of the way inwards.
    """
    n = max(height, width) // 2
    partial = [sum(1 / (n + 1 - k) ** 2 for k in range(m + 1)) for m in range(n + 1)]
    return [
        [partial[max(n - max(abs(r - height // 2), abs(s - width // 2)), 0)] for s in range(width)]
        for r in range(height)
    ]
