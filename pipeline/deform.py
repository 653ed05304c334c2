"""Deformations of images: warp, ‖τ‖_T, smoothing, folding. Shared by the attacks and by the judge.

Conventions (ADef, Alaifari, Alberti, Gauksson 2019): a field τ has shape (B, H, W, 2), in pixels; component 0 runs
along columns (x), component 1 along rows (y); the deformed image is x^τ(u) = x(u + τ(u)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(inputs: Tensor, deformation: Tensor) -> Tensor:
    """x^τ(u) = x(u + τ(u)): bilinear, clamped at the border; differentiable in both arguments.

    Args:
        inputs: (B, C, H, W).
        deformation: (B, H, W, 2), pixels.

    Returns:
        (B, C, H, W). A zero field returns the inputs.
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


def deformation_size(deformation: Tensor) -> Tensor:
    """‖τ‖_T = max over pixels of the Euclidean length of τ, (B,), in pixels (ADef, section 2)."""
    return torch.linalg.vector_norm(deformation, dim=-1).flatten(1).amax(1)


def smooth(deformation: Tensor, sigma: float) -> Tensor:
    """G τ: separable Gaussian of width ``sigma`` pixels, radius int(4σ + 0.5), zero padding; σ = 0 is the identity."""
    radius = int(4 * sigma + 0.5)
    if sigma == 0 or radius == 0:
        return deformation
    offsets = torch.arange(-radius, radius + 1, device=deformation.device, dtype=deformation.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    field = deformation.movedim(-1, 1)
    shape = field.shape
    field = field.reshape(-1, 1, *shape[-2:])
    field = F.conv2d(field, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    field = F.conv2d(field, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return field.view(shape).movedim(1, -1)


def jacobian(deformation: Tensor) -> Tensor:
    """∇τ by forward differences, (B, H-1, W-1, 2, 2): [..., i, j] is ∂τ_i along axis j (0 is x, 1 is y)."""
    along_x = deformation[:, :-1, 1:] - deformation[:, :-1, :-1]
    along_y = deformation[:, 1:, :-1] - deformation[:, :-1, :-1]
    return torch.stack((along_x, along_y), dim=-1)


def jacobian_determinants(deformation: Tensor) -> Tensor:
    """det(I + ∇τ) at every corner of every pixel cell, (B, 4, H-1, W-1).

    The four corners take forward or backward differences in each direction. All four positive is the condition under
    which the bilinear interpolant of u + τ(u) is injective on the cell (its determinant is affine in each coordinate,
    so its minimum over the cell is at a corner).
    """
    x_low, x_high = (deformation[:, rows, 1:] - deformation[:, rows, :-1] for rows in (slice(None, -1), slice(1, None)))
    y_low, y_high = (deformation[:, 1:, cols] - deformation[:, :-1, cols] for cols in (slice(None, -1), slice(1, None)))
    corners = [
        (1 + along_x[..., 0]) * (1 + along_y[..., 1]) - along_x[..., 1] * along_y[..., 0]
        for along_x in (x_low, x_high)
        for along_y in (y_low, y_high)
    ]
    return torch.stack(corners, dim=1)


def folded_share(deformation: Tensor) -> Tensor:
    """Share of pixel cells on which u ↦ u + τ(u) folds: det(I + ∇τ) ≤ 0 at a corner, (B,)."""
    folds = (jacobian_determinants(deformation) <= 0).any(dim=1)
    return folds.flatten(1).float().mean(1)


def max_gradient(deformation: Tensor) -> Tensor:
    """Largest spectral norm of ∇τ over pixels, (B,). Below 1 the map u ↦ u + τ(u) cannot fold."""
    norms: Tensor = torch.linalg.matrix_norm(jacobian(deformation), ord=2)
    return norms.flatten(1).amax(1)
