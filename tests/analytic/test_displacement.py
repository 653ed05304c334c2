"""What the deformation attacks share: how far a field can stretch, fold-free steps, where a pixel should go."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor

from pipeline.attacks.displacement import (
    ANGLES,
    HALVINGS,
    LEAST_DETERMINANT,
    SIGHT,
    advance,
    ascent,
    unfolded,
    within,
)
from pipeline.deform import deformation_size, fold_free_scales, folded_share, jacobian_determinants, smooth, warp

SEEDS = st.integers(0, 2**32 - 1)
H, W = 7, 9


def random_fields(seed: int, scale: float, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, H, W, 2, generator=generator, dtype=torch.float64).to(dtype)


def affine_field(matrix: list[list[float]]) -> Tensor:
    """τ(u) = (A − I) u for A given with x before y."""
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    places = torch.stack((columns, rows), dim=-1).double()
    return (places @ (torch.tensor(matrix, dtype=torch.float64) - torch.eye(2)).T)[None]


# --- how far a field can be stretched


@pytest.mark.parametrize(
    ("matrix", "scale"),
    [
        ([[1, 0], [0, 1]], math.inf),  # identity
        ([[1, 7], [0, 1]], math.inf),  # shear
        ([[3, 0], [0, 2]], math.inf),  # expansion
        ([[0, -1], [1, 0]], math.inf),  # quarter turn: det = (1 − s)² + s²
        ([[-1, 0], [0, -1]], 0.5),  # half turn: 1 − 2s, squared
        ([[0.5, 0], [0, 1]], 2),  # compression
        ([[0.5, 0], [0, 0.75]], 2),  # the stronger of two
        ([[3, 0], [0, 0.5]], 2),
        ([[0, 1], [1, 0]], 0.5),  # exchange of the axes: 1 − 2s
    ],
)
def test_scales_of_affine_fields(matrix: list[list[float]], scale: float) -> None:
    scales = fold_free_scales(affine_field(matrix), 0)
    assert scales.shape == (1, 4, H - 1, W - 1)
    torch.testing.assert_close(scales, torch.full_like(scales, scale))


@given(seed=SEEDS, exponent=st.floats(-3, 2), least=st.sampled_from([0, LEAST_DETERMINANT, 0.5]))
@settings(max_examples=50, deadline=None)
def test_a_field_is_fold_free_up_to_its_scale_and_no_further(seed: int, exponent: float, least: float) -> None:
    field = random_fields(seed, 10**exponent, n=1)
    scale = fold_free_scales(field, least).amin()
    assert scale.isfinite()  # random fields compress somewhere
    for share in np.linspace(0, 1 - 1e-9, 30):
        assert jacobian_determinants(share * scale * field).min() >= least - 1e-12
        assert least > 0 or folded_share(share * scale * field) == 0
    assert jacobian_determinants((1 + 1e-6) * scale * field).min() < least


@given(seed=SEEDS, scale=st.floats(0.1, 2))
@settings(max_examples=20, deadline=None)
def test_scales_are_the_smallest_positive_roots(seed: int, scale: float) -> None:
    field = random_fields(seed, scale, n=1)
    # The quadratic through the determinants of 0, τ and −τ.
    plus, minus = (jacobian_determinants(sign * field).flatten() for sign in (1, -1))
    expected = []
    for a, b in zip((plus + minus) / 2 - 1, (plus - minus) / 2, strict=True):
        roots = np.roots([a.item(), b.item(), 1])
        expected.append(min((r.real for r in roots if abs(r.imag) < 1e-9 and r.real > 0), default=math.inf))
    scales = fold_free_scales(field, 0).flatten()
    torch.testing.assert_close(scales, torch.tensor(expected, dtype=scales.dtype), rtol=1e-6, atol=0)


# --- fold-free steps


@given(seed=SEEDS, scale=st.floats(0.05, 4), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=40, deadline=None)
def test_unfolded_lies_between_and_does_not_fold(seed: int, scale: float, dtype: torch.dtype) -> None:
    base = unfolded(torch.zeros(3, H, W, 2, dtype=dtype), random_fields(seed, 0.3, dtype=dtype))
    proposals = random_fields(seed + 1, scale, dtype=dtype)
    result = unfolded(base, proposals)
    assert (folded_share(base) == 0).all()
    assert (folded_share(result) == 0).all()
    assert (jacobian_determinants(result) > LEAST_DETERMINANT / 2).all()
    shares = torch.tensor([0.0] + [0.5**k for k in range(HALVINGS + 1)], dtype=dtype)
    candidates = base + shares.view(-1, 1, 1, 1, 1) * (proposals - base)
    assert ((result - candidates).abs().amax(-1).amin(0) < 1e-6).all()


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_unfolded_leaves_alone_what_does_not_fold_and_other_images(seed: int) -> None:
    gentle, wild = random_fields(seed, 1), random_fields(seed + 1, 3)
    gentle *= 0.99 * fold_free_scales(gentle, LEAST_DETERMINANT).flatten(1).amin(1)[:, None, None, None]
    zero = torch.zeros_like(gentle)
    torch.testing.assert_close(unfolded(zero, gentle), gentle)
    both = unfolded(torch.cat((zero, zero)), torch.cat((gentle, wild)))
    torch.testing.assert_close(both, torch.cat((gentle, unfolded(zero, wild))))


def test_only_the_pixels_around_a_fold_are_held_back() -> None:
    """Column 4 overtakes column 5; everything that touches no cell between them moves as proposed."""
    proposal = torch.full((1, H, W, 2), 0.25, dtype=torch.float64)
    proposal[:, :, 4, 0] = 1.75
    result = unfolded(torch.zeros_like(proposal), proposal)
    assert folded_share(result) == 0
    held = (result != proposal).any(-1)[0]
    assert held[:, 4:6].all()
    assert not held[:, :4].any()
    assert not held[:, 6:].any()


@pytest.mark.parametrize("fold_free", [False, True])
@given(seed=SEEDS, radius=st.floats(0.01, 5), step=st.floats(0.05, 10))
@settings(max_examples=25, deadline=None)
def test_advance_stays_within_radii_and_fold_free(seed: int, radius: float, step: float, fold_free: bool) -> None:
    radii = torch.tensor([radius, radius / 2, 2 * radius])
    fields = random_fields(seed, radius, dtype=torch.float32)
    if fold_free:
        fields = unfolded(torch.zeros_like(fields), fields)
    result = advance(fields, random_fields(seed + 1, step, dtype=torch.float32), radii, fold_free=fold_free)
    assert (deformation_size(result.double()) <= radii.double()).all()
    assert not fold_free or (folded_share(result) == 0).all()


def test_within_draws_each_pixel_back_to_its_disk() -> None:
    fields = torch.zeros(2, H, W, 2, dtype=torch.float64)
    fields[:, 0, 0] = torch.tensor([3.0, -4.0])
    fields[:, 1, 1] = torch.tensor([0.3, 0.4])
    expected = fields.clone()
    expected[0, 0, 0] = torch.tensor([0.6, -0.8])
    expected[1, 0, 0], expected[1, 1, 1] = torch.tensor([0.06, -0.08]), torch.tensor([0.06, 0.08])
    torch.testing.assert_close(within(fields, torch.tensor([1, 0.1], dtype=torch.float64)), expected)


# --- where to go


@pytest.mark.parametrize("sigma", [0, 0.5])
@pytest.mark.parametrize("at_rest", [True, False])
def test_ascent_heads_for_the_best_place_around_every_pixel(sigma: float, at_rest: bool) -> None:
    """Against a search pixel by pixel with SciPy's interpolation."""
    generator = torch.Generator().manual_seed(0)
    inputs, gradient = torch.rand(2, 2, 3, H, W, generator=generator, dtype=torch.float64)
    gradient[..., [0, -1], :] = gradient[..., :, [0, -1]] = 0  # beyond the border all places are alike
    radius = torch.tensor([0.3, 1.0], dtype=torch.float64)
    fields = within(random_fields(1, 0 if at_rest else 1.0, n=2), radius)
    images = warp(inputs, fields)
    turns = [math.tau * angle / ANGLES for angle in range(ANGLES)]
    length = torch.tensor([0.2, 0.4], dtype=torch.float64)
    expected, lengths = torch.zeros_like(fields), length[:, None, None, None].expand_as(fields[..., :1]).clone()
    for image, (i, j) in product(range(2), np.ndindex(H, W)):
        sight = min(SIGHT, radius[image].item())
        circle = fields[image, i, j] + sight * torch.tensor([[math.cos(turn), math.sin(turn)] for turn in turns])
        places = circle * (radius[image] / circle.norm(dim=1, keepdim=True)).clamp(max=1)
        at = (places[:, 1] + i).numpy(), (places[:, 0] + j).numpy()
        seen = np.stack([map_coordinates(x.numpy(), at, order=1, mode="nearest") for x in inputs[image]])
        gains = (torch.from_numpy(seen) - images[image, :, i, j, None]) * gradient[image, :, i, j, None]
        best = int(gains.sum(0).argmax())
        if gains.sum(0)[best] > 0:
            move = places[best] - fields[image, i, j]
            expected[image, i, j] = gains.sum(0)[best] * move / move.norm()
            if move.norm() < sight - 1e-9:  # drawn back to the disk
                lengths[image, i, j].clamp_(max=move.norm().item())
    expected = smooth(expected, sigma)
    expected = lengths * expected / expected.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    for scale in (1, 1e-30, 1e30):
        found = ascent(scale * gradient, inputs, images, fields, radius, length=length, sigma=sigma)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_ascent_sees_beyond_a_flat_spot() -> None:
    """The derivative at a plateau's edge, taken to the plateau's side, is zero; what lies half a pixel on is not."""
    inputs, zero, radius = torch.zeros(1, 1, H, W), torch.zeros(1, H, W, 2), torch.ones(1)
    inputs[..., 5:] = 1
    move = ascent(torch.ones_like(inputs), inputs, inputs, zero, radius, length=radius, sigma=0)
    assert (move[0, :, 4, 0] > 0.99).all()
    assert not move[0, :, :4].any()


def test_ascent_rests_where_nothing_can_be_gained() -> None:
    flat, zero, radius = torch.full((1, 1, H, W), 0.5), torch.zeros(1, H, W, 2), torch.ones(1)
    assert not ascent(torch.ones_like(flat), flat, flat, zero, radius, length=radius, sigma=0.5).any()
    textured = torch.rand(1, 1, H, W)
    assert not ascent(torch.zeros_like(flat), textured, textured, zero, radius, length=radius, sigma=0.5).any()
