"""What is known of a net's clean and perturbed trajectories; ``pipeline.tracing`` finds it out.

Time is t in [0, 1] for every net: K blocks are K steps of 1/K. State k is that of time times[k]: the stem's output is
state 0, and what the head reads is the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NOISE = "noise"  # a random direction of the ℓ2 size of the first attack's perturbation, image by image


@dataclass(frozen=True)
class Trace:
    """How far perturbed trajectories lie from the clean ones z. Means over images.

    Attributes:
        perturbation: name of the attack, or ``NOISE``.
        epsilon: the attack's strength; None for a minimal attack.
        n_images: images it changed.
        distance: (K + 1,) ‖Δz(t)‖₂ / ‖Δz(0)‖₂.
        relative: (K + 1,) ‖Δz(t)‖₂ / ‖z(t)‖₂, which the state's scale cannot change.
        rate: (K,) d/dt log ‖Δz(t)‖₂, the slope between neighbouring times.
    """

    perturbation: str
    epsilon: float | None
    n_images: int
    distance: tuple[float, ...]
    relative: tuple[float, ...]
    rate: tuple[float, ...]


@dataclass(frozen=True)
class Trajectory:
    """One trained net.

    Attributes:
        times: (K + 1,).
        log_norm: (K,) mean over images of μ₂ = λ_max((J + Jᵀ)/2) at the states 0 to K - 1 of the clean trajectory, J
            the Jacobian of the velocity; what a flow's distances grow by at most, to first order: d/dt log ‖Δz‖₂ ≤ μ₂.
        traces: one for each perturbation.
    """

    times: tuple[float, ...]
    log_norm: tuple[float, ...]
    traces: tuple[Trace, ...]


def from_json(stored: dict[str, Any]) -> Trajectory:
    """The inverse of ``asdict`` after a JSON file, which knows lists and no tuples."""
    traces = [Trace(**_tuples(trace)) for trace in stored["traces"]]
    return Trajectory(**_tuples(stored | {"traces": traces}))


def _tuples(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
