"""Is it an ODE? The picture and the table of nets solved with ever finer steps."""

from __future__ import annotations

from statistics import fmean

from matplotlib.figure import Figure

from pipeline.refinement import Refinement, is_ode
from pipeline.report.inputs import Benchmark
from pipeline.report.style import line_style, styled
from pipeline.report.tables import Table

WIDTH, HEIGHT = 3.2, 2.6  # inches of a panel
MEASURES = {
    "accuracy": "accuracy",
    "agreement": "predictions as the flow's",
    "logit_shift": "distance of the logits",
}


def picture(benchmark: Benchmark) -> Figure:
    """Accuracy, agreement with the flow's predictions and distance of the logits against steps; means over seeds."""
    with styled():
        figure = Figure(figsize=(len(MEASURES) * WIDTH, HEIGHT + 0.3), layout="constrained")
        panels = figure.subplots(1, len(MEASURES))
        for axes, (name, label) in zip(panels, MEASURES.items(), strict=True):
            for position, model in enumerate(benchmark.params.models):
                if model in benchmark.refinements:
                    steps, values = _line(benchmark.refinements[model], name)
                    axes.plot(steps, values, label=model, **line_style(position))
            axes.set_xscale("log", base=2)
            axes.set_xlabel("steps (the first is the net as trained)")
            axes.set_ylabel(label)
        panels[-1].set_yscale("log")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _line(seeds: list[list[Refinement]], name: str) -> tuple[list[int | None], list[float]]:
    """Steps, and the mean of a measure over seeds at each of them; without the reference, which has no steps."""
    fixed = list(zip(*seeds, strict=True))[:-1]
    values = [fmean(getattr(one, name) for one in of_seeds) for of_seeds in fixed]
    return [of_seeds[0].steps for of_seeds in fixed], values


def table(benchmark: Benchmark) -> Table:
    """Net × what its predictions become, with the verdict."""
    rows = []
    for model, seeds in benchmark.refinements.items():
        native, finest, reference = ([seed[position] for seed in seeds] for position in (0, -2, -1))
        n_odes = sum(map(is_ode, seeds))
        rows.append(
            (
                model,
                native[0].solver,
                *(f"{fmean(one.accuracy for one in group):.3f}" for group in (native, finest, reference)),
                f"{fmean(one.agreement for one in native):.3f}",
                _verdict(n_odes, len(seeds)),
            )
        )
    return Table(
        "Accuracy of the same weights with the steps of training, with eight times as many, and with each image's own "
        "steps at a tight tolerance (the flow itself), and the share of predictions that are the flow's: means over "
        "seeds. A net is an ODE if that share is at least 99 % (after Ott et al. 2021).",
        ("architecture", "trained with", "accuracy", "with 8 × the steps", "of the flow", "agreement", "verdict"),
        tuple(rows),
    )


def _verdict(n_odes: int, n_seeds: int) -> str:
    if n_odes == n_seeds:
        return "is an ODE"
    return "is not an ODE" if n_odes == 0 else f"is an ODE for {n_odes} of {n_seeds} seeds"
