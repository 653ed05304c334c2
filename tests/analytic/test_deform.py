"""Deformations against closed forms, brute force and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from pipeline.deform import deformation_size, folded_share, jacobian_determinants, max_gradient, smooth, warp

H, W = 7, 9
SEEDS = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pixels() -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels, each (H, W)."""
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return rows, columns


def affine_field(matrix: list[list[float]]) -> Tensor:
    """τ(u) = (A − I) u, (1, H, W, 2), for which u + τ(u) = A u and ∇τ = A − I everywhere."""
    rows, columns = pixels()
    u = torch.stack((columns, rows), dim=-1).double()
    return (u @ (torch.tensor(matrix, dtype=torch.float64) - torch.eye(2)).T)[None]


# --- warp


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_zero_field_changes_nothing(dtype: torch.dtype, tolerance: float) -> None:
    inputs = random(3, 2, H, W).to(dtype)
    torch.testing.assert_close(warp(inputs, inputs.new_zeros(3, H, W, 2)), inputs, rtol=0, atol=tolerance)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_integer_fields_pick_pixels_clamped_at_the_border(seed: int) -> None:
    inputs = random(2, 3, H, W, seed=seed)
    shifts = torch.randint(-4, 5, (2, H, W, 2), generator=torch.Generator().manual_seed(seed))
    rows, columns = pixels()
    picked = torch.stack(
        [
            image[:, (rows + shift[..., 1]).clamp(0, H - 1), (columns + shift[..., 0]).clamp(0, W - 1)]
            for image, shift in zip(inputs, shifts, strict=True)
        ]
    )
    torch.testing.assert_close(warp(inputs, shifts.double()), picked)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_warp_of_a_linear_image_is_exact(seed: int) -> None:
    """x(u) = a + b·u gives x^τ(u) = a + b·clamp(u + τ(u))."""
    a, b_x, b_y = random(3, seed=seed)
    rows, columns = pixels()
    field = 2 * random(1, H, W, 2, seed=seed + 1)
    expected = a + b_x * (columns + field[0, ..., 0]).clamp(0, W - 1) + b_y * (rows + field[0, ..., 1]).clamp(0, H - 1)
    torch.testing.assert_close(warp((a + b_x * columns + b_y * rows)[None, None], field)[0, 0], expected)


def test_warp_agrees_with_scipy() -> None:
    image, field = random(1, 1, H, W), 3 * random(1, H, W, 2, seed=1)
    rows, columns = pixels()
    places = np.stack((rows + field[0, ..., 1], columns + field[0, ..., 0]))
    expected = map_coordinates(image[0, 0].numpy(), places, order=1, mode="nearest")
    torch.testing.assert_close(warp(image, field)[0, 0], torch.from_numpy(expected))


def test_warp_is_differentiable_in_both_arguments() -> None:
    inputs, field = random(1, 2, 4, 4).requires_grad_(), (0.3 * random(1, 4, 4, 2, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (inputs, field))


# --- ‖τ‖_T


def test_size_is_the_longest_vector() -> None:
    field = torch.zeros(2, H, W, 2)
    field[0, 3, 4] = torch.tensor([3.0, -4.0])
    field[0, 0, 0] = torch.tensor([4.9, 0.0])
    assert deformation_size(field).tolist() == [5, 0]


# --- smoothing


@pytest.mark.parametrize("sigma", [0, 0.1, 0.5, 1, 2.3, 9])
def test_smoothing_is_scipys_gaussian_filter_with_zero_padding(sigma: float) -> None:
    field = random(2, H, W, 2)
    expected = gaussian_filter(field.numpy(), (0, sigma, sigma, 0), mode="constant", truncate=4)
    torch.testing.assert_close(smooth(field, sigma), torch.from_numpy(expected))


@given(seed=SEEDS, sigma=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_smoothing_is_self_adjoint(seed: int, sigma: float) -> None:
    a, b = random(2, H, W, 2, seed=seed)[:, None]
    torch.testing.assert_close((smooth(a, sigma) * b).sum(), (a * smooth(b, sigma)).sum())


def test_smoothing_first_used_in_inference_mode_can_be_differentiated_later() -> None:
    with torch.inference_mode():
        smooth(random(1, H, W, 2), 0.777)
    field = random(1, H, W, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(smooth(field, 0.777).sum(), field)
    torch.testing.assert_close(gradient, smooth(torch.ones_like(field), 0.777).detach())


# --- folding


@pytest.mark.parametrize(
    ("name", "matrix", "determinant", "folds"),
    [
        ("identity", [[1, 0], [0, 1]], 1, False),
        ("strong shear", [[1, 7], [0, 1]], 1, False),
        ("half turn", [[-1, 0], [0, -1]], 1, False),
        ("compression", [[0.25, 0], [0, 0.5]], 0.125, False),
        ("collapse to a line", [[0, 0], [0, 1]], 0, True),
        ("reflection", [[-1, 0], [0, 1]], -1, True),
        ("exchange of the axes", [[0, 1], [1, 0]], -1, True),
    ],
)
def test_affine_fields(name: str, matrix: list[list[float]], determinant: float, folds: bool) -> None:  # noqa: ARG001
    field = affine_field(matrix)
    determinants = jacobian_determinants(field)
    assert determinants.shape == (1, 4, H - 1, W - 1)
    torch.testing.assert_close(determinants, torch.full_like(determinants, determinant))
    assert folded_share(field).item() == folds
    norm = np.linalg.norm(np.asarray(matrix, dtype=float) - np.eye(2), ord=2)
    assert max_gradient(field).item() == pytest.approx(norm, abs=1e-12)


def test_a_pixel_that_overtakes_its_neighbour_folds_the_cells_between_them() -> None:
    """Column 4 moves right by 1.5 pixels: the cells to its right turn over, those to its left are stretched."""
    field = torch.zeros(1, H, W, 2)
    field[:, :, 4, 0] = 1.5
    determinants = jacobian_determinants(field)[0, 0, 0]
    assert determinants.tolist() == [1, 1, 1, 2.5, -0.5, 1, 1, 1]
    assert folded_share(field).item() == pytest.approx(1 / (W - 1))
    assert max_gradient(field).item() == 1.5


def test_a_single_corner_that_turns_over_folds_its_cell() -> None:
    """The pixel in the last corner crosses its cell's diagonal: a fold that only the fourth corner sees."""
    field = torch.zeros(1, H, W, 2)
    field[0, -1, -1] = -0.6
    assert (jacobian_determinants(field) <= 0).nonzero().tolist() == [[0, 3, H - 2, W - 2]]
    assert folded_share(field).item() == pytest.approx(1 / ((H - 1) * (W - 1)))


def test_a_field_that_is_not_finite_folds() -> None:
    assert folded_share(torch.full((1, H, W, 2), torch.nan)).item() == 1


def interpolant_gradients(field: Tensor, n: int = 7) -> Tensor:
    """∇τ of the bilinear interpolant at n×n points of every cell, from its values: (H-1, W-1, n*n, 2, 2).

    Along one axis the interpolant is linear within a cell: differences between opposite sides are derivatives.
    """
    s = torch.linspace(0, 1, n, dtype=field.dtype)
    p00, p01, p10, p11 = (
        field[0, rows, columns, None]
        for rows in (slice(None, -1), slice(1, None))
        for columns in (slice(None, -1), slice(1, None))
    )
    left, right = p00 + (p10 - p00) * s[:, None], p01 + (p11 - p01) * s[:, None]
    top, bottom = p00 + (p01 - p00) * s[:, None], p10 + (p11 - p10) * s[:, None]
    along_x = (right - left)[:, :, :, None].expand(-1, -1, n, n, 2)
    along_y = (bottom - top)[:, :, None, :].expand(-1, -1, n, n, 2)
    return torch.stack((along_x, along_y), dim=-1).flatten(2, 3)


@given(seed=SEEDS, scale=st.floats(0.01, 2))
@settings(max_examples=25, deadline=None)
def test_corners_bound_the_determinant_and_the_gradient_within_every_cell(seed: int, scale: float) -> None:
    field = scale * random(1, H, W, 2, seed=seed)
    gradients = interpolant_gradients(field)
    determinants = torch.linalg.det(torch.eye(2) + gradients)
    torch.testing.assert_close(jacobian_determinants(field)[0].amin(0), determinants.amin(-1))
    torch.testing.assert_close(folded_share(field)[0], (determinants <= 0).any(-1).double().mean())
    torch.testing.assert_close(max_gradient(field)[0], torch.linalg.matrix_norm(gradients, ord=2).max())


@given(seed=SEEDS, share=st.floats(0.1, 0.999))
@settings(max_examples=25, deadline=None)
def test_a_field_with_gradient_below_one_does_not_fold(seed: int, share: float) -> None:
    field = random(1, H, W, 2, seed=seed)
    assert folded_share(field * share / max_gradient(field)).item() == 0
