"""The alarms: signs that a model looks robust because attacks fail on it. All functions are pure.

Masked gradients pass for robustness (Athalye et al. 2018). Each alarm compares a measurement with a threshold that was
frozen on sound nets and planted defects, and tested on others (``python -m benchmarks.alarms``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.probe import Probe
from pipeline.statistics import Array
from pipeline.worst_case import Evidence

# Frozen: between what the sound nets measured at most and the defects at least (``benchmarks.alarms``); where no defect
# had to raise the alarm, three times the former or what one image more than that makes.
THRESHOLDS = {
    "black box wins": 0.02,
    "transfer wins": 0.02,
    "random": 1e-4,
    "batch": 1e-4,
    "solver": 0.02,
    "adjoint": 5.0,
    "nfe": 1.25,
    "dead gradient": 0.25,
    "no ascent": 0.15,
    "one step": 0.1,
    "more steps": 0.15,
    "unbounded": 0.02,
    "no logits": 0.5,
    "clipped": 0.02,
    "scale": 100.0,
}


@dataclass(frozen=True)
class Alarm:
    """One sign on one model.

    Attributes:
        name: of the sign.
        model: whose.
        value: measured, means over seeds.
        threshold: from which on it is raised.
        evidence: what was measured, in words.
        threat: the threat it concerns; empty where it concerns all.
    """

    name: str
    model: str
    value: float
    threshold: float
    evidence: str
    threat: str = ""

    @property
    def raised(self) -> bool:
        return not self.value < self.threshold  # NaN raises


@dataclass(frozen=True)
class _Sign:
    """A measurement of a probe."""

    name: str
    measure: Callable[[Probe], float | None]
    evidence: str  # with {value}


def _last_drop(probe: Probe) -> float:
    """What the last doubling of the steps, at least, took."""
    accuracies = probe.robust_accuracy
    return accuracies[-2] - accuracies[-1] if len(accuracies) > 1 else 0.0


_SIGNS = (
    _Sign("random", lambda p: p.repeat_shift, "a second call changes logits by {value:.1e} of the median margin"),
    _Sign("batch", lambda p: p.batch_shift, "alone, an image's logits shift by {value:.1e} of the median margin"),
    _Sign("solver", lambda p: p.solver_shift, "a finer solver changes {value:.1%} of the predictions"),
    _Sign("adjoint", lambda p: p.adjoint_angle, "its gradient is {value:.1f}° off that through its solver"),
    _Sign("nfe", lambda p: p.nfe_ratio, "attacked images take {value:.2f} × the evaluations of clean ones"),
    _Sign("dead gradient", lambda p: p.dead_gradients, "{value:.1%} of the gradients promise nothing"),
    _Sign("no ascent", lambda p: p.failed_ascents, "on {value:.1%} of the images the gradient leads nowhere up"),
    _Sign("one step", lambda p: p.one_step, "{value:.1%} fall to one step and withstand many"),
    _Sign("more steps", _last_drop, "the last doubling of PGD's steps takes another {value:.1%}"),
    _Sign("unbounded", lambda p: p.unbounded, "{value:.1%} withstand PGD without a bound"),
    _Sign("no logits", lambda p: p.probabilities, "for {value:.0%} of the images the outputs are probabilities"),
    _Sign("clipped", lambda p: p.clipped, "{value:.1%} of the logits share an extreme value"),
    _Sign("scale", lambda p: p.logit_scale, "the median margin is {value:.3g} logits: cross-entropies saturate"),
)


def alarms(model: str, probes: Sequence[Probe], evidence: Mapping[str, Evidence]) -> list[Alarm]:
    """All alarms of a model, raised or not.

    Args:
        probes: one for each seed.
        evidence: threat to what was found under it.
    """
    return [*_hidden(model, evidence), *_probed(model, probes)]


def leaks(n_leaked: int, n_test: int) -> Alarm:
    """Whether test images are in the training split."""
    evidence = f"{n_leaked} of {n_test} test images are in the training or validation split"
    return Alarm("leak", "data", n_leaked / max(n_test, 1), 1 / max(n_test, 1), evidence)


def _probed(model: str, probes: Sequence[Probe]) -> Iterator[Alarm]:
    for sign in _SIGNS:
        values = [value for probe in probes if (value := sign.measure(probe)) is not None]
        if values:
            mean = float(np.mean(values))
            yield Alarm(sign.name, model, mean, THRESHOLDS[sign.name], sign.evidence.format(value=mean))


def _hidden(model: str, evidence: Mapping[str, Evidence]) -> Iterator[Alarm]:
    """Images that withstand everything that uses gradients, and fall to what does not."""
    for threat, found in evidence.items():
        if "white box" not in found.sizes:
            continue
        for access in ("black box", "transfer"):
            if access in found.sizes:
                name = f"{access} wins"
                share, epsilon = _unseen(found.sizes["white box"], found.sizes[access], found.epsilons)
                words = f"{threat}: up to {share:.1%} of the images withstand all gradients and fall to {access}"
                words += f", at {epsilon:g}" if share else ""
                yield Alarm(name, model, share, THRESHOLDS[name], words, threat)


def _unseen(white: Array, other: Array, epsilons: Sequence[float]) -> tuple[float, float]:
    """The largest share over the strengths, and the strength."""
    shares = [float(((white > epsilon) & (other <= epsilon)).mean()) for epsilon in epsilons]
    best = int(np.argmax(shares))
    return shares[best], epsilons[best]
