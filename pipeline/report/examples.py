"""Pictures of adversarial examples: the first images of the test split by index, never chosen by their looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.folders import examples_prefix
from pipeline.report.inputs import Images, Result
from pipeline.report.style import ARROWS, COLOURS, INK, styled
from pipeline.statistics import RESULTS

Picture = npt.NDArray[np.float32]
SIZE = {
    "sigma": ("epsilon", "σ {:.2g}"),
    "linf": ("size_linf", "‖r‖∞ {:.2g}"),
    "l2": ("size_l2", "‖r‖₂ {:.2f}"),
    "deformation": ("size_deformation", "‖τ‖ {:.2f} px"),
}


FOOLED, WITHSTOOD = COLOURS[1], COLOURS[0]
SHORT = 2.5  # pixels: a field whose longest arrow is shorter is drawn magnified
ROWS = (0.0, 1.32, 2.4)  # where the rows of a picture begin, in heights of an image


@dataclass(frozen=True)
class Example:
    """An image before and after, what the model says to both, and the colour that tells how it ended.

    ``original`` and ``adversarial`` are (C, H, W), ``field`` is (H, W, 2) or None.
    """

    original: Picture
    adversarial: Picture
    field: Picture | None
    before: str
    after: str
    frame: str


def examples(result: Result, images: Picture, *, seed: int) -> list[Example]:
    """One for each of ``images``: at the lowest strength that fooled it, else at the highest that was tried.

    Images that were not kept are left out.
    """
    rows = result.rows[(result.rows["seed"] == seed) & (result.rows["draw"] == 0)]
    found = []
    for index, original in enumerate(images):
        attempts = rows[rows["index"] == index].sort_values("epsilon")
        if attempts.empty:
            continue
        fooled = attempts[attempts["success"]]
        row = fooled.iloc[0] if len(fooled) else attempts.iloc[-1]
        kept = _kept(result.images, row)
        if kept is not None:
            found.append(Example(original, *kept, _before(row), _after(row, result), _frame(row)))
    return found


def _kept(images: Images, row: pd.Series[Any]) -> tuple[Picture, Picture | None] | None:
    """The adversarial image and field that a row was judged on."""
    prefix = examples_prefix(int(row["seed"]), None if pd.isna(row["epsilon"]) else float(row["epsilon"]))
    position = np.flatnonzero(images.get(f"{prefix}/index", np.empty(0)) == row["index"])
    if not len(position):
        return None
    field = images.get(f"{prefix}/deformation")
    return images[f"{prefix}/adv_inputs"][position[0]], None if field is None else field[position[0]]


def _before(row: pd.Series[Any]) -> str:
    return f"a {row['label']}, seen as {row['clean_pred']}"


def _after(row: pd.Series[Any], result: Result) -> str:
    if row["status"] not in RESULTS:
        return f"{row['status']}:\nno result"
    if not row["clean_correct"]:
        return "wrong before\nthe attack"
    column, form = SIZE[result.attack.norm]
    return f"seen as {row['adv_pred']}\n{form.format(row[column])}"


def _frame(row: pd.Series[Any]) -> str:
    if row["success"]:
        return FOOLED
    return WITHSTOOD if row["clean_correct"] and row["status"] in RESULTS else INK


def figure_of(found: list[Example]) -> Figure:
    """Original, adversarial image, and the displacement or the difference, a column for each example.

    The frame of the adversarial image tells ``FOOLED`` from ``WITHSTOOD``.
    """
    height, width = found[0].original.shape[-2:]
    right, bottom = 1.1 * width * max(len(found), 3), (ROWS[-1] + 1.02) * height
    left, top = -0.2 * width, -0.18 * height
    with styled():
        figure = Figure(figsize=((right - left) / width, (bottom - top) / height))
        # One pair of axes for all images: a pair each would take seconds to lay out.
        axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
        axes.set_axis_off()
        largest = max(float(np.abs(e.adversarial - e.original).max()) for e in found)
        for position, example in enumerate(found):
            column = _Column(axes, left=1.1 * width * position)
            column.show(0, example.original, example.before)
            column.show(1, example.adversarial, example.after, frame=example.frame)
            if example.field is None:
                column.show_difference(2, example.adversarial - example.original, largest)
            else:
                column.show_field(2, example.original, example.field)
        kinds = ("adversarial", "difference") if found[0].field is None else ("deformed", "displacement")
        for row, kind in zip(ROWS, ("original", *kinds), strict=True):
            axes.text(left / 3, (row + 0.5) * height, kind, rotation=90, ha="right", va="center", fontsize=8)
    return figure


@dataclass(frozen=True)
class _Column:
    """One column of the picture: where its images go, in pixels of the images."""

    axes: Axes
    left: float

    def show(self, row: int, picture: Picture, title: str, *, frame: str = INK, cmap: str = "gray") -> None:
        height, width = picture.shape[-2:]
        left, top = self.left, ROWS[row] * height
        pixels = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)
        extent = (left, left + width, top + height, top)
        self.axes.imshow(pixels, cmap=cmap, vmin=0, vmax=1, extent=extent, interpolation="none", aspect="auto")
        line = 0.5 if frame == INK else 1.6
        self.axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=frame, linewidth=line))
        self.axes.text(left + width / 2, top - 1, title, ha="center", va="bottom", fontsize=7, linespacing=1.1)

    def show_difference(self, row: int, difference: Picture, largest: float) -> None:
        """White is unchanged, orange darker, violet brighter; the same scale for all columns."""
        self.show(row, (0.5 + 0.5 * difference / max(largest, 1e-12)).astype(np.float32), "", cmap="PuOr")

    def show_field(self, row: int, original: Picture, field: Picture) -> None:
        """At every second pixel an arrow to where the deformed image takes its value from; short ones are magnified."""
        self.show(row, 1 - 0.35 * original.mean(0, keepdims=True), "")
        largest = float(np.linalg.norm(field, axis=-1).max())
        factor = max(round(SHORT / largest), 1) if largest > 0 else 1
        ys, xs = np.mgrid[1 : field.shape[0] : 2, 1 : field.shape[1] : 2]
        arrows = factor * field[ys, xs]
        drawn = np.linalg.norm(arrows, axis=-1) > 0.1
        self.axes.quiver(
            self.left + 0.5 + xs[drawn],
            ROWS[row] * len(field) + 0.5 + ys[drawn],
            arrows[drawn][:, 0],
            arrows[drawn][:, 1],
            width=0.28,
            color=FOOLED,
            **ARROWS,
        )
        if factor > 1:
            self.axes.text(self.left + 0.6, ROWS[row] * len(field) + 0.6, f"× {factor}", fontsize=6, va="top")
