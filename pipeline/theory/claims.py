"""What is known of the toys. Points, states and times are listed as they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Line = tuple[float, ...]


@dataclass(frozen=True)
class Ordering:
    """One dimension: the flow of ẋ = a(x - x³) and Euler's method for it, and what each can learn of x → -x.

    Attributes:
        strength: a.
        times: (T,) of ``flow``.
        flow: (N, T), a start each.
        reordered_by_flow: share of the pairs of starts whose order has changed at t = 1.
        steps: numbers of Euler steps.
        euler: (len(steps), N, steps + 1).
        reordered: (len(steps),) the same share.
        enough_steps: from which on no pair can change: steps shorter than 1/L, L the field's Lipschitz constant.
        inputs: (M,) of the regression.
        learned: ``flow`` or ``residual`` to what they make of the inputs, (M,).
        error: mean squared errors of both.
        least_error: of all functions that keep the order: the variance of the inputs.
    """

    strength: float
    times: Line
    flow: tuple[Line, ...]
    reordered_by_flow: float
    steps: tuple[int, ...]
    euler: tuple[tuple[Line, ...], ...]
    reordered: Line
    enough_steps: int
    inputs: Line
    learned: dict[str, Line]
    error: dict[str, float]
    least_error: float


@dataclass(frozen=True)
class Rings:
    """A flow of the plane, with or without one more dimension, trained to tell a disk from the ring around it.

    Attributes:
        n_extra: dimensions added.
        starts: (N, 2), points of both classes.
        is_ring: (N,).
        ends: (N, 2 + n_extra).
        edge: (M, 2 + n_extra), the image of the ring's inner edge, closed.
        normal, offset: the readout says "ring" where normal · end + offset > 0.
        wrong: share of a dense grid of both classes that is classified wrongly.
        margin: the least of right logits over that grid; negative if one point is wrong.
        turns: how often the image of the ring's inner edge winds around that of the centre; None beyond the plane.
    """

    n_extra: int
    starts: tuple[Line, ...]
    is_ring: tuple[bool, ...]
    ends: tuple[Line, ...]
    edge: tuple[Line, ...]
    normal: Line
    offset: float
    wrong: float
    margin: float
    turns: float | None


@dataclass(frozen=True)
class Annuli:
    """Both: ``plane`` and ``augmented``."""

    plane: Rings
    augmented: Rings


@dataclass(frozen=True)
class Expansion:
    """ẋ = a x for several a: distances grow by exp(a), and no trajectories meet.

    Attributes:
        rates: a.
        times: (T,).
        trajectories: (len(rates), N, T).
        growth: (len(rates),) the distance of neighbours at t = 1 over that at 0, as solved.
        exact: exp(a).
        crossings: pairs of neighbours whose order has changed at some time, over all rates.
    """

    rates: Line
    times: Line
    trajectories: tuple[tuple[Line, ...], ...]
    growth: Line
    exact: Line
    crossings: int


@dataclass(frozen=True)
class Theory:
    """All toys."""

    ordering: Ordering
    annuli: Annuli
    expansion: Expansion


def from_json(stored: dict[str, dict[str, Any]]) -> Theory:
    """From the contents of the files, by their names; lists in place of tuples."""
    annuli = Annuli(*(Rings(**stored["annuli"][name]) for name in ("plane", "augmented")))
    return Theory(Ordering(**stored["ordering"]), annuli, Expansion(**stored["expansion"]))
