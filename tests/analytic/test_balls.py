"""Projections and steepest directions: what holds for all inputs, and in floating point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.attacks.balls import BallNorm, ball, bounds, lengths, project, steepest

NORMS: tuple[BallNorm, ...] = ("linf", "l2")
every_norm = pytest.mark.parametrize("norm", NORMS)


def size(perturbation: Tensor, norm: BallNorm) -> Tensor:
    order = torch.inf if norm == "linf" else 2
    sizes: Tensor = torch.linalg.vector_norm(perturbation.double().flatten(1), ord=order, dim=1)
    return sizes


@given(
    norm=st.sampled_from(NORMS),
    epsilon=st.just(0.0) | st.floats(1e-30, 1e-3) | st.floats(1e-3, 40),
    pixels=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    spread=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_projections_lie_in_the_ball_and_in_the_box(
    norm: BallNorm, epsilon: float, pixels: list[float], spread: float, seed: int
) -> None:
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    inputs = torch.tensor(pixels).view(1, 1, 2, 2).repeat(3, 1, 4, 4)
    projected = project(inputs + spread * noise, inputs, epsilon, norm)
    assert ((projected >= 0) & (projected <= 1)).all()
    slack = 0 if norm == "linf" else 1e-6 * epsilon  # of a sum of squares
    assert (size(projected - inputs, norm) <= torch.tensor(epsilon).item() + slack).all()


@every_norm
def test_points_of_both_stay(norm: BallNorm) -> None:
    inputs = torch.rand(4, 1, 5, 5, dtype=torch.float64)
    points = (inputs + 0.01 * torch.randn_like(inputs)).clamp(0, 1)
    torch.testing.assert_close(project(points, inputs, 1.0, norm), points, rtol=0, atol=1e-15)


@every_norm
def test_each_image_can_have_its_own_radius(norm: BallNorm) -> None:
    inputs, radii = torch.full((3, 1, 5, 5), 0.5), torch.tensor([0.0, 0.1, 0.3])
    projected = project(inputs + torch.randn_like(inputs), inputs, radii.view(3, 1, 1, 1), norm)
    torch.testing.assert_close(size(projected - inputs, norm), radii.double())


def test_linf_projects_to_the_nearest_point() -> None:
    inputs = torch.tensor([0.5, 0.9, 0.0]).view(1, 1, 1, 3)
    points = torch.tensor([0.9, 1.7, -0.4]).view(1, 1, 1, 3)
    torch.testing.assert_close(project(points, inputs, 0.2, "linf").flatten(), torch.tensor([0.7, 1.0, 0.0]))


@pytest.mark.parametrize("rows", [torch.tensor([True, False, True]), torch.tensor([2, 0])])
@every_norm
def test_balls_of_some_inputs(norm: BallNorm, rows: Tensor) -> None:
    inputs, radii = torch.rand(3, 1, 5, 5), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    points = torch.rand(3, 1, 5, 5)
    projected = ball(inputs, radii, norm)[rows].project(points[rows])
    assert torch.equal(projected, project(points, inputs, radii, norm)[rows])


def test_bounds_are_where_linf_projections_end() -> None:
    inputs = torch.rand(4, 1, 5, 5)
    for found, sign in zip(bounds(inputs, 0.1), (-1, 1), strict=True):
        assert torch.equal(found, project(inputs + sign, inputs, 0.1, "linf"))
        torch.testing.assert_close(found, (inputs + sign * 0.1).clamp(0, 1))


@pytest.mark.parametrize("scale", [1e-36, 1.0, 1e36])
def test_steepest_has_size_one_and_gains_the_dual_norm(scale: float) -> None:
    gradient = torch.randn(4, 1, 6, 6)
    for norm, dual in zip(NORMS, (1, 2), strict=True):
        step = steepest(scale * gradient, norm)
        torch.testing.assert_close(size(step, norm), torch.ones(4).double())
        gain, bound = (
            (step * gradient).flatten(1).sum(1),
            torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1),
        )
        torch.testing.assert_close(gain, bound)


@every_norm
def test_nothing_is_steepest_on_a_plain(norm: BallNorm) -> None:
    assert not steepest(torch.zeros(2, 1, 3, 3), norm).any()


def test_lengths_are_per_image() -> None:
    assert lengths(torch.tensor([3.0, 4.0, 0.0, 0.0]).view(2, 1, 1, 2)).flatten().tolist() == [5.0, 0.0]
