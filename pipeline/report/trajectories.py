"""How far attacked trajectories come from the clean ones inside the nets: the picture, the table, what they say."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.inputs import Benchmark
from pipeline.report.style import line_style, styled
from pipeline.report.tables import NOTHING, Table
from pipeline.trajectory import NOISE, Trace, Trajectory

WIDTH, HEIGHT = 3.3, 2.2  # inches of a panel
MEASURES = {
    "distance": "‖Δz(t)‖₂ / ‖Δz(0)‖₂",
    "relative": "‖Δz(t)‖₂ / ‖z(t)‖₂",
    "rate": "d/dt log ‖Δz(t)‖₂\n(thin: μ₂)",
}


def picture(benchmark: Benchmark) -> Figure:
    """A column per perturbation, a row per measure, a line per architecture; means over images and seeds."""
    names = perturbations(benchmark)
    with styled():
        figure = Figure(figsize=(WIDTH * len(names), HEIGHT * len(MEASURES) + 0.3), layout="constrained")
        grid = figure.subplots(len(MEASURES), len(names), sharex=True, sharey="row", squeeze=False)
        for column, (name, words) in enumerate(names.items()):
            grid[0, column].set_title(words)
            grid[-1, column].set_xlabel("time t, depth k / K")
            for row, measure in enumerate(MEASURES):
                _draw(grid[row, column], benchmark, name, measure)
        for axes, label in zip(grid[:, 0], MEASURES.values(), strict=True):
            axes.set_ylabel(label)
        for axes in grid[0]:
            axes.set_yscale("log")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw(axes: Axes, benchmark: Benchmark, name: str, measure: str) -> None:
    for position, model in enumerate(benchmark.params.models):
        seeds = benchmark.trajectories.get(model, [])
        traces = _traces(seeds, name)
        if not traces:
            continue
        times, style = seeds[0].times, line_style(position)
        values = [fmean(at) for at in zip(*(getattr(trace, measure) for trace in traces), strict=True)]
        if measure == "rate":  # a step's slope stands at its middle, μ₂ where it was taken
            axes.plot([(s + t) / 2 for s, t in pairwise(times)], values, label=model, **style)
            axes.plot(times[:-1], _log_norms(seeds), **style | {"marker": None, "linewidth": 0.7})
        else:
            axes.plot(times, values, label=model, **style)


def table(benchmark: Benchmark) -> Table:
    """Architecture × what becomes of each perturbation, with the largest logarithmic norm."""
    names = perturbations(benchmark)
    rows = [
        (
            model,
            str(len(seeds[0].times) - 1),
            *(_change(_traces(seeds, name)) for name in names),
            f"{max(_log_norms(seeds)):.2f}",
        )
        for model, seeds in benchmark.trajectories.items()
    ]
    return Table(
        "‖Δz(1)‖₂ / ‖Δz(0)‖₂, the distance of perturbed and clean trajectory where the head reads it over that where "
        "the stem leaves it, and in brackets what it is of the state's norm at either place; last the largest over "
        "time of the logarithmic norm μ₂ of the velocity, per unit of t: means over images and seeds.",
        ("architecture", "steps", *names.values(), "largest μ₂"),
        tuple(rows),
    )


def findings(benchmark: Benchmark) -> list[str]:
    """What the numbers say, in sentences."""
    said = [_spread(benchmark, name, words) for name, words in perturbations(benchmark).items()]
    for model, seeds in benchmark.trajectories.items():
        factors = [
            _mean(traces, "distance")[-1]
            for name in perturbations(benchmark)
            if name != NOISE and (traces := _traces(seeds, name))
        ]
        if getattr(benchmark.params.models[model].config, "solver", None) is None or not factors:
            continue
        grows = f"yet attacked ones end × {max(factors):.3g} as far from the clean ones as they begin"
        keeps = f"and attacked ones end no farther from the clean ones than they begin (× {max(factors):.3g})"
        largest = max(_log_norms(seeds))
        said.append(
            f"As an ODE, {model} has trajectories that cannot cross, {grows if max(factors) > 1 else keeps}; its "
            f"largest μ₂ is {largest:.2f}, which {'allows' if largest > 0 else 'forbids'} growth."
        )
    return said


def _spread(benchmark: Benchmark, name: str, words: str) -> str:
    by_model = {model: traces for model, seeds in benchmark.trajectories.items() if (traces := _traces(seeds, name))}
    growth = {model: _mean(traces, "distance")[-1] for model, traces in by_model.items()}
    share = {model: _mean(traces, "relative") for model, traces in by_model.items()}
    least, most = min(growth, key=growth.__getitem__), max(growth, key=growth.__getitem__)
    grown = sum(one[-1] > one[0] for one in share.values())
    factors = f"by × {growth[least]:.3g} in {least}"
    if growth[least] < growth[most]:
        factors += f" to × {growth[most]:.3g} in {most}"
    return (
        f"From stem to head the distance made by {words} changes {factors}; measured in the state's own norm, it grows "
        f"in {grown} of {len(share)} architectures."
    )


def perturbations(benchmark: Benchmark) -> dict[str, str]:
    """What was followed, with its strength in words; noise last."""
    traces = [trace for seeds in benchmark.trajectories.values() for seed in seeds for trace in seed.traces]
    found = {trace.perturbation: _words(benchmark, trace) for trace in traces}
    attacks = [name for name in found if name != NOISE]
    return {name: found[name] for name in attacks} | (
        {NOISE: f"noise, ℓ2 size of {attacks[0]}"} if NOISE in found and attacks else {}
    )


def _words(benchmark: Benchmark, trace: Trace) -> str:
    attack = benchmark.params.attacks.get(trace.perturbation)
    pixels = " px" if attack is not None and attack.norm == "deformation" else ""
    return trace.perturbation if trace.epsilon is None else f"{trace.perturbation}, ε = {trace.epsilon:g}{pixels}"


def _traces(seeds: list[Trajectory], name: str) -> list[Trace]:
    return [trace for seed in seeds for trace in seed.traces if trace.perturbation == name]


def _mean(traces: list[Trace], measure: str) -> list[float]:
    """Over seeds, at every time."""
    return [fmean(at) for at in zip(*(getattr(trace, measure) for trace in traces), strict=True)]


def _log_norms(seeds: list[Trajectory]) -> list[float]:
    return [fmean(at) for at in zip(*(seed.log_norm for seed in seeds), strict=True)]


def _change(traces: list[Trace]) -> str:
    if not traces:
        return NOTHING
    relative = _mean(traces, "relative")
    return f"× {_mean(traces, 'distance')[-1]:.3g} ({relative[0]:.3f} → {relative[-1]:.3f})"
