"""Deformations of images: warp, ‖τ‖_T, smoothing, folding. Shared by the attacks and by the judge.

Conventions (ADef, Alaifari, Alberti, Gauksson 2019): a field τ has shape (B, H, W, 2), in pixels; component 0 runs
along columns (x), component 1 along rows (y); the deformed image is x^τ(u) = x(u + τ(u)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(inputs: Tensor, deformation: Tensor) -> Tensor:
    """x^τ(u) = x(u + τ(u)): bilinear, clamped at the border; differentiable in both arguments.

    Args:
        inputs: (B, C, H, W).
        deformation: (B, H, W, 2), pixels.

    Returns:
        (B, C, H, W). Exact to rounding, which can leave the inputs' range by an ulp: attacks clamp.
    """
    height, width = inputs.shape[-2:]
    rows = torch.arange(height, device=inputs.device, dtype=inputs.dtype)
    columns = torch.arange(width, device=inputs.device, dtype=inputs.dtype)
    x = columns[None, None, :] + deformation[..., 0]
    y = rows[None, :, None] + deformation[..., 1]
    # align_corners=True puts -1 and 1 on the centres of the border pixels, which is what pixel units mean; without
    # it a zero field would resample the image.
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    warped: Tensor = F.grid_sample(inputs, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return warped


def image_gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """∂x/∂(column) and ∂x/∂(row) per pixel, each (B, C, H, W): central differences, one-sided at the border."""
    along_y, along_x = torch.gradient(images, dim=(-2, -1))
    return along_x, along_y


def deformation_size(deformation: Tensor) -> Tensor:
    """‖τ‖_T = max over pixels of the Euclidean length of τ, (B,), in pixels (ADef, section 2)."""
    # torch's vector_norm over a strided axis of length 2 takes 100 times longer.
    sizes: Tensor = deformation.square().sum(-1).flatten(1).amax(1).sqrt()
    return sizes


def smooth(deformation: Tensor, sigma: float) -> Tensor:
    """G τ: separable Gaussian of width ``sigma`` pixels, radius int(4σ + 0.5), zero padding; σ = 0 is the identity.

    G is symmetric and acts on each component alone. Same shape as ``deformation``.
    """
    if _radius(sigma) == 0:
        return deformation
    along_rows, along_columns = (
        _gaussian_matrix(size, sigma, deformation.dtype, deformation.device) for size in deformation.shape[1:3]
    )
    return (along_rows @ deformation.movedim(-1, 1) @ along_columns).movedim(1, -1)


def _radius(sigma: float) -> int:
    return int(4 * sigma + 0.5)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # or a first call in inference mode would leave a matrix that autograd cannot use later
def _gaussian_matrix(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter in one dimension as a symmetric matrix (size, size): on images, much faster than a convolution."""
    radius = _radius(sigma)
    total = sum(math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1))
    positions = torch.arange(size, dtype=dtype, device=device)
    distances = (positions[:, None] - positions).abs()
    return torch.exp(-0.5 * (distances / sigma) ** 2) / total * (distances <= radius)


def _corner_gradients(deformation: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """∂τ_x/∂x, ∂τ_x/∂y, ∂τ_y/∂x, ∂τ_y/∂y, each (B, H-1, W-1), at one corner of every pixel cell after the other.

    A corner takes the differences along the two edges of its cell that meet in it, which is the gradient of the
    bilinear interpolant of τ there.
    """
    along_x = deformation[:, :, 1:] - deformation[:, :, :-1]
    along_y = deformation[:, 1:] - deformation[:, :-1]
    low, high = slice(None, -1), slice(1, None)
    for rows, columns in product((low, high), repeat=2):
        at_x, at_y = along_x[:, rows], along_y[:, :, columns]
        yield at_x[..., 0], at_y[..., 0], at_x[..., 1], at_y[..., 1]


def jacobian_determinants(deformation: Tensor) -> Tensor:
    """det(I + ∇τ) at every corner of every pixel cell, (B, 4, H-1, W-1).

    All four positive is the condition under which the bilinear interpolant of u + τ(u) is injective on the cell: its
    determinant is affine in each coordinate, so its minimum over the cell is at a corner.
    """
    return torch.stack([(1 + xx) * (1 + yy) - xy * yx for xx, xy, yx, yy in _corner_gradients(deformation)], dim=1)


def folded_share(deformation: Tensor) -> Tensor:
    """Share of pixel cells on which u ↦ u + τ(u) folds: det(I + ∇τ) ≤ 0 (or NaN) at a corner, (B,)."""
    folds = ~(jacobian_determinants(deformation).amin(1) > 0)
    return folds.flatten(1).to(deformation.dtype).mean(1)


def max_gradient(deformation: Tensor) -> Tensor:
    """Largest spectral norm of ∇τ over the corners of all pixel cells, (B,). Below 1, u ↦ u + τ(u) cannot fold."""
    # A 2×2 matrix is a multiple of a rotation plus a multiple of a reflection; its norm is the sum of the multiples.
    norms = [
        (torch.hypot(xx + yy, yx - xy) + torch.hypot(xx - yy, yx + xy)) / 2
        for xx, xy, yx, yy in _corner_gradients(deformation)
    ]
    return torch.stack(norms, dim=1).flatten(1).amax(1)


def fold_free_scales(deformation: Tensor, least_determinant: float) -> Tensor:
    """How far a field can be stretched: at every corner of every pixel cell, (B, 4, H-1, W-1), the largest s such that
    det(I + s'∇τ) ≥ ``least_determinant`` (in [0, 1)) for all s' in [0, s]; infinite if there is none.

    Along s τ the determinant is the quadratic 1 + s tr ∇τ + s² det ∇τ, so s is a root in closed form. The fields with
    all s ≥ 1 are those that stay fold-free while they shrink to 0.
    """
    scales = []
    for xx, xy, yx, yy in _corner_gradients(deformation):
        trace, determinant = xx + yy, xx * yy - xy * yx
        slack = 1 - least_determinant
        spread = (trace.square() - 4 * slack * determinant).sqrt()  # NaN where there is no root
        # The smaller positive root, in the form that does not cancel.
        root = torch.where(trace > 0, -(trace + spread) / (2 * determinant), 2 * slack / (spread - trace))
        scales.append(torch.where(root > 0, root, torch.inf))
    return torch.stack(scales, dim=1)
