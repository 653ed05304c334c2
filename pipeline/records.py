"""What MLflow is told of a benchmark: a record per training, cell, aggregate and architecture, one of the report.

Every number is one of ``pipeline.statistics``; here they get names, steps and tags.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import statistics
from pipeline.config import Params
from pipeline.folders import CHECKPOINTS, REPORTS
from pipeline.registry import Model
from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import line_style
from pipeline.settings import Component
from pipeline.statistics import Outcomes
from pipeline.tracking import Chart, Metric, Record, View

DESCRIPTION = """\
Robust accuracy of image classifiers against attack strength. The saved views draw it against the true strength, which
is the metric `epsilon`; a reload forgets the view, so choose it again. One run per

- `tags.level = 'architecture'`: all attacks on one architecture, metrics `<attack>/…`
- `tags.level = 'aggregate'`: architecture × attack, mean over seeds with 95 % intervals
- `tags.level = 'cell'`: architecture × attack × seed
- `tags.level = 'training'`: architecture × seed, by epoch
- `tags.level = 'report'`: the report and its figures

Runs of one params.yaml share `tags.benchmark`. Under Models there is a version for each architecture, with its weights
and what they withstood in the worst case of each threat.

`tags.current = 'true'` is what `params.yaml` says today; older results keep their runs with `current = 'false'`.
"""


def records(benchmark: Benchmark, root: Path = Path()) -> Iterator[Record]:
    """All records of a benchmark whose files are under ``root``; the report may be missing."""
    reports = root / REPORTS
    for model in benchmark.params.attacked:
        aggregates = []
        if model in benchmark.training:
            for seed, training in zip(benchmark.params.seeds, benchmark.training[model], strict=True):
                yield _training(benchmark, model, seed, training)
        for result in benchmark.results[model].values():
            for seed in benchmark.params.seeds:
                yield _cell(benchmark, result, seed)
            aggregates.append(_aggregate(benchmark, result, reports))
        yield from aggregates
        yield _architecture(benchmark, model, aggregates, root)
    if (reports / "index.html").is_file():
        yield _report(benchmark, reports)


def views(params: Params) -> list[View]:
    """The pages linked by ``make ui``: all attacks at once, each attack by itself, training."""
    current = "tags.current = 'true' and tags.level = "
    overview = View(
        key="overview",
        name="Robust accuracy: all attacks",
        filter=f"{current}'architecture'",
        charts=tuple(Chart((f"{name}/robust_accuracy",), f"{name}/epsilon") for name in params.attacks),
        columns=("tags.`model`",),
    )
    attacks = [
        View(
            key=f"attack-{name}",
            name=f"Robust accuracy: {name} ({attack.norm})",
            filter=f"{current}'aggregate' and tags.attack = '{name}'",
            charts=(
                Chart(("robust_accuracy",), "epsilon"),
                Chart(("robust_accuracy_low", "robust_accuracy_high"), "epsilon"),
            ),
            columns=("tags.`model`", "metrics.`clean_accuracy`", "metrics.`area_under_curve`"),
        )
        for name, attack in params.attacks.items()
    ]
    training = View(
        key="training",
        name="Training",
        filter=f"{current}'training'",
        charts=tuple(Chart((key,), None) for key in ("validation_accuracy", "validation_loss", "train_loss")),
        columns=("tags.`model`", "tags.`seed`", "metrics.`final_test_accuracy`"),
    )
    return [overview, *attacks, training]


def _training(benchmark: Benchmark, model: str, seed: int, training: Mapping[str, Any]) -> Record:
    history = [
        Metric(key, value, int(epoch["epoch"]))
        for epoch in training["history"]
        for key, value in epoch.items()
        if key != "epoch"
    ]
    # "validation_accuracy" is the curve; the value at the chosen epoch has a name of its own.
    accuracies = {f"final_{split}_accuracy": value for split, value in training["accuracy"].items()}
    costs = {"parameters": training["parameters"], "seconds": training["seconds"]}
    params = benchmark.params
    return Record(
        name=f"{model} · training · seed {seed}",
        note=f"Training of **{model}**, seed {seed}, by epoch.",
        tags=_tags(benchmark, "training", model, dvc_stage=f"train@{model}", seed=str(seed)),
        params=flat({"model": _config(params.models[model]), "train": asdict(params.models[model].train)}),
        metrics=history + _summaries(accuracies | costs),
        live=training["key"],
    )


def _cell(benchmark: Benchmark, result: Result, seed: int) -> Record:
    rows = result.rows[result.rows["seed"] == seed]
    found = statistics.outcomes(rows, result.attack.epsilons)
    model, attack = result.model, result.attack.name
    return Record(
        name=f"{model} · {attack} · seed {seed}",
        note=f"**{model}**, seed {seed}, under **{attack}** ({_terms(result)}).",
        tags=_attack_tags(benchmark, "cell", result) | {"seed": str(seed)},
        params=_attack_params(benchmark, result),
        metrics=_curve(statistics.curve(found), "epsilon", "robust_accuracy") + _attack_summaries(rows, found),
    )


def _aggregate(benchmark: Benchmark, result: Result, reports: Path) -> Record:
    model, attack = result.model, result.attack.name
    curve = result.curve.rename(columns={"low": "robust_accuracy_low", "high": "robust_accuracy_high"})
    keys = ("epsilon", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")
    figures = [reports / "figures" / f"{name}.png" for name in (f"curve-{attack}", f"examples-{attack}-{model}")]
    return Record(
        name=f"{model} · {attack}",
        note=(
            f"**{model}** under **{attack}** ({_terms(result)}): mean over {len(benchmark.params.seeds)} seeds "
            "with 95 % intervals."
        ),
        tags=_attack_tags(benchmark, "aggregate", result),
        params=_attack_params(benchmark, result),
        metrics=_curve(curve, *keys) + _attack_summaries(result.rows, result.outcomes),
        artifacts={"figures": [path for path in figures if path.is_file()]},
    )


def _architecture(benchmark: Benchmark, model: str, aggregates: list[Record], root: Path) -> Record:
    return Record(
        name=model,
        note=f"**{model}** under every attack: the metrics of its aggregates, named `<attack>/…`.",
        tags=_tags(benchmark, "architecture", model, dvc_stage=_attack_stage(benchmark, model)),
        params=flat({"model": _config(benchmark.params.attacked[model])}),
        metrics=[
            Metric(f"{aggregate.tags['attack']}/{metric.key}", metric.value, metric.step)
            for aggregate in aggregates
            for metric in aggregate.metrics
        ],
        model=_model(benchmark, model, root / CHECKPOINTS / benchmark.params.trained(model).name),
    )


def _model(benchmark: Benchmark, model: str, checkpoints: Path) -> Model:
    """The version with the weights of all seeds and what they withstood in the worst case of each threat."""
    accuracies = [training["accuracy"]["test"] for training in benchmark.training.get(model, [])]
    numbers = {"test_accuracy": sum(accuracies) / len(accuracies)} if accuracies else {}
    for threat, by_model in benchmark.evidence.items():
        if model in by_model:
            worst = by_model[model].worst
            numbers[f"worst_case_{threat}/area_under_curve"] = statistics.area(worst).value
            curve = statistics.curve(worst)
            for epsilon, accuracy in zip(curve["epsilon"], curve["robust_accuracy"], strict=True):
                numbers[f"worst_case_{threat}/accuracy_at_{epsilon:g}"] = float(accuracy)
    seeds = benchmark.params.seeds
    weights = [checkpoints / f"seed-{seed}.safetensors" for seed in seeds]
    return Model(
        name=model,
        note=f"**{model}**, the weights of seeds {', '.join(map(str, seeds))}.\n\n"
        + "\n".join(f"- {name}: {value:.3f}" for name, value in numbers.items()),
        metrics={name: float(value) for name, value in numbers.items() if math.isfinite(value)},
        weights=[path for path in weights if path.is_file()],
    )


def _report(benchmark: Benchmark, reports: Path) -> Record:
    pages = [path for path in sorted(reports.iterdir()) if path.is_file()]
    return Record(
        name="report",
        note=(reports / "summary.md").read_text(encoding="utf-8"),
        tags=_common_tags(benchmark) | {"level": "report", "dvc_stage": "report"},
        params=flat({"seeds": benchmark.params.seeds, "dataset": _config(benchmark.params.dataset)}),
        metrics=[],
        artifacts={"": pages, "figures": sorted((reports / "figures").iterdir())},
    )


def _common_tags(benchmark: Benchmark) -> dict[str, str]:
    return {"dataset": benchmark.params.dataset.kind, "data_hash": benchmark.card["splits"]["test"]["sha256"]}


def _tags(benchmark: Benchmark, level: str, model: str, **more: str) -> dict[str, str]:
    colour = line_style(list(benchmark.results).index(model))["color"]  # the report's
    return _common_tags(benchmark) | {"level": level, "model": model, "mlflow.runColor": colour} | more


def _attack_stage(benchmark: Benchmark, model: str) -> str:
    """Name of the DVC cell that attacks a model or variant."""
    return f"attack{'_variant' if model in benchmark.params.variants else ''}@{model}"


def _attack_tags(benchmark: Benchmark, level: str, result: Result) -> dict[str, str]:
    more = {
        "dvc_stage": _attack_stage(benchmark, result.model),
        "attack": result.attack.name,
        "norm": result.attack.norm,
    }
    return _tags(benchmark, level, result.model, **more)


def _attack_params(benchmark: Benchmark, result: Result) -> dict[str, str]:
    params, attack = benchmark.params, result.attack
    return flat(
        {
            "model": _config(params.attacked[result.model]),
            "attack": _config(attack) | {"n_images": attack.n_images, "epsilons": attack.epsilons},
            "train": asdict(params.trained(result.model).train),
            "evaluate": asdict(params.evaluate),
        }
    )


def _curve(curve: pd.DataFrame, *keys: str) -> list[Metric]:
    """A metric for each key and strength; the step is the strength's index, 0 for the unperturbed images."""
    return [Metric(key, float(value), step) for key in keys for step, value in enumerate(curve[key])]


def _attack_summaries(rows: pd.DataFrame, found: Outcomes) -> list[Metric]:
    robust = found.robust.mean((0, 1))
    return _summaries(
        {
            "clean_accuracy": robust[0],
            **{f"accuracy_at_{epsilon:g}": robust[i] for i, epsilon in enumerate(found.epsilons) if i > 0},
            "area_under_curve": statistics.area(found).value,
            "median_minimal_size": statistics.median_size(found).value,
            "found_share": statistics.found_share(found),
            "output_sensitivity": statistics.sensitivity(rows),
            "failed_rows": statistics.is_failed(rows).sum(),
            "seconds_per_seed": statistics.seconds_per_seed(rows),
            **{f"{name}_per_image": value for name, value in statistics.cost_per_image(rows).items()},
        }
    )


def _summaries(values: Mapping[str, float]) -> list[Metric]:
    """A metric for each value; what is not finite (no image was fooled) is left out."""
    return [Metric(key, float(value)) for key, value in values.items() if math.isfinite(value)]


def _terms(result: Result) -> str:
    images = result.rows["index"].nunique()
    return f"{result.attack.norm}, {images} test images of {result.rows['dataset'].iloc[0]}"


def _config(component: Component) -> dict[str, Any]:
    return {"kind": component.kind} | asdict(component.config)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys and texts; lists as their items."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found
