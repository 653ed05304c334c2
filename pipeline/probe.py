"""What is measured of a net to tell whether its gradients can be believed (``pipeline.probing`` measures it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measurements of one trained net on the first test images. Shares are of the correctly classified ones.

    Attributes:
        repeat_shift: largest change of a logit between two calls on the same batch, in units of ``logit_scale``.
        batch_shift: largest change of a logit when an image stands alone instead of in a batch, in the same units.
        solver_shift: share of predictions that change when the ODE is solved more finely; None without a solver.
        adjoint_angle: median angle in degrees between the gradient that attacks get and that of backpropagation through
            the same solver; None without a solver.
        dead_gradients: share whose gradient is not finite, or whose ℓ1 norm promises less than ``TINY`` of the margin
            even for a change of the whole box.
        failed_ascents: share whose loss does not rise along its gradient.
        unbounded: share left by PGD that may change every pixel as it likes.
        epsilon: ℓ∞ strength of the next four.
        one_step: share that falls to FGSM and stands against PGD with the most steps.
        ladder: numbers of steps, ascending.
        robust_accuracy: under PGD with each of them.
        nfe_ratio: vector-field evaluations for attacked images, in units of those for clean ones; None without an ODE.
        probabilities: share of images whose outputs are probabilities or their logarithms, and no logits.
        clipped: share of logits that share the largest or the smallest value.
        logit_scale: median margin, in logits.
    """

    repeat_shift: float
    batch_shift: float
    solver_shift: float | None
    adjoint_angle: float | None
    dead_gradients: float
    failed_ascents: float
    unbounded: float
    epsilon: float
    one_step: float
    ladder: list[int]
    robust_accuracy: list[float]
    nfe_ratio: float | None
    probabilities: float
    clipped: float
    logit_scale: float
