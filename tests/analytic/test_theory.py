"""The toys against what can be proved of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.theory import annuli, expansion, ordering
from pipeline.theory.fields import Field, flow, trajectories

# --- one dimension: order ---------------------------------------------------------------------------------------------


def test_the_solution_solves() -> None:
    starts = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)
    times = torch.linspace(0, 1, 6, dtype=torch.float64)
    solved = trajectories(lambda _t, x: ordering.STRENGTH * (x - x**3), starts, times)
    torch.testing.assert_close(solved.T, ordering.exact(starts[:, None], times), rtol=0, atol=1e-6)


def test_pairs_are_counted() -> None:
    starts = torch.arange(4.0)
    assert ordering.reordered(starts, starts) == 0
    assert ordering.reordered(starts, -starts) == 1
    assert ordering.reordered(starts, torch.tensor([0.0, 2.0, 1.0, 3.0])) == pytest.approx(1 / 6)


def test_one_euler_step_reorders_exactly_where_its_slope_is_negative() -> None:
    x = torch.linspace(-1.5, 1.5, 2001, dtype=torch.float64)
    falls = ordering.euler(x, 1)[:, -1].diff() < 0
    slope = 1 + ordering.STRENGTH * (1 - 3 * x**2)
    assert torch.equal(falls[1:-1], ((slope[1:-2] + slope[2:-1]) < 0))


def test_only_coarse_steps_reorder_and_only_a_residual_block_can_turn_the_line_around() -> None:
    found = ordering.measure()
    assert found.reordered_by_flow == 0
    assert found.reordered[0] > 0.3
    assert all(coarse >= fine for coarse, fine in zip(found.reordered, found.reordered[1:], strict=False))
    enough = [share for share, steps in zip(found.reordered, found.steps, strict=True) if steps >= found.enough_steps]
    assert enough == [0.0] * len(enough)
    assert len(enough) > 0
    starts = torch.linspace(-1.5, 1.5, 500, dtype=torch.float64)
    assert ordering.reordered(starts, ordering.euler(starts, found.enough_steps)[:, -1]) == 0
    assert found.least_error == pytest.approx((torch.linspace(-1, 1, 41) ** 2).mean().item())
    assert found.error["residual"] < found.least_error / 100
    assert found.least_error <= found.error["flow"] < 1.05 * found.least_error
    assert list(found.learned["flow"]) == sorted(found.learned["flow"])
    assert [len(line) for line in found.flow] == [len(found.times)] * len(found.flow)


# --- the plane: what surrounds goes on surrounding --------------------------------------------------------------------


def strong_field(seed: int, dimensions: int = 2) -> Field:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field = Field(dimensions, 16).double()
    for parameter in field.parameters():
        parameter.requires_grad_(False).mul_(3)
    return field


@pytest.mark.parametrize("seed", range(5))
def test_no_flow_of_the_plane_opens_the_ring(seed: int) -> None:
    """For every field and every direction the ring's edge reaches as far as the disk's centre."""
    circle = annuli.circle(2000).double()
    edge, centre = (flow(strong_field(seed), x, steps=100) for x in (circle, torch.zeros_like(circle[:1])))
    assert abs(annuli.winding(edge - centre)) == pytest.approx(1, abs=1e-6)
    scores = (edge - centre) @ annuli.circle(360).double().T
    assert (scores.amax(0) > 0).all()
    assert (edge - edge[:1]).norm(dim=1).max() > 0.01


def test_one_more_dimension_opens_it() -> None:
    """ẏ = |x|² lifts the ring above the disk."""

    def lift(_t: Tensor, x: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(x[:, :2]), (x[:, :2] ** 2).sum(1, keepdim=True)), dim=1)

    starts, is_ring = annuli.points(5, 36)
    heights = flow(lift, torch.nn.functional.pad(starts, (0, 1)), steps=4)[:, 2]
    assert heights[is_ring == 0].max() == pytest.approx(0.25)
    assert heights[is_ring == 1].min() == pytest.approx(1)


def test_winding_counts_turns() -> None:
    angle = torch.arange(500) * (2 * math.pi / 500)
    for turns in (-2, 1, 3):
        curve = torch.stack(((turns * angle).cos(), (turns * angle).sin()), dim=1)
        assert annuli.winding(curve) == pytest.approx(turns)
        assert annuli.winding(curve + 5) == pytest.approx(0, abs=1e-9)


def test_trained_flows_do_what_the_theorem_says() -> None:
    found = annuli.measure()
    assert found.plane.turns is not None
    assert abs(found.plane.turns) == pytest.approx(1, abs=1e-3)
    assert 0 < found.plane.wrong < 0.1
    assert found.plane.margin < 0
    assert found.augmented.wrong == 0
    assert found.augmented.margin > 0
    for rings in (found.plane, found.augmented):
        ends, normal = torch.tensor(rings.ends), torch.tensor(rings.normal)
        assert ends.shape == (len(rings.starts), 2 + rings.n_extra)
        says_ring = ends @ normal + rings.offset > 0
        assert (says_ring != torch.tensor(rings.is_ring)).double().mean() < 0.05


# --- expansion --------------------------------------------------------------------------------------------------------


def test_distances_grow_by_the_exponential_and_nothing_crosses() -> None:
    found = expansion.measure()
    assert found.growth == pytest.approx([math.exp(rate) for rate in found.rates], rel=1e-6)
    assert found.exact == pytest.approx(found.growth, rel=1e-6)
    assert found.crossings == 0
    for rate, lines in zip(found.rates, found.trajectories, strict=True):
        for line in lines:
            assert line == pytest.approx([line[0] * math.exp(rate * t) for t in found.times], rel=1e-5)
