"""Ascent on displacement fields τ with ‖τ‖_T ≤ ε, folding or not. Not a component: the deformation attacks import it.

Two measures make it strong.

*Where to go.* The gradient with respect to τ sees no further than the grid cell that a pixel points into, and is zero
where the image is flat. But all that a pixel can become within its disk of radius ε is known beforehand: ``Reach``. The
linear maximisation over it (as in Frank and Wolfe 1956) says where a pixel should go: ``ascent``.

*How not to fold.* A field that folds at a few pixels is not shrunk as a whole: every pixel goes as far towards its
proposed place as no cell next to it folds, by backtracking pixel by pixel (in the spirit of the injective maps of
geometry processing, Schüller et al. 2013): ``unfolded``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.deform import deformation_size, fold_free_scales, smooth, warp

LEAST_DETERMINANT = 1e-2  # of I + ∇τ in fold-free fields: far above rounding, and as strong as 1e-4 (measured)
HALVINGS = 2  # of a pixel's step before it stays where it is; more are no stronger (measured)
ANGLES, RINGS = 16, 2  # of the polar grid on a pixel's disk


@dataclass(frozen=True)
class Reach:
    """What every pixel can become by moving within its disk: a polar grid of N displacements, its centre included.

    Attributes:
        displacements: (b, N, 2), pixels.
        images: (b, N, C, H, W), the inputs displaced by each of them as a whole.
    """

    displacements: Tensor
    images: Tensor

    @classmethod
    def of(cls, inputs: Tensor, radius: Tensor) -> Reach:
        """For inputs (b, C, H, W) and disks of radius (b,) pixels."""
        grid = [(0.0, 0.0)] + [
            (ring / RINGS * math.cos(math.tau * angle / ANGLES), ring / RINGS * math.sin(math.tau * angle / ANGLES))
            for ring in range(1, RINGS + 1)
            for angle in range(ANGLES)
        ]
        displacements = radius[:, None, None] * inputs.new_tensor(grid)
        fields = displacements[:, :, None, None].expand(-1, -1, *inputs.shape[-2:], -1)
        images = warp(inputs.repeat_interleave(len(grid), 0), fields.flatten(0, 1))
        return cls(displacements, images.view(len(inputs), len(grid), *inputs.shape[1:]))

    def __getitem__(self, rows: Tensor) -> Reach:
        return Reach(self.displacements[rows], self.images[rows])


def ascent(gradient: Tensor, images: Tensor, fields: Tensor, reach: Reach, sigma: float) -> Tensor:
    """Directions of ascent of unit length at every pixel (0 where there is nothing to gain), (b, H, W, 2).

    Each pixel heads for the place of its disk where a linear loss would be highest, weighted by what it would gain
    there; ADef's Gaussian filter then makes neighbours agree.

    Args:
        gradient: (b, C, H, W), of the loss at ``images``.
        images: (b, C, H, W), the inputs deformed by ``fields``.
        fields: (b, H, W, 2), pixels.
        reach: of the inputs.
        sigma: width of the filter in pixels.
    """
    scores = (gradient[:, None] * (reach.images - images[:, None])).sum(2)
    gain, best = scores.max(1)
    places = reach.displacements.gather(1, best.flatten(1)[..., None].expand(-1, -1, 2)).view_as(fields)
    # What rounding may feign is no gain, or the pixels of flat areas would wander.
    gain = (gain - 16 * torch.finfo(gain.dtype).eps * gradient.abs().sum(1)).clamp(min=0)
    # In units of the largest gain, so that no scale of the loss under- or overflows below.
    gain = gain / gain.amax((1, 2), keepdim=True).clamp(min=torch.finfo(gain.dtype).tiny)
    return _unit(smooth(gain[..., None] * _unit(places - fields), sigma))


def within(fields: Tensor, radius: Tensor) -> Tensor:
    """The nearest fields (b, H, W, 2) of sizes ≤ radius (b,): every pixel is drawn back to its disk.

    Sizes are a few units in the last place smaller than ``radius``, so that they hold in exact arithmetic.
    """
    inner = radius * (1 - 16 * torch.finfo(fields.dtype).eps)
    return fields * _ratio(inner[:, None, None, None], _lengths(fields))


def advance(fields: Tensor, direction: Tensor, step_size: float, radius: Tensor, *, fold_free: bool) -> Tensor:
    """A step of ``step_size`` radii, (b,) pixels, from ``fields`` along ``direction``, to sizes ≤ ``radius``.

    ``fold_free`` asks for and returns fold-free fields, and counts a radius of more than one pixel as one: neighbours
    are a pixel apart, so that by longer steps they would only block each other.
    """
    length = step_size * (radius.clamp(max=1) if fold_free else radius)
    proposals = within(fields + length[:, None, None, None] * direction, radius)
    if not fold_free:
        return proposals
    shrunk = fields * _ratio(radius, deformation_size(fields))[:, None, None, None]
    return unfolded(within(shrunk, radius), proposals)


def unfolded(fields: Tensor, proposals: Tensor) -> Tensor:
    """Fold-free fields between ``fields``, which must be fold-free, and ``proposals``, pixel by pixel; (b, H, W, 2).

    Where a corner of a cell folds, its three pixels halve their steps, and after ``HALVINGS`` give them up. Every round
    stops at least one pixel, so this ends. What is fold-free remains so if the field shrinks as a whole.
    """
    result = proposals.clone()
    rows = torch.arange(len(fields), device=fields.device)
    shares = fields.new_ones(*fields.shape[:3], 1)
    halvings = 0
    while len(rows):
        moved = fields + shares * (proposals - fields)
        result[rows] = moved
        blocked = _vertices(fold_free_scales(moved, LEAST_DETERMINANT) < 1)[..., None] & (shares > 0)
        shares = torch.where(blocked, shares / 2 if halvings < HALVINGS else 0, shares)
        halvings += 1
        folding = blocked.flatten(1).any(1)
        rows, fields, proposals, shares = rows[folding], fields[folding], proposals[folding], shares[folding]
    return result


def _unit(fields: Tensor) -> Tensor:
    """Every pixel's vector at length 1, or 0 where its length is 0."""
    lengths = _lengths(fields)
    return torch.where(lengths > 0, fields / lengths, 0)


def _lengths(fields: Tensor) -> Tensor:
    return fields.square().sum(-1, keepdim=True).sqrt()


def _ratio(bound: Tensor, size: Tensor) -> Tensor:
    """By what to multiply so that ``size`` ≥ 0 does not exceed ``bound``: at most 1."""
    return (bound / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)


def _vertices(corners: Tensor) -> Tensor:
    """Pixels (b, H, W) that take part in marked corners (b, 4, H-1, W-1), in the order of ``jacobian_determinants``.

    A corner is its pixel and that pixel's two neighbours in the cell: all of the cell but the pixel opposite.
    """
    upper_left, upper_right, lower_left, lower_right = corners.unbind(1)
    batch, height, width = upper_left.shape
    pixels = corners.new_zeros(batch, height + 1, width + 1)
    pixels[:, :-1, :-1] |= upper_left | upper_right | lower_left
    pixels[:, :-1, 1:] |= upper_left | upper_right | lower_right
    pixels[:, 1:, :-1] |= upper_left | lower_left | lower_right
    pixels[:, 1:, 1:] |= upper_right | lower_left | lower_right
    return pixels
