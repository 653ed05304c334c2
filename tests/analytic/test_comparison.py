"""Paired comparisons against textbook tests and simulated truth."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from scipy import stats
from scipy.special import expit

from pipeline.comparison import POWER, Spread, compare, holm, values
from pipeline.statistics import Array, Outcomes
from tests.analytic.test_statistics import intercept

cached_intercept = cache(intercept)


def pair(
    rng: np.random.Generator,
    means: tuple[float, float],
    sd: tuple[float, float],
    *,
    n_seeds: int,
    n_images: int,
    shared: float = 0.0,
) -> tuple[Array, Array]:
    """Bernoulli outcomes of two models with logistic normal effects of seed and image, ``sd``.

    Images are the same for both; ``shared`` is the correlation of the effects of paired seeds.
    """
    total = math.hypot(*sd)
    images, common = sd[1] * rng.standard_normal((1, n_images)), rng.standard_normal((n_seeds, 1))

    def outcomes(mean: float) -> Array:
        own = rng.standard_normal((n_seeds, 1))
        seeds = sd[0] * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
        chances = expit(cached_intercept(mean, total) + seeds + images)
        return (rng.random((n_seeds, n_images)) < chances).astype(np.float64)

    return outcomes(means[0]), outcomes(means[1])


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_values_are_a_column_or_the_area_of_each_seed_and_image() -> None:
    robust = np.array([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    found = Outcomes(np.array([0.0, 1.0, 2.0]), robust, np.zeros((1, 2)))
    assert values(found, 1.0).tolist() == [[1, 0]]
    assert values(found, None).tolist() == [[0.75, 0.25]]


def test_seeds_that_differ_on_all_images_alike_give_students_test() -> None:
    shifts = np.array([0.1, 0.25, 0.15, 0.3])
    images = np.linspace(0.2, 0.6, 50)
    found = compare(images + shifts[:, None], np.tile(images, (4, 1)))
    assert found.effect.value == pytest.approx(shifts.mean())
    assert found.p == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, rel=1e-6)
    low, high = stats.t.interval(0.95, 3, loc=shifts.mean(), scale=stats.sem(shifts))
    assert found.effect.low <= low + 1e-9
    assert found.effect.high >= high - 1e-9
    assert found.n_agree == found.n_seeds == 4


def test_images_that_differ_in_all_seeds_alike_give_students_test_over_images() -> None:
    rng = np.random.default_rng(0)
    shifts = rng.normal(0.05, 0.1, 30)
    one, other = np.tile(0.5 + shifts, (3, 1)), np.full((3, 30), 0.5)
    assert compare(one, other).p == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, rel=1e-6)


def test_the_spread_estimates_the_components_of_variance() -> None:
    """E seeds = σ²_S/S + σ²_SI/(S I), E images = σ²_I/I + σ²_SI/(S I), E interaction = σ²_SI/(S I)."""
    rng = np.random.default_rng(1)
    found = [
        Spread.of(
            rng.normal(0, 0.2, (5, 1)) + rng.normal(0, 0.3, (1, 20)) + rng.normal(0, 0.4, (5, 20)),
        )
        for _ in range(4000)
    ]
    interaction = 0.16 / 100
    assert np.mean([it.interaction for it in found]) == pytest.approx(interaction, rel=0.03)
    assert np.mean([it.seeds for it in found]) == pytest.approx(0.04 / 5 + interaction, rel=0.05)
    assert np.mean([it.images for it in found]) == pytest.approx(0.09 / 20 + interaction, rel=0.05)


pairs = nps.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[nps.arrays(np.float64, shape, elements=st.sampled_from([0, 1]))] * 2)
)


@given(pairs)
@settings(max_examples=200, deadline=None)
def test_the_comparison_has_no_sides_and_its_interval_is_no_narrower_than_its_p(both: Any) -> None:
    found, mirrored = compare(*both), compare(*both[::-1])
    assert (-mirrored.effect.high, -mirrored.effect.low) == pytest.approx((found.effect.low, found.effect.high))
    assert mirrored.p == pytest.approx(found.p)
    assert mirrored.n_agree == found.n_agree
    assert -1 <= found.effect.low <= found.effect.value <= found.effect.high <= 1
    assert found.effect.high - found.effect.low > 0.01
    if found.p > 0.0501 and found.p != 0.5 ** (len(both[0]) - 1):
        assert found.effect.low <= 1e-9
        assert found.effect.high >= -1e-9


def test_equal_models_do_not_differ() -> None:
    for level in (0.0, 1.0):
        found = compare(np.full((10, 100), level), np.full((10, 100), level))
        assert (found.effect.value, found.p, found.n_agree) == (0, 1, 0)
        assert 0.01 < found.effect.high == pytest.approx(-found.effect.low)


def test_where_nothing_varies_seeds_are_counted() -> None:
    assert compare(np.ones((10, 50)), np.zeros((10, 50))).p == pytest.approx(2 * 0.5**10)
    images = np.random.default_rng(0).random((1, 50))
    rounded = np.tile(images, (10, 1))  # + 0.1 - 0.1 is not quite nothing
    assert compare(rounded + 0.1 - 0.1, rounded).p == 1
    found = compare(rounded + 0.1, rounded)
    assert found.p == pytest.approx(2 * 0.5**10)
    assert found.effect.high - found.effect.low > 0.01


def test_one_seed_says_nothing_about_architectures() -> None:
    found = compare(np.ones((1, 50)), np.zeros((1, 50)))
    assert (found.effect.low, found.effect.high, found.p) == (-1, 1, 1)
    assert math.isinf(found.detectable(0.05))


def test_other_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not the same seeds and images"):
        compare(np.ones((3, 50)), np.ones((3, 40)))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


# --- simulated truth --------------------------------------------------------------------------------------------------

CASES = [
    ((0.98, 0.9), (1.0, 1.0)),
    ((0.1, 0.02), (1.0, 1.0)),
    ((0.05, 0.02), (0.0, 3.0)),
    ((0.98, 0.02), (1.0, 1.0)),
    ((0.6, 0.4), (0.3, 2.0)),
    ((0.5, 0.5), (1.0, 1.0)),
]


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize(("means", "sd"), CASES)
def test_coverage(n_seeds: int, means: tuple[float, float], sd: tuple[float, float]) -> None:
    """The first two are where the symmetric margin alone covers 0.90."""
    assert coverage(n_seeds, means, sd, n_images=100, repetitions=500) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize("n_images", [50, 200])
@pytest.mark.parametrize("sd", [(0.0, 0.0), (0.3, 2.0), (1.0, 1.0), (0.0, 3.0)])
def test_coverage_everywhere(n_seeds: int, n_images: int, sd: tuple[float, float]) -> None:
    for means in [(a, b) for a in (0.02, 0.1, 0.5, 0.9, 0.98) for b in (0.02, 0.1, 0.5, 0.9, 0.98) if a >= b]:
        assert coverage(n_seeds, means, sd, n_images=n_images, repetitions=1000) >= 0.93, means


def coverage(
    n_seeds: int, means: tuple[float, float], sd: tuple[float, float], *, n_images: int, repetitions: int
) -> float:
    rng = np.random.default_rng([n_seeds, n_images, *(round(100 * value) for value in (*means, *sd))])
    truth = means[0] - means[1]
    found = [compare(*pair(rng, means, sd, n_seeds=n_seeds, n_images=n_images)).effect for _ in range(repetitions)]
    return float(np.mean([it.low <= truth <= it.high for it in found]))


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize(("mean", "sd"), [(0.02, (0.3, 2.0)), (0.5, (1.0, 1.0)), (0.5, (0.3, 2.0)), (0.98, (1.0, 1.0))])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_p_rejects_equals_at_most_at_its_level(
    n_seeds: int, mean: float, sd: tuple[float, float], shared: float
) -> None:
    rng = np.random.default_rng([n_seeds, round(100 * mean), round(10 * sd[0]), round(10 * shared)])
    n = 500
    found = [compare(*pair(rng, (mean, mean), sd, n_seeds=n_seeds, n_images=100, shared=shared)).p for _ in range(n)]
    for level in (0.05, 0.01):
        assert (np.array(found) < level).sum() <= stats.binom.ppf(0.999, n, level)


def test_the_smallest_detectable_difference_is_found_with_its_power() -> None:
    rng = np.random.default_rng(2)

    def draw(effect: float) -> tuple[Array, Array]:
        base = rng.uniform(0.2, 0.6, (1, 100))
        noise = rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.1, (1, 100)) + rng.normal(0, 0.2, (10, 100))
        return base + effect + noise, np.tile(base, (10, 1))

    for level in (0.05, 0.01):
        smallest = float(np.mean([compare(*draw(0.0)).detectable(level) for _ in range(300)]))
        power = np.mean([compare(*draw(smallest)).p < level for _ in range(600)])
        assert power == pytest.approx(POWER, abs=0.08)
