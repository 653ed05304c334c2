"""Do trajectories that cannot cross protect? Pictures of the toys, and a sentence from the numbers of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.style import COLOURS, INK, line_style, styled
from pipeline.theory.claims import Annuli, Expansion, Line, Ordering, Rings, Theory

WIDTH, HEIGHT = 3.2, 2.9  # inches of a panel
SIDES = COLOURS[:2]  # of starts below and above 0; of disk and ring
SHOWN_RATES = (-1.0, 1.0, 3.0)


def ordering_picture(toy: Ordering) -> Figure:
    """Trajectories of the flow, of a coarse Euler method, how many pairs each number of steps reorders, and x → -x."""
    coarse = next((k for k, steps in enumerate(toy.steps) if steps > 1), 0)
    with styled():
        figure, panels = _panels(4)
        _lines(panels[0], toy.times, toy.flow)
        panels[0].set_title("flow")
        _lines(panels[1], _grid(toy.steps[coarse]), toy.euler[coarse])
        panels[1].set_title(f"Euler, {toy.steps[coarse]} steps")
        for axes in panels[:2]:
            axes.set_xlabel("time t")
            axes.set_ylabel("state x(t)")
        panels[1].sharey(panels[0])
        panels[2].plot(toy.steps, toy.reordered, label="Euler", **line_style(1))
        panels[2].axhline(toy.reordered_by_flow, label="flow", color=COLOURS[0])
        panels[2].axvline(toy.enough_steps, color=INK, linewidth=0.8, linestyle=":", label="h = 1/L")
        panels[2].set_xscale("log", base=2)
        panels[2].set_xlabel("steps")
        panels[2].set_ylabel("share of pairs reordered")
        panels[2].legend()
        panels[3].plot(toy.inputs, [-x for x in toy.inputs], color=INK, linewidth=0.8, linestyle=":", label="taught")
        for position, (name, outputs) in enumerate(toy.learned.items()):
            panels[3].plot(toy.inputs, outputs, label=name, **line_style(position) | {"marker": None})
        panels[3].set_xlabel("x(0)")
        panels[3].set_ylabel("x(1)")
        panels[3].legend()
    return figure


def annuli_picture(toy: Annuli) -> Figure:
    """Disk and ring before, behind the plane's flow, and behind that with one more dimension."""
    with styled():
        figure, panels = _panels(3)
        xs, ys = zip(*toy.plane.starts, strict=True)
        _points(panels[0], toy.plane, xs, ys)
        panels[0].set_aspect("equal")
        panels[0].set_title("before")
        panels[0].set_xlabel("x₁(0)")
        panels[0].set_ylabel("x₂(0)")
        for axes, rings, title in zip(
            panels[1:], (toy.plane, toy.augmented), ("flow of the plane", "one more dimension"), strict=True
        ):
            edge = _seen_from_the_readout(rings, rings.edge)
            axes.plot(*edge, color=SIDES[1], linewidth=0.6, label="the ring's inner edge")
            _points(axes, rings, *_seen_from_the_readout(rings, rings.ends))
            axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
            axes.set_title(f"{title}: {_percent(rings.wrong)} wrong")
            axes.set_xlabel("along the readout (0: its boundary)")
            axes.set_ylabel("across it")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def expansion_picture(toy: Expansion) -> Figure:
    """Trajectories for some rates, and the growth of distances against the rate."""
    with styled():
        shown = [k for k, rate in enumerate(toy.rates) if rate in SHOWN_RATES]
        figure, panels = _panels(len(shown) + 1)
        for axes, k in zip(panels, shown, strict=False):
            _lines(axes, toy.times, toy.trajectories[k])
            axes.set_title(f"ẋ = a x, a = {toy.rates[k]:g}")
            axes.set_xlabel("time t")
            axes.set_ylabel("state x(t)")
        panels[-1].plot(toy.rates, toy.exact, color=INK, linewidth=0.8, linestyle=":", label="exp(a)")
        panels[-1].plot(toy.rates, toy.growth, label="solved", **line_style(0) | {"linestyle": "none"})
        panels[-1].set_yscale("log")
        panels[-1].set_xlabel("rate a (1 / t)")
        panels[-1].set_ylabel("distance at 1 / distance at 0")
        panels[-1].legend()
    return figure


def findings(theory: Theory) -> tuple[str, str, str]:
    """What the toys show, in the order of the pictures."""
    ordering, expansion = theory.ordering, theory.expansion
    plane, augmented = theory.annuli.plane, theory.annuli.augmented
    share, steps = max(zip(ordering.reordered, ordering.steps, strict=True))
    factors = [f"× {one:.3g} (a = {rate:g})" for rate, one in zip(expansion.rates, expansion.growth, strict=True)]
    return (
        f"On a line: the flow of ẋ = {ordering.strength:g} (x - x³) changes the order of "
        f"{_percent(ordering.reordered_by_flow)} of the pairs of starts, {steps} Euler step{'s' * (steps != 1)} that "
        f"of {_percent(share)}, and {ordering.enough_steps} or more can change none. Taught x → -x, a flow ends at a "
        f"mean squared error of {ordering.error['flow']:.3g} (nothing that keeps the order has less than "
        f"{ordering.least_error:.3g}), one residual block at {ordering.error['residual']:.2g}.",
        f"In the plane: a trained flow classifies {_percent(plane.wrong)} of the points of a disk and the ring around "
        f"it wrongly; the ring's image still goes round the disk's ({abs(plane.turns or 0):.2f} times), so no linear "
        f"readout parts them. With one dimension more, {_percent(augmented.wrong)} are wrong. What cannot cross is a "
        "limit on what can be learned.",
        f"Expansion: of the trajectories of ẋ = a x {expansion.crossings or 'none'} cross, and their distances become "
        f"{_list(factors)}. That they do not cross bounds no distance; the logarithmic norm does.",
    )


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH * number, HEIGHT), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _lines(axes: Axes, times: Sequence[float], states: Sequence[Sequence[float]]) -> None:
    """Trajectories, coloured by the sign of their starts."""
    for line in states:
        axes.plot(times, line, color=SIDES[line[0] > 0], linewidth=0.9)


def _grid(steps: int) -> list[float]:
    return [k / steps for k in range(steps + 1)]


def _points(axes: Axes, rings: Rings, xs: Sequence[float], ys: Sequence[float]) -> None:
    for is_ring, (label, marker) in enumerate((("disk", "."), ("ring", "x"))):
        chosen = [k for k, ring in enumerate(rings.is_ring) if ring == is_ring]
        style: dict[str, Any] = {"color": SIDES[is_ring], "linestyle": "none", "marker": marker, "markersize": 4}
        axes.plot([xs[k] for k in chosen], [ys[k] for k in chosen], label=label, **style)


def _seen_from_the_readout(rings: Rings, ends: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Coordinates of ends along the readout's normal, 0 on its boundary, and along one direction within it."""
    length = sum(value**2 for value in rings.normal) ** 0.5
    normal = [value / length for value in rings.normal]
    # The plane's axis that lies farthest from the normal, made orthogonal to it.
    axis = min(range(2), key=lambda k: abs(normal[k]))
    side = [float(k == axis) - normal[axis] * value for k, value in enumerate(normal)]
    norm = sum(value**2 for value in side) ** 0.5

    def along(direction: Sequence[float]) -> list[float]:
        return [sum(a * b for a, b in zip(end, direction, strict=True)) for end in ends]

    return [value + rings.offset / length for value in along(normal)], [value / norm for value in along(side)]


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _list(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
