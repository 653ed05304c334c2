"""Tables of the report, the same for the page and for the summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from pipeline import statistics
from pipeline.report.inputs import Benchmark, Result
from pipeline.statistics import Estimate
from pipeline.worst_case import Evidence

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Texts. The first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table without its caption, numbers aligned right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [self.columns, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def architectures(benchmark: Benchmark) -> Table:
    """What was trained, and what it cost: means over seeds."""
    forms = {
        "train_accuracy": "{:.3f}",
        "validation_accuracy": "{:.3f}",
        "test_accuracy": "{:.3f}",
        "generalization_gap": "{:+.3f}",
        "parameters": "{:,.0f}",
        "nfe": "{:.4g}",
        "training_seconds": "{:.0f}",
        "attack_seconds": "{:.0f}",
    }
    variants = benchmark.params.variants
    rows = [
        (
            f"{model} (of {variants[model].of})" if model in variants else model,
            *(form.format(numbers[key]) if key in numbers else NOTHING for key, form in forms.items()),
        )
        for model, numbers in architecture_numbers(benchmark).items()
    ]
    return Table(
        "Accuracy on the three splits, the gap between training and test, size and time: means over the seeds. nfe is "
        "the number of vector-field evaluations of one prediction. A variant has another's weights and no training.",
        ("architecture", "train", "validation", "test", "gap", "parameters", "nfe", "training s", "attacks s"),
        tuple(rows),
    )


def architecture_numbers(benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Architecture to its numbers, means over the seeds; no nfe without an ODE, no training of a variant."""
    found = {}
    for model, by_attack in benchmark.results.items():
        results = list(by_attack.values())
        cost = {"attack_seconds": sum(statistics.seconds_per_seed(result.rows) for result in results)}
        nfe = fmean(float(result.rows["nfe"].mean()) for result in results)
        cost |= {"nfe": nfe} if nfe else {}
        if model not in benchmark.training:
            found[model] = cost
            continue
        reports = benchmark.training[model]
        accuracy = {
            f"{split}_accuracy": fmean(report["accuracy"][split] for report in reports)
            for split in ("train", "validation", "test")
        }
        found[model] = (
            accuracy
            | {
                "generalization_gap": accuracy["train_accuracy"] - accuracy["test_accuracy"],
                "parameters": fmean(report["parameters"] for report in reports),
                "training_seconds": fmean(report["seconds"] for report in reports),
            }
            | cost
        )
    return found


def areas(benchmark: Benchmark) -> Table:
    """Area under the curve, attack × architecture."""
    rows = [
        (name, *(estimate(result.area) for result in benchmark.of_attack(name))) for name in benchmark.params.attacks
    ]
    return Table(
        "Area under the curve of robust accuracy, from strength 0 to the attack's largest, as a share of that range: 1 "
        "is never fooled. In brackets the 95 % interval over seeds and images.",
        ("attack", *benchmark.results),
        tuple(rows),
    )


def worst_cases(by_model: Mapping[str, Evidence]) -> Table:
    """The strongest attack on each image in numbers, strength × architecture."""
    found = next(iter(by_model.values()))
    n_images = found.worst.sizes.shape[1]
    transferred = ", images made on other models" if "transfer" in found.sizes else ""
    caption = (
        "Robust accuracy with its 95 % interval under the strongest of "
        f"{', '.join(found.attacks)}{transferred} on each of the {n_images} images that all of them attacked."
    )
    return _curves(caption, {model: statistics.curve(evidence.worst) for model, evidence in by_model.items()})


def robust_accuracies(results: Sequence[Result]) -> Table:
    """One attack's curve in numbers, strength × architecture."""
    return _curves("Robust accuracy with its 95 % interval.", {result.model: result.curve for result in results})


def _curves(caption: str, by_model: Mapping[str, pd.DataFrame]) -> Table:
    curves = list(by_model.values())
    rows = [
        (
            "0 (clean)" if i == 0 else f"{epsilon:g}",
            *(estimate(Estimate(curve["robust_accuracy"][i], curve["low"][i], curve["high"][i])) for curve in curves),
        )
        for i, epsilon in enumerate(curves[0]["epsilon"])
    ]
    return Table(caption, ("strength", *by_model), tuple(rows))


def details(results: Sequence[Result]) -> Table:
    """One attack in numbers, architecture × measure; measures that mean nothing for it are left out."""
    measures = [measure for measure in _MEASURES if any(measure.text(result) != NOTHING for result in results)]
    rows = [(result.model, *(measure.text(result) for measure in measures)) for result in results]
    notes = "; ".join(f"{measure.name}: {measure.meaning}" for measure in measures)
    return Table(f"{notes}.", ("architecture", *(measure.name for measure in measures)), tuple(rows))


@dataclass(frozen=True)
class _Measure:
    name: str
    meaning: str
    text: Callable[[Result], str]


def estimate(value: Estimate, *, form: Callable[[float], str] = "{:.3f}".format) -> str:
    """``value [low, high]``; a dash for NaN."""
    if math.isnan(value.value):
        return NOTHING
    return f"{form(value.value)} [{form(value.low)}, {form(value.high)}]"


def number(value: float) -> str:
    """Three digits; a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{value:.3g}"


def _median(result: Result) -> str:
    if result.attack.norm == "sigma":
        return NOTHING
    beyond = "∞" if result.minimal else f"> {result.attack.epsilons[-1]:g}"
    return estimate(result.median_size, form=lambda size: f"{size:.3g}" if math.isfinite(size) else beyond)


def _found(result: Result) -> str:
    return f"{statistics.found_share(result.outcomes):.3f}" if result.minimal else NOTHING


def _mean_size(column: str) -> Callable[[Result], str]:
    return lambda result: number(statistics.mean_sizes(result.rows)[column])


def _cost(column: str) -> Callable[[Result], str]:
    def text(result: Result) -> str:
        cost = statistics.cost_per_image(result.rows)[column]
        return f"{cost:,.0f}" if cost else NOTHING

    return text


_MEASURES = (
    _Measure("area", "area under the curve, as a share of the strengths' range", lambda r: estimate(r.area)),
    _Measure(
        "median size",
        "the smallest strength or size that fools half of the correctly classified images (an attack under a budget "
        "knows it only on the grid of its strengths)",
        _median,
    ),
    _Measure("found", "share of the correctly classified images fooled at any size", _found),
    _Measure("‖τ‖_T", "mean largest displacement in pixels, over fooled images", _mean_size("size_deformation")),
    _Measure("‖r‖₂", "mean ℓ2 size of the change, over fooled images", _mean_size("size_l2")),
    _Measure("‖r‖∞", "mean ℓ∞ size, over fooled images", _mean_size("size_linf")),
    _Measure("folded", "mean share of pixel cells on which the field folds", _mean_size("folded_share")),
    _Measure(
        "‖ΔF‖/‖r‖",
        "median change of the logits per unit of ℓ2 change of the image; it grows with the logits' scale",
        lambda r: number(statistics.sensitivity(r.rows)),
    ),
    _Measure("forwards", "model evaluations for an image's whole curve", _cost("n_forwards")),
    _Measure("backwards", "gradients for an image's whole curve", _cost("n_backwards")),
    _Measure("seconds", "wall time of the attack on one trained model", lambda r: f"{_seconds(r):.1f}"),
)


def _seconds(result: Result) -> float:
    return statistics.seconds_per_seed(result.rows)
