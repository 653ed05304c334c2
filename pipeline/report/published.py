"""Figures of papers beside ours: does this benchmark find what others found on the same nets?"""

from __future__ import annotations

import numpy as np

from pipeline.config import Published
from pipeline.report.inputs import Benchmark, Result
from pipeline.report.tables import NOTHING, Table

WORDS = {
    "robust_accuracy": "robust accuracy at {:g}",
    "success": "success within {:g}, of the correctly classified",
    "mean_size": "mean size of what fools within {:g}",
}


def table(benchmark: Benchmark) -> Table:
    """Figure × where it is from, theirs, ours, and what differs; a recalled figure is marked."""
    rows = []
    for figure in benchmark.params.published.values():
        what = WORDS[figure.measure].format(figure.at) if figure.at else "clean accuracy"
        rows.append(
            (
                f"{figure.model}, {figure.attack}: {what}",
                f"{figure.value:.3f}{'' if figure.mark == 'seen' else ' (recalled)'}",
                _ours(figure, benchmark.results[figure.model][figure.attack]),
                figure.source,
                figure.differences,
            )
        )
    return Table(
        "Figures of papers beside ours. Those marked are recalled and were not verified in the source.",
        ("what", "published", "ours", "source", "differences"),
        tuple(rows),
    )


def _ours(figure: Published, result: Result) -> str:
    if figure.measure == "robust_accuracy":
        curve = result.curve
        (at,) = curve[curve["epsilon"] == figure.at].itertuples()
        return f"{at.robust_accuracy:.3f} [{at.low:.3f}, {at.high:.3f}]"
    sizes = result.outcomes.sizes[~np.isnan(result.outcomes.sizes)]  # of the correctly classified
    fooled = sizes <= figure.at
    if figure.measure == "success":
        return f"{fooled.mean():.3f}" if len(sizes) else NOTHING
    return f"{sizes[fooled].mean():.3f}" if fooled.any() else NOTHING
