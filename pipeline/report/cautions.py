"""What a reader must know before believing a curve."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline import statistics
from pipeline.matching import CLEAN_GAP
from pipeline.report import alarms
from pipeline.report.inputs import Benchmark, Result
from pipeline.verdict import VERDICT_SEEDS

STANDING = 0.5  # robust accuracy that an attack leaves at its largest strength, above which it proves nothing
UNFOUND = 0.01  # share of images that an attack without bound may fail to fool before that is suspicious
FOLDED = 0.01  # mean share of folded cells above which fields are no longer smooth deformations


def cautions(benchmark: Benchmark) -> list[str]:
    """Plain sentences, the gravest first."""
    results = benchmark.all()
    return [
        *_failures(results),
        *alarms.raised(benchmark),
        *_seeds(benchmark),
        *_unequal(benchmark),
        *_unfound(results),
        *_standing(results),
        *_folded(results),
    ]


def _failures(results: list[Result]) -> Iterator[str]:
    for result in results:
        failed = result.rows[statistics.is_failed(result.rows)]
        if len(failed):
            kinds = ", ".join(f"{count} {status}" for status, count in failed["status"].value_counts().items())
            yield (
                f"{result.attack.name} on {result.model}: {len(failed)} of {len(result.rows)} rows failed ({kinds}). "
                "They count as not robust."
            )


def _seeds(benchmark: Benchmark) -> Iterator[str]:
    n_seeds = len(benchmark.params.seeds)
    if n_seeds < VERDICT_SEEDS:
        seeds = "1 seed was" if n_seeds == 1 else f"{n_seeds} seeds were"
        blind = " and the intervals know nothing of the chance in training" if n_seeds == 1 else ""
        yield f"Only {seeds} trained: with fewer than {VERDICT_SEEDS} no architecture can be called more robust{blind}."


def _unequal(benchmark: Benchmark) -> Iterator[str]:
    accuracies = {
        model: sum(report["accuracy"]["test"] for report in reports) / len(reports)
        for model, reports in benchmark.training.items()
    }
    worst, best = min(accuracies, key=lambda m: accuracies[m]), max(accuracies, key=lambda m: accuracies[m])
    if accuracies[best] - accuracies[worst] > CLEAN_GAP:
        yield (
            f"Clean accuracies differ: {worst} {accuracies[worst]:.3f}, {best} {accuracies[best]:.3f} on the test "
            "split. Their curves start at different heights."
        )


def _unfound(results: list[Result]) -> Iterator[str]:
    missed: dict[str, list[str]] = {}
    for result in results:
        share = 1 - statistics.found_share(result.outcomes)
        if result.minimal and share > UNFOUND:
            missed.setdefault(result.attack.name, []).append(f"{result.model} {_percent(share)}")
    for attack, shares in missed.items():
        yield (
            f"{attack} found no example of any size for some correctly classified images ({', '.join(shares)}). "
            "Without a bound every image can be fooled: the attack fails there."
        )


def _standing(results: list[Result]) -> Iterator[str]:
    weak: dict[str, list[str]] = {}
    for result in results:
        left = result.curve["robust_accuracy"].iloc[-1]
        if result.attack.norm != "sigma" and left > STANDING:
            weak.setdefault(result.attack.name, []).append(f"{result.model} {left:.2f}")
    for attack, left_over in weak.items():
        yield (
            f"{attack} leaves most images standing at its largest strength ({', '.join(left_over)}): by itself it "
            "cannot tell a robust model from a weak attack."
        )


def _folded(results: list[Result]) -> Iterator[str]:
    folding: dict[str, list[str]] = {}
    for result in results:
        share = statistics.mean_sizes(result.rows)["folded_share"]
        if share > FOLDED:
            folding.setdefault(result.attack.name, []).append(f"{result.model} {_percent(share)}")
    for attack, shares in folding.items():
        yield (
            f"{attack} tears images: its fields fold, in the mean over fooled images, on {', '.join(shares)} of the "
            "pixel cells. These are not smooth deformations."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"
