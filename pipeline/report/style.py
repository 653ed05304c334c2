"""What all pictures share: colours that colour-blind people can tell apart, markers, words for sizes, saving."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, GRID = "#1b1f24", "#d0d7de"

# Okabe and Ito (2008) without yellow and black, which paper and ink swallow; markers and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (2, 1)))

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "svg.hashsalt": "ode-robustness",  # equal results are equal files
}

STRENGTH = {
    "sigma": "noise standard deviation σ ([0, 1] pixel units)",
    "linf": "ℓ∞ distance ε ([0, 1] pixel units)",
    "l2": "ℓ2 distance ε ([0, 1] pixel units)",
    "deformation": r"largest displacement $\Vert\tau\Vert_T$ (pixels)",
}


def styled(**more: Any) -> AbstractContextManager[None]:
    """The common style, for drawing and for saving; ``more`` are matplotlib's settings with _ for dots."""
    return mpl.rc_context(_STYLE | {name.replace("_", "."): value for name, value in more.items()})


def line_style(position: int) -> dict[str, Any]:
    """Colour, marker and dash of the line at a position of the legend."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def save(figure: Figure, folder: Path, name: str) -> None:
    """``<name>.svg`` and ``<name>.png`` on white."""
    with styled():
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(folder / f"{name}.png", facecolor="white")


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure for a page, whose colours of text and grid it takes on.

    Args:
        prefix: keeps the ids of several figures on a page apart.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--grid)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A hundredth of a point is as fine as anybody sees; matplotlib writes micropoints.
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
