"""What all pictures share: colours that colour-blind people can tell apart, markers, words for sizes, saving."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
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

# Arrows in the pixels of an image; ``width`` is the caller's, whose pixels have a size.
ARROWS: dict[str, Any] = {
    "angles": "xy",
    "scale_units": "xy",
    "scale": 1,
    "units": "xy",
    "headwidth": 3.5,
    "headlength": 4,
    "headaxislength": 3.5,
}

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


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit beside each other into ``width`` inches, at the common style's font size."""
    entry = 0.6 + 0.075 * max(map(len, labels))  # handle and gaps, and letters
    return max(1, min(len(labels), int(width / entry)))


def line_style(position: int) -> dict[str, Any]:
    """Colour, marker and dash of the line at a position of the legend."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def to_svg(figure: Figure) -> str:
    """The figure on white; equal figures give equal texts."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    figure.set_layout_engine("none")  # laid out by now: the next drawing need not do it again
    # A hundredth of a point is as fine as anybody sees; matplotlib writes micropoints.
    return re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), buffer.getvalue())


def save_png(figure: Figure, path: Path) -> None:
    """The figure on white."""
    with styled():
        figure.savefig(path, facecolor="white")


def save_pdf(figure: Figure, path: Path) -> None:
    """The figure on white, for papers: its letters are embedded; equal figures give equal files."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every glyph that it embeds
    with styled(pdf_fonttype=42):  # many journals refuse type 3
        figure.savefig(path, facecolor="white", metadata={"CreationDate": None})


def inline(svg: str, prefix: str) -> str:
    """An SVG for a page, whose colours of paper, text and grid it takes on.

    Args:
        prefix: keeps the ids of several pictures on a page apart.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("fill: #ffffff", "fill: none").replace(INK, "currentColor").replace(GRID, "var(--grid)")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    prefix = re.sub(r"[^\w-]", "-", prefix)  # it goes into attributes as it is
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
