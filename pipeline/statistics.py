"""Rows to numbers: robust accuracy with its interval, area under the curve, median minimal size, costs.

All functions are pure. ``rows`` are the rows (``pipeline.schema``) of one model and one attack, all seeds; every seed
attacks the same images, which is why chance has two crossed sources: the seeds trained and the images drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special  # scipy.stats takes a second to import

from pipeline.attacks.base import Status

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESULTS = [status.name.lower() for status in Status if status.is_result]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcomes:
    """What became of every image: S seeds × I images.

    Attributes:
        epsilons: (1 + E,), 0 and then the strengths.
        robust: (S, I, 1 + E) in [0, 1], the share of draws in which the image is still classified correctly.
        sizes: (S, I), the smallest strength (minimal attacks: size) that fooled the image; inf if none did, 0 if the
            attack failed on it, NaN if its clean prediction is wrong.
    """

    epsilons: Array
    robust: Array
    sizes: Array


def is_failed(rows: pd.DataFrame) -> pd.Series[bool]:
    """Rows that are no result: the attack crashed, met non-finite numbers, or the judge did not believe it."""
    return ~rows["status"].isin(RESULTS)


def outcomes(rows: pd.DataFrame, epsilons: Sequence[float]) -> Outcomes:
    """Rows as arrays. A failed row never counts as robust.

    A minimal attack's success at a strength is success with a size up to it. Under a budget, an image that fell at a
    lower strength has fallen at all higher ones, whatever the attack achieves there: balls are nested. Gaussian noise
    is no ball, so every strength stands for itself.

    Raises:
        ValueError: a seed × image × draw × strength is missing, there twice, or unknown.
    """
    axes = ["seed", "index", "draw", "epsilon"]
    rows = rows.sort_values(axes)
    minimal, norm = bool(rows["epsilon"].isna().all()), str(rows["norm"].iloc[0])
    shape = [rows[axis].nunique(dropna=False) for axis in axes]
    if len(rows) != math.prod(shape) or rows.duplicated(axes).any():
        raise ValueError(f"{len(rows)} rows, not {' × '.join(map(str, shape))} (seeds, images, draws, strengths)")
    found = sorted(set(rows["epsilon"].tolist()))
    if not minimal and found != list(epsilons):
        raise ValueError(f"strengths {found}, not {list(epsilons)}")

    def cube(values: pd.Series[Any]) -> Array:
        cells: Array = values.to_numpy(np.float64).reshape(shape)
        return cells

    strengths = np.asarray(epsilons, np.float64)
    clean = cube(rows["clean_correct"] & np.isfinite(rows["clean_margin"]))[..., :1] > 0
    failed = is_failed(rows)
    fallen = cube(rows["success"] | failed) > 0
    if minimal:
        size = cube(rows[f"size_{norm}"].where(~failed, 0.0))
        sizes = np.where(fallen, size, np.inf)
        fallen = sizes <= strengths
    else:
        fallen = fallen if norm == "sigma" else np.logical_or.accumulate(fallen, axis=-1)
        sizes = np.where(fallen, strengths, np.inf).min(-1, keepdims=True)
    standing = clean & ~np.concatenate([np.zeros_like(clean), fallen], axis=-1)
    return Outcomes(
        epsilons=np.concatenate([[0.0], strengths]),
        robust=standing.mean(2),
        sizes=np.where(clean, sizes, np.nan).min((2, 3)),
    )


def interval(values: Array) -> Estimate:
    """Mean of values in [0, 1] over crossed seeds and images, (S, I), with its 95 % interval.

    Each source of chance gets its own t quantile, so that three seeds are not mistaken for many because there are many
    images: margin² = t²(S−1) · Var(seed means) / S + t²(I−1) · Var(image means) / I. Both variances contain the
    interaction, which errs on the safe side. The interval is the hull of mean ± margin and of Wilson's interval for
    that margin, which does not collapse at 0 and 1; where nothing varies it is Wilson's for I images.

    Simulated coverage (logistic normal seed and image effects up to 1.5 and 3, S = 3, 5, 10, I = 50, 200, means in
    [.02, .98]): 0.94 at least, 0.98 to 0.99 on average. With one seed it speaks of the images alone.
    """
    return hull(float(values.mean()), _squared_margin(values), values.shape[1])


def _squared_margin(values: Array) -> float:
    seeds, images = values.mean(1), values.mean(0)
    return sum(
        _t_quantile(len(means) - 1) ** 2 * float(means.var(ddof=1)) / len(means)
        for means in (seeds, images)
        if len(means) > 1
    )


@cache
def _t_quantile(degrees: int) -> float:
    return float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2))


def hull(mean: float, squared_margin: float, n_images: int) -> Estimate:
    """Mean ± margin joined with Wilson's interval for that margin; n images where nothing varies."""
    spread = mean * (1 - mean)
    varies = squared_margin > 0 and spread > 0
    ratio = squared_margin / spread if varies else _t_quantile(n_images) ** 2 / n_images  # Wilson's z²/n
    centre = (mean + ratio / 2) / (1 + ratio)
    half = math.sqrt(ratio * (spread + ratio / 4)) / (1 + ratio)
    margin = math.sqrt(squared_margin)
    low, high = min(centre - half, mean - margin), max(centre + half, mean + margin)
    # min and max with the mean: Wilson's bound at 0 and 1 is the mean itself, up to rounding.
    return Estimate(mean, min(max(low, 0.0), mean), max(min(high, 1.0), mean))


def curve(found: Outcomes) -> pd.DataFrame:
    """Robust accuracy against strength: epsilon (from 0), robust_accuracy, low, high, n_images, n_seeds."""
    n_seeds, n_images, _ = found.robust.shape
    points = [interval(found.robust[..., i]) for i in range(len(found.epsilons))]
    return pd.DataFrame(
        {
            "epsilon": found.epsilons,
            "robust_accuracy": [point.value for point in points],
            "low": [point.low for point in points],
            "high": [point.high for point in points],
            "n_images": n_images,
            "n_seeds": n_seeds,
        }
    )


def area(found: Outcomes) -> Estimate:
    """Area under the curve from strength 0 (clean accuracy) to the largest, trapezoidal, divided by that strength."""
    return interval(areas(found))


def areas(found: Outcomes) -> Array:
    """The same for each seed and image, (S, I)."""
    under: Array = np.trapezoid(found.robust, found.epsilons, axis=-1) / found.epsilons[-1]
    return under


def median_size(found: Outcomes) -> Estimate:
    """Median over correctly classified images of the smallest strength or size that fools them, inf for "none found".

    The interval is Woodruff's (1952): the quantiles at the bounds of an interval for the share of images below the
    median, a ratio whose numerator and denominator both vary, linearised. NaN if no image is classified correctly.
    """
    correct = ~np.isnan(found.sizes)
    if not correct.any():
        return Estimate(math.nan, math.nan, math.nan)
    pooled = np.sort(found.sizes[correct])
    median = _quantile(pooled, 0.5)
    below = correct & (found.sizes <= median if math.isfinite(median) else np.isfinite(found.sizes))
    deviation = (below - correct * (below.sum() / correct.sum())) / correct.mean()
    level = hull(0.5, _squared_margin(deviation), found.sizes.shape[1])
    return Estimate(median, _quantile(pooled, level.low), _quantile(pooled, level.high))


def _quantile(ascending: Array, level: float) -> float:
    """The smallest value that at least the share ``level`` of the values does not exceed."""
    return float(ascending[max(math.ceil(level * len(ascending)) - 1, 0)])


def found_share(found: Outcomes) -> float:
    """Share of the correctly classified images that were fooled at any size; NaN if there are none."""
    correct = ~np.isnan(found.sizes)
    return float(np.isfinite(found.sizes[correct]).mean()) if correct.any() else math.nan


def sensitivity(rows: pd.DataFrame) -> float:
    """Median of ‖ΔF‖₂/‖r‖₂ over all attempts that moved the image: how far the logits go per unit of input distance."""
    moved = rows[~is_failed(rows) & (rows["size_l2"] > 0)]
    return float((moved["output_shift_l2"] / moved["size_l2"]).median())


def smallest_falls(rows: pd.DataFrame) -> pd.DataFrame:
    """For each seed, image and draw that was fooled, its row at the lowest strength that fooled it."""
    fooled = rows[rows["success"]].sort_values("epsilon")
    return fooled.drop_duplicates(["seed", "index", "draw"])


def mean_sizes(rows: pd.DataFrame) -> dict[str, float]:
    """Means over ``smallest_falls`` of the size and folding columns; NaN where there is none."""
    falls = smallest_falls(rows)
    return {name: float(falls[name].mean()) for name in ("size_deformation", "size_l2", "size_linf", "folded_share")}


def cost_per_image(rows: pd.DataFrame) -> dict[str, float]:
    """n_forwards and n_backwards of an image's whole curve (all strengths and draws), mean over seeds and images."""
    n = len(rows[["seed", "index"]].drop_duplicates())
    return {name: float(rows[name].sum()) / n for name in ("n_forwards", "n_backwards")}


def seconds_per_seed(rows: pd.DataFrame) -> float:
    """Wall time of the attack on one trained model, mean over seeds."""
    return float(rows["seconds"].sum()) / rows["seed"].nunique()
