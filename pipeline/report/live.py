"""The curves of the page that answer to the reader: what uPlot draws in the place of the static pictures.

uPlot (MIT licence) lies in ``vendor/`` as its authors publish it, because the page must need no network and no package
index has it for Python. Without JavaScript, and on paper, the static pictures stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.report.curves import THREAT_WORDS
from pipeline.report.inputs import Benchmark
from pipeline.report.style import COLOURS, DASHES
from pipeline.report.summary import curves

VENDOR = Path(__file__).parent / "vendor"
WORST = "worst_case_"
STRENGTH = {
    "sigma": "noise σ ([0, 1] pixel units)",
    "linf": "ℓ∞ distance ε ([0, 1] pixel units)",
    "l2": "ℓ2 distance ε ([0, 1] pixel units)",
    "deformation": "largest displacement ‖τ‖_T (pixels)",
}
WIDTH = 2  # pixels of a line


def data(benchmark: Benchmark) -> dict[str, Any]:
    """Architectures with their looks, and for each curve of ``curves.csv`` its title, unit, strengths and values."""
    table = curves(benchmark).round(6)
    found = {}
    for attack, rows in table.groupby("attack", sort=False):
        name = str(attack)
        values = {
            str(model): {column: curve[column].tolist() for column in ("epsilon", "robust_accuracy", "low", "high")}
            for model, curve in rows.groupby("model", sort=False)
        }
        found[name] = {
            "title": THREAT_WORDS[name.removeprefix(WORST)] if name.startswith(WORST) else name,
            "unit": STRENGTH[rows["norm"].iloc[0]],
            "models": values,
        }
    return {"models": [_looks(model, i) for i, model in enumerate(benchmark.results)], "curves": found}


def _looks(model: str, position: int) -> dict[str, Any]:
    """The static pictures' colour and dashes."""
    dashes = DASHES[position % len(DASHES)]
    lengths = [] if dashes == "-" else [WIDTH * length for length in dashes[1]]
    return {"name": model, "colour": COLOURS[position % len(COLOURS)], "dash": lengths, "width": WIDTH}


def library() -> Markup:
    """uPlot's code, with its licence."""
    licence = (VENDOR / "uPlot.LICENSE").read_text(encoding="utf-8")
    return Markup(f"/*\n{licence}*/\n{(VENDOR / 'uPlot.iife.min.js').read_text(encoding='utf-8')}")


def library_style() -> Markup:
    """uPlot's style sheet."""
    return Markup((VENDOR / "uPlot.min.css").read_text(encoding="utf-8"))
