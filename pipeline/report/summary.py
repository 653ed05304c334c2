"""The report for machines and for a console: curves.csv, configurations.json, metrics.json, summary.md."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from pipeline import statistics
from pipeline.files import digest
from pipeline.report import alarms, published, refinement, tables, theory, trajectories, transfer, verdicts
from pipeline.report.cautions import cautions
from pipeline.report.curves import THREAT_WORDS
from pipeline.report.inputs import Benchmark, Result
from pipeline.report.tables import Table

QUESTION = "Are Neural ODE image classifiers really harder to fool than CNNs and ResNets?"

HOW_TO_READ = (
    "A line is one architecture: the share of test images that it still classifies correctly when the attack may go as "
    "far as the horizontal axis says; at strength 0 that is its clean accuracy.",
    "A higher line withstood this attack better, which is robustness only if no stronger attack of the same size pulls "
    "it down: a weak attack makes every model look robust.",
    "The bands are 95 % intervals over training seeds and test images; where they overlap, the picture shows no "
    "difference.",
)


def curves(benchmark: Benchmark) -> pd.DataFrame:
    """All curves: model, attack, norm, epsilon, robust_accuracy, low, high, n_images, n_seeds.

    First the worst case of each threat, called ``worst_case_<threat>``. Strength 0 is clean accuracy on the attacked
    images.
    """
    worst = [
        (model, f"worst_case_{threat}", found.norm, statistics.curve(found.worst))
        for threat, by_model in benchmark.evidence.items()
        for model, found in by_model.items()
    ]
    single = [(result.model, result.attack.name, result.attack.norm, result.curve.copy()) for result in benchmark.all()]
    parts = []
    for model, attack, norm, curve in worst + single:
        names = {"model": model, "attack": attack, "norm": norm}
        for position, (column, value) in enumerate(names.items()):
            curve.insert(position, column, value)
        parts.append(curve)
    return pd.concat(parts, ignore_index=True)


def configurations(benchmark: Benchmark) -> dict[str, dict[str, str]]:
    """Model to attack, as curves.csv names them, to the hash of what params.yaml says about that curve.

    Code is left out: two runs are compared to see what a change of code did to an unchanged configuration.
    """
    params = benchmark.params
    common = [asdict(params.dataset), params.seeds, asdict(params.evaluate)]
    single = {}
    for model, results in benchmark.results.items():
        net = [*common, asdict(params.attacked[model]), asdict(params.trained(model))]
        single[model] = {name: digest([*net, asdict(result.attack)]) for name, result in results.items()}
    # Images made on one model are tried on every other, so that a worst case depends on all that make some.
    transfer = [
        asdict(params.transfer),
        {name: [of[name] for of in single.values()] for name in params.transfer.attacks},
    ]
    worst = {
        model: {
            f"worst_case_{threat}": digest([transfer, of_model, threat])
            for threat, by_model in benchmark.evidence.items()
            if model in by_model
        }
        for model, of_model in single.items()
    }
    return {model: worst[model] | of_model for model, of_model in single.items()}


def metrics(benchmark: Benchmark) -> dict[str, Any]:
    """Numbers for ``dvc metrics``: architecture by architecture, then the claims; what is not finite is left out."""
    numbers = tables.architecture_numbers(benchmark)
    by_model = {
        model: _finite(numbers[model]) | {name: _attack_metrics(result) for name, result in results.items()}
        for model, results in benchmark.results.items()
    }
    return by_model | {"claims": verdicts.metrics(benchmark)}


def _attack_metrics(result: Result) -> dict[str, Any]:
    curve = result.curve
    return _finite(
        {
            "area": result.area.value,
            "area_low": result.area.low,
            "area_high": result.area.high,
            "median_size": result.median_size.value if result.attack.norm != "sigma" else math.nan,
            "sensitivity": statistics.sensitivity(result.rows),
            "failed_rows": float(statistics.is_failed(result.rows).sum()),
            "robust_accuracy": {
                f"{epsilon:g}": accuracy
                for epsilon, accuracy in zip(curve["epsilon"], curve["robust_accuracy"], strict=True)
            },
        }
        | statistics.cost_per_image(result.rows)
    )


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if isinstance(value, dict) or math.isfinite(value)}


def summary(benchmark: Benchmark) -> str:
    """The report as Markdown, for a console and for the page of a CI job."""
    parts = [f"# {QUESTION}", describe(benchmark)]
    parts += ["## The verdict", f"**{verdicts.sentence(benchmark)}**"]
    if benchmark.params.claims:
        parts += [_block(verdicts.table(benchmark)), _block(verdicts.matched(benchmark))]
        parts += [f"> ⚠ {warning}" for warning in verdicts.warnings(benchmark)]
    parts += ["## Before believing it"] if cautions(benchmark) else []
    parts += [f"> ⚠ {caution}" for caution in cautions(benchmark)]
    parts += ["## The worst case"]
    for threat, by_model in benchmark.evidence.items():
        table = tables.worst_cases(by_model)
        parts += [f"### {THREAT_WORDS[threat]}", _block(table)]
    parts += ["## Architectures", _block(tables.architectures(benchmark))]
    parts += ["## Area under the curve", _block(tables.areas(benchmark))]
    if benchmark.params.published:
        parts += ["## Published figures", _block(published.table(benchmark))]
    if benchmark.refinements:
        parts += ["## Is it an ODE?", _block(refinement.table(benchmark))]
    parts += ["## Alarms", _block(alarms.table(benchmark)), _block(alarms.probed(benchmark))]
    parts += ["## Transfer"] if benchmark.transfers else []
    parts += [_block(transfer.table(benchmark, attack)) for attack in benchmark.transfers]
    if trajectories.perturbations(benchmark):
        parts += ["## Trajectories", " ".join(trajectories.findings(benchmark)), _block(trajectories.table(benchmark))]
    parts += ["## Do trajectories that cannot cross protect?", *theory.findings(benchmark.theory)]
    parts += ["## Robust accuracy"]
    for name in benchmark.params.attacks:
        parts += [f"### {name}", tables.robust_accuracies(benchmark.of_attack(name)).markdown()]
    parts += ["## How to read a curve", " ".join(HOW_TO_READ)]
    return "\n\n".join(parts) + "\n"


def describe(benchmark: Benchmark) -> str:
    """One sentence: what was measured on what."""
    params = benchmark.params
    counts = sorted({len(result.rows["index"].unique()) for result in benchmark.all()})
    images = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    counted = ((params.models, "architecture"), (params.seeds, "seed"), (params.attacks, "attack"))
    cells = " × ".join(_count(len(things), word) for things, word in counted)
    if params.variants:
        cells = cells.replace(" × ", f" and {_count(len(params.variants), 'variant')} × ", 1)
    return f"{cells} on {images} test images of {params.dataset.kind}."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _block(table: Table) -> str:
    return f"{table.caption}\n\n{table.markdown()}"
