"""Statistics against closed forms, textbook intervals and simulated truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit

from pipeline import statistics
from pipeline.attacks.base import Status
from pipeline.statistics import Estimate

Array = npt.NDArray[np.float64]


def budget_rows(
    fallen: Sequence[Any], epsilons: Sequence[float], *, norm: str = "linf", draws: int = 1
) -> pd.DataFrame:
    """Rows of an attack under a budget; ``fallen`` is (seeds, images, strengths × draws)."""
    array = np.asarray(fallen, bool)
    n_seeds, n_images = array.shape[:2]
    rows = [
        {
            "seed": seed,
            "index": index,
            "epsilon": epsilon,
            "draw": draw,
            "success": array[seed, index, e * draws + draw],
        }
        for seed in range(n_seeds)
        for index in range(n_images)
        for e, epsilon in enumerate(epsilons)
        for draw in range(draws)
    ]
    return complete(pd.DataFrame(rows), norm)


def minimal_rows(sizes: Sequence[Any] | Array, *, norm: str = "l2") -> pd.DataFrame:
    """Rows of a minimal attack; ``sizes`` is (seeds, images), inf where it found nothing."""
    array = np.asarray(sizes, float)
    rows = [
        {
            "seed": seed,
            "index": index,
            "epsilon": math.nan,
            "draw": 0,
            "success": np.isfinite(size),
            f"size_{norm}": size,
        }
        for seed, of_seed in enumerate(array)
        for index, size in enumerate(of_seed)
    ]
    return complete(pd.DataFrame(rows), norm)


def complete(rows: pd.DataFrame, norm: str) -> pd.DataFrame:
    """The other columns: all images correct, all rows results."""
    rest: dict[str, Any] = {
        "norm": norm,
        "clean_correct": True,
        "clean_margin": 1.0,
        "status": "ok",
        "size_l2": 1.0,
        "size_linf": 1.0,
        "size_deformation": math.nan,
        "folded_share": math.nan,
        "output_shift_l2": 1.0,
        "n_forwards": 1,
        "n_backwards": 1,
        "seconds": 0.5,
    }
    return rows.assign(**{name: value for name, value in rest.items() if name not in rows})


def robust(rows: pd.DataFrame, epsilons: Sequence[float]) -> list[float]:
    return list(statistics.curve(statistics.outcomes(rows, epsilons))["robust_accuracy"])


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_robust_accuracy_is_the_share_of_images_still_right() -> None:
    rows = budget_rows([[[0, 1], [0, 0], [1, 1]], [[0, 0], [0, 1], [0, 0]]], [0.1, 0.2])
    assert robust(rows, [0.1, 0.2]) == pytest.approx([1, 5 / 6, 3 / 6])


def test_rows_may_come_in_any_order() -> None:
    rows = budget_rows([[[0, 1], [0, 0], [1, 1]], [[0, 0], [0, 1], [0, 0]]], [0.1, 0.2])
    shuffled = rows.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        statistics.curve(statistics.outcomes(rows, [0.1, 0.2])),
        statistics.curve(statistics.outcomes(shuffled, [0.1, 0.2])),
    )


def test_what_falls_in_a_ball_falls_in_every_larger_one() -> None:
    assert robust(budget_rows([[[1, 0, 0], [0, 0, 1]]], [1, 2, 3]), [1, 2, 3]) == [1, 0.5, 0.5, 0]


def test_noise_is_no_ball() -> None:
    assert robust(budget_rows([[[1, 0, 0], [0, 0, 1]]], [1, 2, 3], norm="sigma"), [1, 2, 3]) == [1, 0.5, 1, 0.5]


def test_gaussian_accuracy_is_the_mean_over_draws() -> None:
    rows = budget_rows([[[0, 1, 0, 0], [1, 1, 1, 1]]], [0.5], norm="sigma", draws=4)
    found = statistics.outcomes(rows, [0.5])
    assert found.robust[0, :, 1] == pytest.approx([0.75, 0.0])


def test_a_minimal_attack_succeeds_at_a_strength_if_its_size_does_not_exceed_it() -> None:
    assert robust(minimal_rows([[0.5, 1.0, 1.5, math.inf]]), [0.4, 1.0, 2.0]) == [1, 1, 0.5, 0.25]


def test_an_unsuccessful_minimal_attack_leaves_the_image_standing_however_small_its_last_try() -> None:
    rows = minimal_rows([[0.5, 1.0]])
    rows.loc[0, "success"] = False
    assert robust(rows, [2.0]) == [1, 0.5]


def test_an_image_wrong_from_the_start_is_never_robust_and_has_no_size() -> None:
    rows = budget_rows([[[0, 0], [0, 0]]], [1, 2])
    rows.loc[rows["index"] == 0, "clean_correct"] = False
    found = statistics.outcomes(rows, [1, 2])
    assert found.robust[0, 0].tolist() == [0, 0, 0]
    assert np.isnan(found.sizes[0, 0])
    assert found.sizes[0, 1] == math.inf


def test_a_clean_prediction_made_of_nan_is_not_right() -> None:
    rows = budget_rows([[[0], [0]]], [1]).assign(clean_margin=[math.nan, 1.0])
    assert robust(rows, [1]) == [0.5, 0.5]


@pytest.mark.parametrize("status", [status for status in Status if not status.is_result])
def test_a_failed_row_never_counts_as_robust(status: Status) -> None:
    budget = budget_rows([[[0, 0], [0, 0]]], [1, 2])
    budget.loc[1, "status"] = status.name.lower()  # image 0 at strength 2
    assert robust(budget, [1, 2]) == [1, 1, 0.5]
    minimal = minimal_rows([[math.inf, math.inf]])
    minimal.loc[0, "status"] = status.name.lower()
    assert robust(minimal, [1, 2]) == [1, 0.5, 0.5]
    assert statistics.outcomes(minimal, [1, 2]).sizes[0].tolist() == [0, math.inf]
    assert statistics.is_failed(minimal).tolist() == [True, False]


@pytest.mark.parametrize("status", [status for status in Status if status.is_result])
def test_giving_up_is_a_result(status: Status) -> None:
    rows = budget_rows([[[0], [0]]], [1]).assign(status=status.name.lower())
    assert robust(rows, [1]) == [1, 1]


def test_incomplete_rows_are_refused() -> None:
    rows = budget_rows([[[0, 1], [0, 0]]], [1, 2])
    for broken in (rows.drop(2), pd.concat([rows, rows[:1]]), pd.concat([rows[1:], rows[1:2]]), rows.drop([0, 2])):
        with pytest.raises(ValueError, match=r"rows, not|strengths"):
            statistics.outcomes(broken, [1, 2])
    with pytest.raises(ValueError, match="strengths"):
        statistics.outcomes(rows, [1, 3])


# --- intervals --------------------------------------------------------------------------------------------------------

matrices = nps.arrays(
    np.float64, nps.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.sampled_from([0, 1])
)


@given(matrices)
@settings(max_examples=200, deadline=None)
def test_intervals_hold_the_mean_stay_in_range_and_never_collapse(values: Array) -> None:
    found = statistics.interval(values)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.01


@given(matrices, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_intervals_know_no_order_and_no_sides(values: Array, random: Any) -> None:
    found, mirrored = statistics.interval(values), statistics.interval(1 - values)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-9)
    rows, columns = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = statistics.interval(values[rows][:, columns])
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=1e-9)


@pytest.mark.parametrize("n_fallen", [0, 3, 500, 997, 1000])
def test_one_seed_gives_wilsons_interval_over_images(n_fallen: int) -> None:
    values = np.repeat([0.0, 1.0], [n_fallen, 1000 - n_fallen])[None]
    found = statistics.interval(values)
    wilson = stats.binomtest(1000 - n_fallen, 1000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=2e-3)


def test_seeds_that_differ_on_all_images_alike_give_students_interval() -> None:
    means = np.array([0.4, 0.5, 0.6])
    found = statistics.interval(np.repeat(means[:, None], 50, axis=1))
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=means.std(ddof=1) / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_many_images_do_not_replace_seeds() -> None:
    few, many = (statistics.interval(np.repeat([[0.0], [1.0], [1.0]], n, axis=1)) for n in (10, 10_000))
    assert many.high - many.low == pytest.approx(few.high - few.low)
    assert many.high - many.low > 0.9


def intercept(mean: float, spread: float) -> float:
    """c such that the expectation of expit(c + spread · Z), Z standard normal, is ``mean``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(brentq(lambda c: float(weights @ expit(c + spread * nodes)) / weights.sum() - mean, -50, 50))


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("sd", [(0.3, 2.0), (1.0, 1.0)])
def test_coverage(n_seeds: int, mean: float, sd: tuple[float, float]) -> None:
    """Bernoulli outcomes with logistic normal effects of seed and image: ``sd`` are their standard deviations."""
    rng = np.random.default_rng([n_seeds, round(100 * mean), round(10 * sd[0])])
    centre = intercept(mean, math.hypot(*sd))
    covered = []
    for _ in range(600):
        effects = sd[0] * rng.standard_normal((n_seeds, 1)) + sd[1] * rng.standard_normal((1, 100))
        outcomes = rng.random((n_seeds, 100)) < expit(centre + effects)
        found = statistics.interval(outcomes.astype(np.float64))
        covered.append(found.low <= mean <= found.high)
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("n_seeds", [3, 10])
def test_coverage_of_the_median(n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    covered = []
    for _ in range(400):
        log = (
            0.2 * rng.standard_normal((n_seeds, 1))
            + 0.7 * rng.standard_normal(60)
            + 0.3 * rng.standard_normal((n_seeds, 60))
        )
        sizes = np.where(rng.random(log.shape) < 0.05, np.nan, np.exp(log))
        found = statistics.median_size(statistics.Outcomes(np.array([0.0, 1.0]), np.ones((n_seeds, 60, 2)), sizes))
        covered.append(found.low <= 1 <= found.high)
    assert np.mean(covered) >= 0.93


# --- summaries --------------------------------------------------------------------------------------------------------


def test_area_is_one_for_a_model_that_is_never_fooled_and_half_the_first_step_for_one_that_always_is() -> None:
    assert statistics.area(statistics.outcomes(budget_rows([[[0, 0], [0, 0]]], [1, 4]), [1, 4])).value == 1
    assert statistics.area(statistics.outcomes(budget_rows([[[1, 1], [1, 1]]], [1, 4]), [1, 4])).value == pytest.approx(
        1 / 8
    )


def test_area_of_a_minimal_attack_is_the_mean_size_on_a_fine_grid() -> None:
    sizes, grid = np.random.default_rng(0).uniform(0.1, 2, (3, 40)), np.linspace(0.001, 2, 2000)
    found = statistics.area(statistics.outcomes(minimal_rows(sizes), list(grid)))
    assert found.value == pytest.approx(sizes.mean() / 2, abs=1e-3)
    assert found.low < found.value < found.high


def median_of(sizes: Sequence[Any] | Array) -> Estimate:
    return statistics.median_size(statistics.outcomes(minimal_rows(sizes), [1.0]))


def test_median_size_counts_failures_as_infinite_and_forgets_wrong_images() -> None:
    assert median_of([[1, 2, 3, math.inf, math.inf]]).value == 3
    assert median_of([[1, math.inf, math.inf]]).value == math.inf
    rows = minimal_rows([[1, 2, 3]])
    rows.loc[0, "clean_correct"] = False
    assert statistics.median_size(statistics.outcomes(rows, [1.0])).value == 2
    assert math.isnan(statistics.median_size(statistics.outcomes(rows.assign(clean_correct=False), [1.0])).value)


def test_median_size_under_a_budget_is_a_strength_of_the_grid() -> None:
    rows = budget_rows([[[1, 1, 1], [0, 1, 0], [0, 0, 0]]], [0.1, 0.2, 0.3])
    assert statistics.median_size(statistics.outcomes(rows, [0.1, 0.2, 0.3])).value == 0.2


def test_median_interval_of_one_seed_is_near_that_of_the_order_statistics() -> None:
    sizes = np.sort(np.random.default_rng(0).lognormal(size=400))
    found = median_of([sizes])
    ranks = [int(stats.binom.ppf(level, 400, 0.5)) for level in (0.025, 0.975)]
    assert abs(np.searchsorted(sizes, found.low) - ranks[0]) <= 3
    assert abs(np.searchsorted(sizes, found.high) - ranks[1]) <= 3


def test_found_share_is_over_correct_images() -> None:
    rows = minimal_rows([[1, math.inf, 3, 4]])
    rows.loc[3, "clean_correct"] = False
    assert statistics.found_share(statistics.outcomes(rows, [1.0])) == pytest.approx(2 / 3)


def test_sensitivity_of_a_linear_model_is_its_gain() -> None:
    rows = minimal_rows([[1, 2, 0, 0, 0, 5, 6, 7]])
    rows = rows.assign(output_shift_l2=(3 * rows["size_l2"]).clip(lower=0.1))
    failed = rows["index"] >= 5
    rows = rows.assign(
        output_shift_l2=rows["output_shift_l2"].mask(failed, 1e9), status=rows["status"].mask(failed, "crashed")
    )
    assert statistics.sensitivity(rows) == pytest.approx(3)


def test_sizes_are_taken_at_the_lowest_strength_that_fools() -> None:
    rows = budget_rows([[[0, 1, 1], [0, 0, 1], [0, 0, 0]]], [1, 2, 3])
    rows["size_l2"] = rows["epsilon"] * 10
    assert statistics.mean_sizes(rows[::-1])["size_l2"] == pytest.approx((20 + 30) / 2)


def test_costs_add_up_over_strengths_and_draws() -> None:
    rows = budget_rows([[[0] * 4, [0] * 4]] * 3, [1, 2], norm="sigma", draws=2).assign(n_forwards=5)
    assert statistics.cost_per_image(rows) == {"n_forwards": 20, "n_backwards": 4}
    assert statistics.seconds_per_seed(rows) == pytest.approx(2 * 4 * 0.5)
