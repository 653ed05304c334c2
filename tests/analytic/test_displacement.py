"""What the deformation attacks share: how far a field can stretch, fold-free steps, where a pixel should go."""

from __future__ import annotations

import math

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
    RINGS,
    Reach,
    advance,
    ascent,
    unfolded,
    within,
)
from pipeline.deform import deformation_size, fold_free_scales, folded_share, jacobian_determinants, smooth

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
@given(seed=SEEDS, radius=st.floats(0.01, 5), step_size=st.floats(0.05, 2))
@settings(max_examples=25, deadline=None)
def test_advance_stays_within_radii_and_fold_free(seed: int, radius: float, step_size: float, fold_free: bool) -> None:
    radii = torch.tensor([radius, radius / 2, 2 * radius])
    fields = random_fields(seed, radius, dtype=torch.float32)
    if fold_free:
        fields = unfolded(torch.zeros_like(fields), fields)
    direction = random_fields(seed + 1, 1, dtype=torch.float32)
    result = advance(fields, direction, step_size, radii, fold_free=fold_free)
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


def test_reach_is_the_images_seen_at_the_places_of_a_disk() -> None:
    inputs = torch.rand(2, 3, H, W, dtype=torch.float64)
    reach = Reach.of(inputs, torch.tensor([0.7, 2.5], dtype=torch.float64))
    assert reach.images.shape == (2, RINGS * ANGLES + 1, 3, H, W)
    rows, columns = np.mgrid[:H, :W]
    for image, radius in enumerate((0.7, 2.5)):
        lengths = reach.displacements[image].norm(dim=-1)
        torch.testing.assert_close(lengths.max().item(), radius)
        assert lengths.min() == 0
        for (x, y), seen in zip(reach.displacements[image], reach.images[image], strict=True):
            for channel in range(3):
                places = np.stack((rows + y.item(), columns + x.item()))
                expected = map_coordinates(inputs[image, channel].numpy(), places, order=1, mode="nearest")
                torch.testing.assert_close(seen[channel], torch.from_numpy(expected))


@pytest.mark.parametrize("sigma", [0, 0.5])
def test_ascent_heads_for_the_best_place_of_every_pixel(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, gradient = torch.rand(2, 2, 3, H, W, generator=generator, dtype=torch.float64)
    reach = Reach.of(inputs, torch.tensor([0.7, 2.5], dtype=torch.float64))
    fields = torch.zeros(2, H, W, 2, dtype=torch.float64)
    expected = torch.zeros_like(fields)
    for image in range(2):
        for i in range(H):
            for j in range(W):
                gains = ((reach.images[image, :, :, i, j] - inputs[image, :, i, j]) * gradient[image, :, i, j]).sum(1)
                best = int(gains.argmax())
                if gains[best] > 0:
                    place = reach.displacements[image, best]
                    expected[image, i, j] = gains[best] * place / place.norm()
    expected = smooth(expected, sigma)
    expected /= expected.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    for scale in (1, 1e-30, 1e30):
        torch.testing.assert_close(ascent(scale * gradient, inputs, fields, reach, sigma), expected)


def test_ascent_rests_where_nothing_can_be_gained() -> None:
    inputs, zero = torch.full((1, 1, H, W), 0.5), torch.zeros(1, H, W, 2)
    reach = Reach.of(inputs, torch.ones(1))
    assert not ascent(torch.ones_like(inputs), inputs, zero, reach, 0.5).any()
    textured = torch.rand(1, 1, H, W)
    assert not ascent(torch.zeros_like(inputs), textured, zero, Reach.of(textured, torch.ones(1)), 0.5).any()
