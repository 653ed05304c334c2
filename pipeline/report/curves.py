"""Pictures of robust accuracy against strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import STRENGTH, legend_columns, line_style, styled
from pipeline.statistics import curve

WIDTH, HEIGHT = 3.5, 2.6  # inches of a panel
THREAT_WORDS = {
    "linf": "pixels changed, ℓ∞",
    "l2": "pixels changed, ℓ2",
    "deformation": "deformed, all fields",
    "deformation_fold_free": "deformed, fold-free",
}


@dataclass(frozen=True)
class Line:
    """A curve (``pipeline.statistics.curve``) with its entry in the legend and the norm of its strengths."""

    label: str
    norm: str
    curve: pd.DataFrame


Panel = tuple[str, Sequence[Line]]  # a title and its lines


def worst_cases(benchmark: Benchmark, *, narrow: bool = False) -> Figure:
    """The strongest attack on each image: a panel per threat, a line per architecture."""
    panels = [
        (
            THREAT_WORDS[threat],
            [Line(model, found.norm, curve(found.worst)) for model, found in by_model.items()],
        )
        for threat, by_model in benchmark.evidence.items()
    ]
    return _panels(panels, narrow=narrow)


def overview(benchmark: Benchmark, *, narrow: bool = False) -> Figure:
    """All attacks, a panel each; all architectures, a line each. ``narrow``: panels below each other, for a phone."""
    panels = [(attack, _by_model(benchmark.of_attack(attack))) for attack in benchmark.params.attacks]
    return _panels(panels, narrow=narrow)


def attack_curve(results: Sequence[Result]) -> Figure:
    """One attack on all architectures."""
    return _panels([(results[0].attack.name, _by_model(results))])


def norm_comparison(benchmark: Benchmark, norm: str, *, narrow: bool = False) -> Figure:
    """All attacks that share a norm, a line each; a panel per architecture. Only the lowest line counts."""
    panels = [
        (model, [Line(name, norm, result.curve) for name, result in results.items() if result.attack.norm == norm])
        for model, results in benchmark.results.items()
    ]
    return _panels(panels, narrow=narrow)


def _by_model(results: Sequence[Result]) -> list[Line]:
    return [Line(result.model, result.attack.norm, result.curve) for result in results]


def shared_norms(benchmark: Benchmark) -> dict[str, list[str]]:
    """Norms that several attacks bound, with the attacks. Noise is no ball: nothing is the worst case of it."""
    attacks = benchmark.params.attacks.values()
    norms = dict.fromkeys(attack.norm for attack in attacks if attack.norm != "sigma")
    named = {norm: [attack.name for attack in attacks if attack.norm == norm] for norm in norms}
    return {norm: names for norm, names in named.items() if len(names) > 1}


def _panels(panels: Sequence[Panel], *, narrow: bool = False) -> Figure:
    n_columns = 1 if narrow else 2 if len(panels) == 4 else min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    with styled():
        width = max(WIDTH * n_columns, 4.5)
        figure = Figure(figsize=(width, HEIGHT * n_rows + 0.3), layout="constrained")
        grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
        for axes in grid[:, 0]:
            axes.set_ylabel("robust accuracy")
        for axes, (title, lines) in zip(grid.flat, panels, strict=False):
            axes.set_title(title)
            _draw(axes, lines)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, width))
    return figure


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    for position, line in enumerate(lines):
        points, style = line.curve, line_style(position)
        axes.plot(points["epsilon"], points["robust_accuracy"], label=line.label, **style)
        band = (points["epsilon"], points["low"], points["high"])
        axes.fill_between(*band, color=style["color"], alpha=0.09, linewidth=0)
        axes.fill_between(
            *band, facecolor="none", edgecolor=style["color"], linewidth=0.5, linestyle=style["linestyle"], alpha=0.5
        )
    axes.set_xlabel(STRENGTH[lines[0].norm])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=-0.02 * float(lines[0].curve["epsilon"].iloc[-1]))
