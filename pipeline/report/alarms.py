"""The alarms in words and numbers."""

from __future__ import annotations

from pipeline.masking import Alarm
from pipeline.report.inputs import Benchmark
from pipeline.report.tables import NOTHING, Table, number


def raised(benchmark: Benchmark) -> list[str]:
    """A sentence for each alarm that is raised."""
    return [f"Alarm “{alarm.name}” on {alarm.model}: {alarm.evidence}." for alarm in benchmark.alarms if alarm.raised]


def table(benchmark: Benchmark) -> Table:
    """Alarm × model: what was measured, with ⚠ where it is raised."""
    measured = {(alarm.name, alarm.threat, alarm.model): alarm for alarm in benchmark.alarms}
    signs = {(alarm.name, alarm.threat): alarm for alarm in benchmark.alarms if alarm.model in benchmark.results}
    rows = [
        (
            f"{name}, {threat}" if threat else name,
            f"{sign.threshold:g}",
            *(_value(measured.get((name, threat, model))) for model in benchmark.results),
        )
        for (name, threat), sign in signs.items()
    ]
    return Table(
        "What each alarm measured, means over seeds, and the threshold from which on it is raised (⚠). "
        "What is measured and how the thresholds were found is in docs/methodology.md.",
        ("alarm", "threshold", *benchmark.results),
        tuple(rows),
    )


def probed(benchmark: Benchmark) -> Table:
    """PGD with ever more steps, and what the net was probed with."""
    rows = []
    for model, probes in benchmark.probes.items():
        for seed, probe in zip(benchmark.params.seeds, probes, strict=True):
            found = zip(probe.ladder, probe.robust_accuracy, strict=True)
            ladder = ", ".join(f"{steps}: {share:.2f}" for steps, share in found)
            rows.append((model, str(seed), f"{probe.epsilon:g}", ladder))
    n_images = benchmark.params.probe.n_images
    return Table(
        f"Robust accuracy under PGD with ever more steps, on the correctly classified of {n_images} images, at the ℓ∞ "
        "strength that leaves about half of them.",
        ("architecture", "seed", "strength", "steps: robust accuracy"),
        tuple(rows),
    )


def _value(alarm: Alarm | None) -> str:
    if alarm is None:
        return NOTHING
    return f"{number(alarm.value)}{' ⚠' if alarm.raised else ''}"
