"""What MLflow is told of a benchmark: a record per training, cell, aggregate and architecture, one of the report.

Nothing is computed here that ``pipeline.statistics`` does not compute, and nothing is read but finished outputs.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import statistics
from pipeline.config import AttackEntry, Component, Params
from pipeline.tracking import Chart, Metric, Record, View

logger = logging.getLogger(__name__)

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

DESCRIPTION = """\
Robust accuracy of image classifiers against attack strength. The views under *Saved views* draw it against the true
strength (metric `epsilon`). One run per

- `tags.level = 'architecture'`: all attacks on one architecture, metrics `<attack>/…`;
- `tags.level = 'aggregate'`: architecture × attack, mean over seeds with 95 % intervals;
- `tags.level = 'cell'`: architecture × attack × seed;
- `tags.level = 'training'`: architecture × seed, by epoch;
- `tags.level = 'report'`: the report and its figures.

`tags.current = 'true'` is what `params.yaml` says today; older results keep their runs with `current = 'false'`.
"""


class Benchmark:
    """The finished outputs of a benchmark in the folders of ``root``, as records."""

    def __init__(self, params: Params, card: Mapping[str, Any], *, root: Path = Path()) -> None:
        self.params, self.root = params, root
        self.common = {"dataset": params.dataset.kind, "data_hash": str(card["splits"]["test"]["sha256"])}
        self.colours = {name: {"mlflow.runColor": COLOURS[i % len(COLOURS)]} for i, name in enumerate(params.models)}

    def records(self) -> Iterator[Record]:
        """All records; a cell whose results are missing or older than params.yaml is left out with a line that says so."""
        for model in self.params.models.values():
            yield from self._trainings(model)
            summary: list[Metric] = []
            for attack in self.params.attacks.values():
                rows = self._rows(model, attack)
                if rows is None:
                    logger.warning("%s · %s: no finished results; run `dvc repro`", model.name, attack.name)
                    continue
                for seed in self.params.seeds:
                    yield self._cell(model, attack, seed, rows[rows["seed"] == seed])
                aggregate = self._aggregate(model, attack, rows)
                summary += [Metric(f"{attack.name}/{m.key}", m.value, m.step) for m in aggregate.metrics]
                yield aggregate
            if summary:
                yield self._architecture(model, summary)
        if (self.root / "reports/index.html").is_file():
            yield self._report()

    def _trainings(self, model: Component) -> Iterator[Record]:
        for seed in self.params.seeds:
            path = self.root / "checkpoints" / model.name / f"seed-{seed}.json"
            if not path.is_file():
                logger.warning("%s · training · seed %d: not finished; run `dvc repro`", model.name, seed)
                continue
            report = json.loads(path.read_text(encoding="utf-8"))
            epochs = [Metric(key, value, epoch["epoch"]) for epoch in report["history"] for key, value in epoch.items()]
            accuracies = [Metric(f"{split}_accuracy", value) for split, value in report["accuracy"].items()]
            costs = [Metric("parameters", report["parameters"]), Metric("seconds", report["seconds"])]
            yield Record(
                name=f"{model.name} · training · seed {seed}",
                note=f"Training of **{model.name}** with seed {seed}: {self.params.train.epochs} epochs.",
                tags=self._tags("training", f"train@{model.name}", model, seed=str(seed)),
                params=_flat({"model": _config(model), "train": asdict(self.params.train)}),
                metrics=[*epochs, *(m for m in accuracies if m.key != "validation_accuracy"), *costs],
            )

    def _cell(self, model: Component, attack: AttackEntry, seed: int, rows: pd.DataFrame) -> Record:
        return Record(
            name=f"{model.name} · {attack.name} · seed {seed}",
            note=f"**{model.name}**, seed {seed}, under **{attack.name}** ({_terms(attack, rows)}).",
            tags=self._attack_tags("cell", model, attack, seed=str(seed)),
            params=self._attack_params(model, attack),
            metrics=_metrics(rows, attack, with_interval=False),
        )

    def _aggregate(self, model: Component, attack: AttackEntry, rows: pd.DataFrame) -> Record:
        figures = sorted(self.root.glob(f"reports/figures/{attack.name}.png"))
        return Record(
            name=f"{model.name} · {attack.name}",
            note=(
                f"**{model.name}** under **{attack.name}** ({_terms(attack, rows)}): mean over "
                f"{len(self.params.seeds)} seeds with 95 % intervals."
            ),
            tags=self._attack_tags("aggregate", model, attack),
            params=self._attack_params(model, attack),
            metrics=_metrics(rows, attack, with_interval=True),
            artifacts={"figures": figures} if figures else {},
        )

    def _architecture(self, model: Component, metrics: list[Metric]) -> Record:
        return Record(
            name=model.name,
            note=f"**{model.name}** under every attack: the metrics of its aggregates, named `<attack>/…`.",
            tags=self._tags("architecture", f"attack@{model.name}", model),
            params=_flat({"model": _config(model)}),
            metrics=metrics,
        )

    def _report(self) -> Record:
        folder = self.root / "reports"
        pages = [folder / name for name in ("index.html", "summary.md", "curves.csv", "metrics.json")]
        summary = folder / "summary.md"
        return Record(
            name="report",
            note=summary.read_text(encoding="utf-8") if summary.is_file() else "The report and its figures.",
            tags={**self.common, "level": "report", "dvc_stage": "report"},
            params=_flat({"seeds": self.params.seeds, "dataset": _config(self.params.dataset)}),
            metrics=[],
            artifacts={
                "": [path for path in pages if path.is_file()],
                "figures": sorted(path for path in (folder / "figures").glob("*") if path.suffix in (".png", ".svg")),
            },
        )

    def _rows(self, model: Component, attack: AttackEntry) -> pd.DataFrame | None:
        """The rows of all seeds, or None if they are missing or not those that params.yaml asks for."""
        path = self.root / "results" / model.name / f"{attack.name}.parquet"
        if not path.is_file():
            return None
        rows = pd.read_parquet(path)
        try:
            statistics.outcomes(rows, attack.epsilons)
        except ValueError:
            return None
        return rows if set(rows["seed"]) == set(self.params.seeds) else None

    def _tags(self, level: str, stage: str, model: Component, **more: str) -> dict[str, str]:
        own = {"level": level, "dvc_stage": stage, "model": model.name}
        return self.common | self.colours[model.name] | own | more

    def _attack_tags(self, level: str, model: Component, attack: AttackEntry, **more: str) -> dict[str, str]:
        return self._tags(level, f"attack@{model.name}", model, attack=attack.name, norm=attack.norm, **more)

    def _attack_params(self, model: Component, attack: AttackEntry) -> dict[str, str]:
        own = {"n_images": attack.n_images, "epsilons": attack.epsilons}
        return _flat(
            {
                "model": _config(model),
                "attack": _config(attack) | own,
                "train": asdict(self.params.train),
                "evaluate": asdict(self.params.evaluate),
            }
        )


def views(params: Params) -> list[View]:
    """The pages linked by ``make ui``: all attacks at once, each attack by itself, training."""
    current = "tags.current = 'true' and tags.level = "
    overview = View(
        key="overview",
        name="Robust accuracy: all attacks",
        filter=current + "'architecture'",
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
        filter=current + "'training'",
        charts=tuple(Chart((key,), None) for key in ("validation_accuracy", "validation_loss", "train_loss")),
        columns=("tags.`model`", "tags.`seed`", "metrics.`test_accuracy`"),
    )
    return [overview, *attacks, training]


def _metrics(rows: pd.DataFrame, attack: AttackEntry, *, with_interval: bool) -> list[Metric]:
    """Curves by step, the index of the strength (0: unperturbed), and summaries; what is not finite is left out."""
    found = statistics.outcomes(rows, attack.epsilons)
    points = statistics.curve(found)
    curves = ["epsilon", "robust_accuracy"]
    if with_interval:
        points = points.rename(columns={"low": "robust_accuracy_low", "high": "robust_accuracy_high"})
        curves += ["robust_accuracy_low", "robust_accuracy_high"]
    accuracies = dict(zip(points["epsilon"], points["robust_accuracy"], strict=True))
    summaries: dict[str, float] = {
        "clean_accuracy": accuracies.pop(0.0),
        **{f"accuracy_at_{epsilon:g}": accuracy for epsilon, accuracy in accuracies.items()},
        "area_under_curve": statistics.area(found).value,
        "median_minimal_size": statistics.median_size(found).value,
        "found_share": statistics.found_share(found),
        "output_sensitivity": statistics.sensitivity(rows),
        "failed_rows": float(statistics.is_failed(rows).sum()),
        "seconds_per_seed": statistics.seconds_per_seed(rows),
        **{f"{name}_per_image": value for name, value in statistics.cost_per_image(rows).items()},
    }
    return [
        *(Metric(key, float(value), step) for key in curves for step, value in enumerate(points[key])),
        *(Metric(key, float(value)) for key, value in summaries.items() if math.isfinite(value)),
    ]


def _terms(attack: AttackEntry, rows: pd.DataFrame) -> str:
    return f"{attack.norm}, {rows['index'].nunique()} test images of {rows['dataset'].iloc[0]}"


def _config(component: Component) -> dict[str, Any]:
    return {"kind": component.kind} | asdict(component.config)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; lists as their items."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return flat
