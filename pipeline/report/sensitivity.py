"""How far the outputs go when the inputs move: ‖ΔF‖/‖r‖ and margins against strength, as the talk words robustness."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import STRENGTH, line_style, styled
from pipeline.statistics import is_failed

WIDTH, HEIGHT = 3.5, 2.4  # inches of a panel


def attacks(benchmark: Benchmark) -> list[str]:
    """Attacks that go on at every strength, whether an image has fallen or not: the others stop at the boundary."""
    first = next(iter(benchmark.results.values()))
    return [name for name, result in first.items() if not result.minimal and not result.rows["inherited"].any()]


def picture(benchmark: Benchmark) -> Figure:
    """Medians over images and seeds, with the middle half of them: sensitivity above, margins below."""
    names = attacks(benchmark)
    with styled():
        figure = Figure(figsize=(WIDTH * max(len(names), 2), 2 * HEIGHT + 0.3), layout="constrained")
        above, below = figure.subplots(2, len(names), sharey="row", squeeze=False)
        for column, name in enumerate(names):
            for position, result in enumerate(benchmark.of_attack(name)):
                _line(above[column], _sensitivity(result), result.model, position)
                _line(below[column], _margin(result), result.model, position)
            above[column].set_title(name)
            below[column].axhline(0, color="black", linewidth=0.6)
            below[column].set_xlabel(STRENGTH[benchmark.params.attacks[name].norm])
        above[0].set_ylabel("‖ΔF‖₂ / ‖r‖₂")
        below[0].set_ylabel("margin / clean margin")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _line(axes: Axes, values: pd.Series[float], label: str, position: int) -> None:
    by_strength = values.groupby(level=0)
    style = line_style(position)
    axes.plot(by_strength.median(), label=label, **style)
    quarter, three = by_strength.quantile(0.25), by_strength.quantile(0.75)
    axes.fill_between(quarter.index, quarter, three, color=style["color"], alpha=0.09, linewidth=0)


def _sensitivity(result: Result) -> pd.Series[float]:
    """‖ΔF‖₂/‖r‖₂ of every attempt that moved its image, by strength."""
    rows = result.rows[~is_failed(result.rows) & (result.rows["size_l2"] > 0)].set_index("epsilon")
    return rows["output_shift_l2"] / rows["size_l2"]


def _margin(result: Result) -> pd.Series[float]:
    """Margins of correctly classified images in units of their seed's median clean margin, by strength."""
    rows = result.rows[~is_failed(result.rows) & result.rows["clean_correct"]]
    clean = rows.groupby("seed")["clean_margin"].transform("median")
    return (rows["adv_margin"] / clean).set_axis(pd.Index(rows["epsilon"]))
