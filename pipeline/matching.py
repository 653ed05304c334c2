"""Is a comparison fair? What two models differ in besides their architecture. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CLEAN_GAP = 0.02  # accuracies and generalization gaps may differ by this much
PARAMETER_RATIO = 1.1  # the larger over the smaller
STEP_RATIO = 1.01
SECONDS_RATIO = 1.5  # of training: compute, but for what else the machine did
SCALE_RATIO = 1.5  # attacks that follow a loss feel the scale of the logits


@dataclass(frozen=True)
class Standing:
    """One model, means over seeds; a variant has the training of its model.

    Attributes:
        parameters: trained numbers.
        gradient_steps: of training.
        training_seconds: wall time.
        test_accuracy: clean, on the whole test split.
        clean_accuracy: on the attacked images.
        generalization_gap: accuracy on the training split less that on the test split.
        logit_scale: median margin of the correctly classified attacked images, in logits.
    """

    parameters: float
    gradient_steps: float
    training_seconds: float
    test_accuracy: float
    clean_accuracy: float
    generalization_gap: float
    logit_scale: float


def mismatches(one: Standing, other: Standing) -> Iterator[str]:
    """The quantities that differ by more than their tolerance, with both values."""
    ratios = (
        ("parameters", one.parameters, other.parameters, PARAMETER_RATIO, "{:,.0f}"),
        ("gradient steps", one.gradient_steps, other.gradient_steps, STEP_RATIO, "{:,.0f}"),
        ("training seconds", one.training_seconds, other.training_seconds, SECONDS_RATIO, "{:.0f}"),
        ("logit scale", one.logit_scale, other.logit_scale, SCALE_RATIO, "{:.3g}"),
    )
    for name, a, b, tolerance, form in ratios:
        if not (a <= tolerance * b and b <= tolerance * a):  # NaN is no match
            yield f"{name} {form.format(a)} and {form.format(b)}"
    accuracies = (
        ("test accuracy", one.test_accuracy, other.test_accuracy),
        ("clean accuracy of attacked images", one.clean_accuracy, other.clean_accuracy),
        ("generalization gap", one.generalization_gap, other.generalization_gap),
    )
    for name, a, b in accuracies:
        if not abs(a - b) <= CLEAN_GAP:
            yield f"{name} {a:.3f} and {b:.3f}"
