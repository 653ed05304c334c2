"""Pictures of deformations: images that stay alike though far away in ℓp, and what an attack gets for its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import INK, STRENGTH, legend_columns, line_style, styled

WIDTH, HEIGHT = 3.5, 2.6  # inches of a panel
NORMS = {"size_l2": ("l2", "‖r‖₂"), "size_linf": ("linf", "‖r‖∞")}


def alike_attack(benchmark: Benchmark) -> str | None:
    """The attack whose fields are drawn: of those on deformations the last, minimal and fold-free ones first."""
    attacks = [attack for attack in benchmark.params.attacks.values() if attack.norm == "deformation"]
    first = next(iter(benchmark.results.values()))
    ranked = sorted(attacks, key=lambda a: (first[a.name].minimal, getattr(a.config, "fold_free", False)))
    return ranked[-1].name if ranked else None


def alike(benchmark: Benchmark, attack: str) -> Figure:
    """‖r‖₂ and ‖r‖∞ of the deformed images against ‖τ‖_T: a dot is a fooled image."""
    with styled():
        figure = Figure(figsize=(2 * WIDTH, HEIGHT + 0.3), layout="constrained")
        for axes, (column, (norm, label)) in zip(figure.subplots(1, 2), NORMS.items(), strict=True):
            for position, result in enumerate(benchmark.of_attack(attack)):
                rows = result.rows[result.rows["success"] & ~result.rows["inherited"]]
                style = {key: value for key, value in line_style(position).items() if key != "linestyle"}
                axes.scatter(rows["size_deformation"], rows[column], s=8, alpha=0.5, label=result.model, **style)
            _mark_largest_ball(axes, benchmark, norm)
            axes.set_xlabel(STRENGTH["deformation"])
            axes.set_ylabel(f"{label} of the change")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, 2 * WIDTH))
    return figure


def _mark_largest_ball(axes: Axes, benchmark: Benchmark, norm: str) -> None:
    """The largest radius that an attack on this norm was given: what lies above is out of its reach."""
    radii = [attack.epsilons[-1] for attack in benchmark.params.attacks.values() if attack.norm == norm]
    if radii:
        axes.axhline(max(radii), color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate("largest ball attacked", (1, max(radii)), size=7, **place)


def budget_families(benchmark: Benchmark) -> dict[str, list[str]]:
    """Deformation attacks that differ in nothing but their budget, cheapest first, by what they have in common."""
    families: dict[tuple[str, object], list[str]] = {}
    for attack in benchmark.params.attacks.values():
        if attack.norm == "deformation" and getattr(attack.config, "budget", None) is not None:
            families.setdefault((attack.kind, replace(attack.config, budget=None)), []).append(attack.name)
    named: dict[str, list[str]] = {}
    for (kind, _), names in families.items():
        if len(names) > 1:
            words = zip(*(name.split("_") for name in names), strict=False)
            label = "_".join(word for word, *_ in takewhile(lambda w: len(set(w)) == 1, words)) or kind
            label += f" ({len(named) + 1})" if label in named else ""
            named[label] = sorted(names, key=lambda name: benchmark.params.attacks[name].config.budget)
    return named


def common_strengths(benchmark: Benchmark) -> list[float]:
    """Strengths that all of these attacks are read off at, ascending."""
    members = [benchmark.params.attacks[name] for names in budget_families(benchmark).values() for name in names]
    return sorted(set.intersection(*(set(member.epsilons) for member in members))) if members else []


def success_at_cost(benchmark: Benchmark) -> Figure:
    """Share of images fooled within each common strength against the budget: a row per strength, a column per model."""
    families, strengths, models = budget_families(benchmark), common_strengths(benchmark), list(benchmark.results)
    with styled():
        size = (WIDTH * len(models), HEIGHT * len(strengths) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(strengths), len(models), sharex=True, sharey=True, squeeze=False)
        for line, strength in zip(grid, strengths, strict=True):
            for axes, model in zip(line, models, strict=True):
                for position, (label, names) in enumerate(families.items()):
                    results = [benchmark.results[model][name] for name in names]
                    budgets = [result.attack.config.budget for result in results]
                    axes.plot(budgets, _fooled(results, strength), label=label, **line_style(position))
                axes.set_xscale("log")
                axes.set_ylim(-0.02, 1.02)
                axes.set_title(f"{model}, ‖τ‖_T ≤ {strength:g} pixels")
            line[0].set_ylabel("fooled")
        for axes in grid[-1]:
            axes.set_xlabel("forwards + backwards per image")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, 2 * WIDTH))
    return figure


def _fooled(results: Sequence[Result], strength: float) -> list[float]:
    """Share of the correctly classified images that each attack fools within a strength."""
    shares = []
    for result in results:
        robust = result.outcomes.robust.mean((0, 1))
        at = int(np.flatnonzero(result.outcomes.epsilons == strength)[0])
        shares.append(float(1 - robust[at] / robust[0]))
    return shares
