"""Ascent on displacement fields τ with ‖τ‖_T ≤ ε, folding or not. Not a component: the deformation attacks import it.

Two measures make it strong.

*Where to go.* The derivative with respect to τ of a bilinear interpolation sees no further than the grid cell that a
pixel points into: it misses what lies behind a flat spot or a crest. So each pixel looks around at a finite distance:
``ascent``.

*How not to fold.* A field that folds at a few pixels is not shrunk as a whole: every pixel goes as far towards its
proposed place as no cell next to it folds, by backtracking pixel by pixel (in the spirit of the injective maps of
geometry processing, Schüller et al. 2013): ``advance``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.attacks.base import ExampleRng
from pipeline.deform import deformation_size, fold_free_scales, smooth, warp

SIGHT = 0.5  # pixels that a pixel looks around; with 0, a third fewer images fall to half a pixel; 1 is weaker at 2
ANGLES = 16  # directions in which it looks
LEAST_DETERMINANT = 1e-2  # of I + ∇τ in fold-free fields: far above rounding, and as strong as 1e-4
HALVINGS = 2  # of a pixel's step before it stays where it is; more are no stronger


def ascent(
    gradient: Tensor, inputs: Tensor, images: Tensor, fields: Tensor, radius: Tensor, *, length: Tensor, sigma: float
) -> Tensor:
    """Steps of ascent from ``fields``, (b, H, W, 2) pixels: ``length`` long or, where the disk ends, less.

    Each pixel heads for the place where a linear loss would be highest among those on a circle of ``SIGHT`` pixels
    around it, drawn back to its disk. ADef's Gaussian filter, weighted by what each pixel would gain, then makes
    neighbours agree.

    Args:
        gradient: (b, C, H, W), of the loss at ``images``.
        inputs: (b, C, H, W).
        images: (b, C, H, W), ``inputs`` deformed by ``fields``.
        fields: (b, H, W, 2), pixels, of sizes ≤ radius.
        radius: (b,), pixels.
        length: (b,), pixels.
        sigma: width of the filter in pixels.
    """
    # What rounding may feign is no gain, or the pixels of flat areas would wander.
    highest = 16 * torch.finfo(gradient.dtype).eps * gradient.abs().sum(1)
    least, towards = highest, torch.zeros_like(fields)
    sight = radius.clamp(max=SIGHT)[:, None, None, None]
    for angle in range(ANGLES):
        turn = math.tau * angle / ANGLES
        places = within(fields + sight * fields.new_tensor((math.cos(turn), math.sin(turn))), radius)
        gain = (gradient * (warp(inputs, places) - images)).sum(1)
        towards = torch.where((gain > highest)[..., None], places - fields, towards)
        highest = highest.maximum(gain)
    gain = highest - least
    # In units of the largest gain, so that no scale of the loss under- or overflows below.
    gain = gain / gain.amax((1, 2), keepdim=True).clamp(min=torch.finfo(gain.dtype).tiny)
    distances = _lengths(towards)
    directions = _unit(smooth(gain[..., None] * torch.where(distances > 0, towards / distances, 0), sigma))
    # Further steps of pixels whose place was drawn back to the disk would swing around it.
    drawn_back = (distances > 0) & (distances < (1 - 1e-6) * sight)
    length = length[:, None, None, None].expand_as(distances)
    return directions * torch.where(drawn_back, length.minimum(distances), length)


def within(fields: Tensor, radius: Tensor) -> Tensor:
    """The nearest fields (b, H, W, 2) of sizes ≤ radius (b,): every pixel is drawn back to its disk.

    Sizes are a few units in the last place smaller than ``radius``, so that they hold in exact arithmetic.
    """
    inner = radius * (1 - 16 * torch.finfo(fields.dtype).eps)
    return fields * _ratio(inner[:, None, None, None], _lengths(fields))


def step_length(step_size: float, radius: Tensor, *, fold_free: bool) -> Tensor:
    """``step_size`` radii, (b,) pixels. Without folds a radius of more than one pixel counts as one.

    Neighbours are a pixel apart: by longer steps they would only block each other.
    """
    return step_size * (radius.clamp(max=1) if fold_free else radius)


def advance(fields: Tensor, step: Tensor, radius: Tensor, *, fold_free: bool) -> Tensor:
    """From ``fields`` by ``step``, both (b, H, W, 2), to sizes ≤ ``radius``; fold-free from fold-free if asked for."""
    proposals = within(fields + step, radius)
    if not fold_free:
        return proposals
    shrunk = fields * _ratio(radius, deformation_size(fields))[:, None, None, None]
    return unfolded(within(shrunk, radius), proposals)


def random_fields(inputs: Tensor, radius: Tensor, rng: ExampleRng, *, stream: int, fold_free: bool) -> Tensor:
    """Fields (b, H, W, 2) with every pixel anywhere in its disk, as far as it may not fold; others for each stream."""
    zero = inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    noise = rng.normal(zero.shape[1:], like=zero, stream=stream)
    length = step_length(1.0, radius, fold_free=fold_free)[:, None, None, None]
    return advance(zero, length * noise, radius, fold_free=fold_free)


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
