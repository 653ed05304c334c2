"""Pictures of robust accuracy against strength."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import STRENGTH, line_style, styled

WIDTH, HEIGHT = 3.5, 2.6  # inches of a panel
ENTRY = 1.1  # inches of an entry of the legend


def overview(benchmark: Benchmark, *, narrow: bool = False) -> Figure:
    """All attacks, a panel each; all architectures, a line each. ``narrow``: panels below each other, for a phone."""
    panels = [(attack.name, benchmark.of_attack(attack.name)) for attack in benchmark.params.attacks.values()]
    return _panels(panels, by="model", narrow=narrow)


def attack_curve(results: Sequence[Result]) -> Figure:
    """One attack on all architectures."""
    return _panels([(results[0].attack.name, results)], by="model")


def norm_comparison(benchmark: Benchmark, norm: str, *, narrow: bool = False) -> Figure:
    """All attacks that share a norm, a line each; a panel per architecture. Only the lowest line counts."""
    panels = [
        (model, [result for result in results.values() if result.attack.norm == norm])
        for model, results in benchmark.results.items()
    ]
    return _panels(panels, by="attack", narrow=narrow)


def shared_norms(benchmark: Benchmark) -> dict[str, list[str]]:
    """Norms that several attacks bound, with the attacks. Noise is no ball: nothing is the worst case of it."""
    attacks = benchmark.params.attacks.values()
    norms = dict.fromkeys(attack.norm for attack in attacks if attack.norm != "sigma")
    named = {norm: [attack.name for attack in attacks if attack.norm == norm] for norm in norms}
    return {norm: names for norm, names in named.items() if len(names) > 1}


def _panels(panels: Sequence[tuple[str, Sequence[Result]]], *, by: str, narrow: bool = False) -> Figure:
    """A panel for each (title, results); ``by`` says what a line is: ``model`` or ``attack``."""
    n_columns = 1 if narrow else 2 if len(panels) == 4 else min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    with styled():
        width = max(WIDTH * n_columns, 4.5)
        figure = Figure(figsize=(width, HEIGHT * n_rows + 0.3), layout="constrained")
        grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
        for axes in grid[:, 0]:
            axes.set_ylabel("robust accuracy")
        for axes, (title, results) in zip(grid.flat, panels, strict=False):
            _draw(axes, title, results, by=by)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), int(width / ENTRY)))
    return figure


def _draw(axes: Axes, title: str, results: Sequence[Result], *, by: str) -> None:
    for position, result in enumerate(results):
        curve, style = result.curve, line_style(position)
        label = result.model if by == "model" else result.attack.name
        axes.plot(curve["epsilon"], curve["robust_accuracy"], label=label, **style)
        band = (curve["epsilon"], curve["low"], curve["high"])
        axes.fill_between(*band, color=style["color"], alpha=0.09, linewidth=0)
        axes.fill_between(
            *band, facecolor="none", edgecolor=style["color"], linewidth=0.5, linestyle=style["linestyle"], alpha=0.5
        )
    axes.set_title(title)
    axes.set_xlabel(STRENGTH[results[0].attack.norm])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=-0.02 * float(results[0].outcomes.epsilons[-1]))
