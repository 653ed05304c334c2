"""What is known of a net solved with ever finer steps, and the verdict on it; ``pipeline.refining`` finds it out."""

from __future__ import annotations

from dataclasses import dataclass

AGREEMENT = 0.99  # of predictions with the reference's, from which on a net counts as an ODE


@dataclass(frozen=True)
class Refinement:
    """A net solved one way.

    Attributes:
        solver: what it was solved with, in words.
        steps: number of steps; None if each image has its own.
        accuracy: share of right predictions.
        agreement: share of predictions that are the reference's.
        logit_shift: median over images of ‖F − F_reference‖₂ / ‖F_reference‖₂.
    """

    solver: str
    steps: int | None
    accuracy: float
    agreement: float
    logit_shift: float


def is_ode(refinements: list[Refinement]) -> bool:
    """Whether the net as trained predicts what its field's exact flow does."""
    return refinements[0].agreement >= AGREEMENT
