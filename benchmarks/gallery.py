"""``python -m benchmarks.gallery``: the pictures and numbers of docs/attacks.md, from the default run's checkpoints.

Every attack runs once on the same images, the first of the test split that the model gets right, and is judged as in
the benchmark. The numbers are printed and put into the page between its markers, so that none is typed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from pipeline import components
from pipeline.cells import make_cell
from pipeline.components import nearest
from pipeline.config import Params, load_params
from pipeline.datasets.base import CARD, Split, read_card, read_split
from pipeline.deform import jacobian_determinants
from pipeline.errors import UserError
from pipeline.evaluate import Examples, Judged, evaluate, predict
from pipeline.examples import first_examples
from pipeline.files import atomic_write
from pipeline.folders import CHECKPOINTS, DATA
from pipeline.nets import Target, load_target
from pipeline.report.examples import FOOLED, SIZE, WITHSTOOD
from pipeline.report.style import ARROWS, COLOURS, GRID, INK, STRENGTH, save_png, styled
from pipeline.settings import AttackEntry
from pipeline.stages.common import run
from pipeline.statistics import RESULTS

MODEL, SEED = "neural_ode", 0
N_IMAGES, N_SHOWN = 80, 5
PAGE = Path("docs/attacks.md")
FIGURES = Path("docs/figures/attacks")

# Name: the entry of params.yaml (or of OTHERS) and, of a budget attack, the strength that is shown.
SHOTS: dict[str, tuple[str, float | None]] = {
    "gaussian": ("gaussian", 0.4),
    "fgsm": ("fgsm", 0.15),
    "margin_step": ("margin_step", 0.3),
    "pgd": ("pgd", 0.15),
    "autoattack": ("apgd_ce", 0.15),
    "square": ("square_300", 0.15),
    "fmn": ("fmn", None),
    "lbfgs": ("lbfgs", None),
    "adef": ("adef", None),
    "deform_pgd": ("deform_pgd_fold_free", 1.0),
    "deform_search": ("deform_search_300", 1.0),
    "deform_min": ("deform_min_fold_free", None),
}
# Attacks that the default run has not. fmn_linf is only what deformations are compared with.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "margin_step": ("margin_step", {"norm": "linf"}),
    "apgd_ce": ("autoattack", {"norm": "linf", "member": "apgd_ce", "iterations": 20, "classes": 1}),
    "square_300": ("square", {"norm": "linf", "queries": 300, "p_init": 0.8}),
    "fmn": ("fmn", {"norm": "l2", "steps": 30, "step_size": 1.0, "gamma": 0.3, "loss": "cross_entropy"}),
    "fmn_linf": ("fmn", {"norm": "linf", "steps": 20, "step_size": 1.0, "gamma": 0.3, "loss": "both"}),
    "deform_search_300": (
        "deform_search",
        {"norm": "deformation", "fold_free": True, "queries": 300, "first_width": 4.0, "last_width": 1.0},
    ),
}

# Matplotlib's PuOr with a centre as white as paper.
DIFFERENCE = LinearSegmentedColormap.from_list(
    "difference", ["#7f3b08", "#e08214", "#fee0b6", "white", "#d8daeb", "#8073ac", "#2d004b"]
)
SIDE = 0.9  # of an image, inches
GAP = 0.08  # between images, in heights of one
TITLE = 0.24  # of a row with two lines above it, in heights of an image
COLOURS_KEPT = 192  # nobody sees the others, and the file is a third
SHORT = 2.0  # pixels: fields whose longest arrow is shorter are drawn magnified

Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shot:
    """An attack on the common images, and the judge's verdict on it."""

    entry: AttackEntry
    epsilon: float | None
    examples: Examples
    judged: Judged

    @property
    def rows(self) -> pd.DataFrame:
        """One row an image: the first draw's, which the images belong to."""
        rows = self.judged.rows
        return rows[rows["draw"] == 0].reset_index(drop=True)


def main() -> None:
    """Draw the pictures, print the numbers and put them into the page."""
    params = load_params()
    split, target = _load(params)
    examples = _correct(target, split)
    shots = {kind: _shoot(params, target, examples, *shot) for kind, shot in SHOTS.items()}
    for kind, shot in shots.items():
        _save(_gallery(shot), kind)
    nearest_linf = _shoot(params, target, examples, "fmn_linf", None)
    alike = _Alike.of(shots["deform_min"], {"size_l2": shots["lbfgs"], "size_linf": nearest_linf})
    _save(alike.figure(), "alike")
    blocks = {"shots": _table(shots), "alike": alike.text(params)}
    print("\n\n".join(blocks.values()))
    _fill(PAGE, blocks)


def _load(params: Params) -> tuple[Split, Target]:
    """The test split and the trained model.

    Raises:
        UserError: the default run has not been made, or its model is not called ``MODEL``.
    """
    if MODEL not in params.models:
        raise UserError(f"params.yaml: models has no entry {MODEL!r}; {nearest(MODEL, params.models)}")
    for path in (DATA / CARD, CHECKPOINTS / MODEL / f"seed-{SEED}.safetensors"):
        if not path.is_file():
            raise UserError(f"{path}: missing; run `make repro` first")
    split = read_split(DATA, "test")
    return split, load_target(params.models[MODEL], MODEL, SEED, split, read_card(DATA)["n_classes"])


def _correct(target: Target, split: Split) -> Examples:
    """The first ``N_IMAGES`` that the model classifies correctly."""
    examples = first_examples(split, 2 * N_IMAGES)
    right = predict(target.net, examples).argmax(1) == examples.labels
    return examples.subset(right.nonzero().flatten()[:N_IMAGES].tolist())


def _shoot(params: Params, target: Target, examples: Examples, name: str, epsilon: float | None) -> Shot:
    """Attack and judge.

    Raises:
        UserError: params.yaml lacks the entry.
        RuntimeError: the attack failed on an image: a picture of that would show nothing of the attack.
    """
    entry = _entry(params, name)
    cell = make_cell(target, entry, params.evaluate, dataset=params.dataset.kind, card=read_card(DATA))
    judged = evaluate(target.net, examples, cell, epsilon=epsilon, clean_logits=predict(target.net, examples))
    failed = set(judged.rows["status"]) - set(RESULTS)
    if failed:
        raise RuntimeError(f"{name}: {', '.join(sorted(failed))}")
    return Shot(entry, epsilon, examples, judged)


def _entry(params: Params, name: str) -> AttackEntry:
    if name in OTHERS:
        kind, arguments = OTHERS[name]
        return AttackEntry("attacks", name, kind, components.load("attacks", kind).Config(**arguments), N_IMAGES, ())
    if name not in params.attacks:
        raise UserError(f"params.yaml: attacks has no entry {name!r}; {nearest(name, params.attacks)}")
    return params.attacks[name]


def _save(figure: Figure, name: str) -> None:
    path = FIGURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(
            COLOURS_KEPT, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    reduced.save(path, optimize=True)


def _gallery(shot: Shot) -> Figure:
    """A column for each of the first images: original, adversarial, difference and, of a deformation, the field."""
    originals, adversarial = (t[:N_SHOWN].numpy() for t in (shot.examples.inputs, shot.judged.adv_inputs))
    fields = None if shot.judged.deformation is None else shot.judged.deformation[:N_SHOWN]
    sheet = _Sheet(rows=3 if fields is None else 4, columns=len(originals))
    differences = adversarial - originals
    for column, (_, row) in enumerate(shot.rows[:N_SHOWN].iterrows()):
        sheet.show(0, column, originals[column], title=f"seen as {row['clean_pred']}")
        sheet.show(1, column, adversarial[column], title=_title(shot, row), frame=_frame(row))
        sheet.show_difference(2, column, differences[column])
        if fields is not None:
            folds = (jacobian_determinants(fields[column : column + 1]).amin(1) <= 0)[0].numpy()
            sheet.show_field(3, column, originals[column], fields[column].numpy(), folds)
    sheet.name(("original", "adversarial" if fields is None else "deformed", "difference", "displacement"))
    return sheet.figure


def _title(shot: Shot, row: pd.Series[Any]) -> str:
    column, form = SIZE[shot.entry.norm]
    return f"seen as {row['adv_pred']}\n{form.format(row[column])}"


def _frame(row: pd.Series[Any]) -> str:
    return FOOLED if row["success"] else WITHSTOOD


class _Sheet:
    """Images in rows and columns on one pair of axes, whose unit is an image's side; rows run downwards."""

    def __init__(self, *, rows: int, columns: int) -> None:
        self.columns = columns
        # Rows 0 and 1 have titles of one and of two lines above them.
        self.tops = [0.0, 1 + GAP + TITLE, *(2 + TITLE + GAP * (2 + k) + k for k in range(rows - 2))]
        left, right, top, bottom = -0.16, columns * (1 + GAP), -0.14, self.tops[-1] + 1.03
        with styled():
            self.figure = Figure(figsize=(SIDE * (right - left), SIDE * (bottom - top)))
            self.axes: Axes = self.figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
            self.axes.set_axis_off()

    def show(
        self,
        row: int,
        column: int,
        picture: Picture,
        *,
        title: str = "",
        frame: str = INK,
        cmap: str | Colormap = "gray",
    ) -> None:
        left, top = column * (1 + GAP), self.tops[row]
        pixels = picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)
        extent = (left, left + 1, top + 1, top)
        self.axes.imshow(pixels, cmap=cmap, vmin=0, vmax=1, extent=extent, interpolation="none", aspect="auto")
        line = 0.5 if frame == INK else 1.8
        self.axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=frame, linewidth=line))
        self.axes.text(left + 0.5, top - 0.03, title, ha="center", va="bottom", fontsize=7, linespacing=1.15)

    def show_difference(self, row: int, column: int, difference: Picture) -> None:
        """White is unchanged, orange darker, violet brighter; the label says what the full colours are."""
        scale = max(float(np.abs(difference).max()), 1e-6)
        self.show(row, column, 0.5 + difference / (2 * scale), cmap=DIFFERENCE)
        self.label(row, column, f"± {scale:.2f}")

    def show_field(
        self, row: int, column: int, original: Picture, field: Picture, folds: npt.NDArray[np.bool_]
    ) -> None:
        """Arrows to where pixels take their values from, at every second pixel; cells that fold are filled."""
        self.show(row, column, 1 - 0.3 * original.mean(0, keepdims=True))
        left, top, side = column * (1 + GAP), self.tops[row], len(field)
        for y, x in np.argwhere(folds):
            corner = left + (x + 0.5) / side, top + (y + 0.5) / side
            self.axes.add_patch(Rectangle(corner, 1 / side, 1 / side, color=COLOURS[2], alpha=0.45, linewidth=0))
        lengths = np.linalg.norm(field, axis=-1)
        factor = max(int(SHORT / max(float(lengths.max()), 1e-6)), 1)
        ys, xs = np.mgrid[1:side:2, 1:side:2]
        drawn = factor * lengths[ys, xs] > 0.4
        arrows = factor * field[ys, xs][drawn] / side
        self.axes.quiver(
            left + (xs[drawn] + 0.5) / side,
            top + (ys[drawn] + 0.5) / side,
            arrows[:, 0],
            arrows[:, 1],
            width=0.011,
            color=FOOLED,
            **ARROWS,
        )
        if factor > 1:
            self.label(row, column, f"× {factor}")

    def label(self, row: int, column: int, text: str) -> None:
        """A small text in the upper left corner of an image."""
        left, top = column * (1 + GAP) + 0.03, self.tops[row] + 0.03
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        self.axes.text(left, top, text, fontsize=6, va="top", bbox=paper)

    def name(self, names: tuple[str, ...]) -> None:
        """Write a name at each row, on its left."""
        for top, name in zip(self.tops, names, strict=False):
            self.axes.text(-0.05, top + 0.5, name, rotation=90, ha="right", va="center", fontsize=7)


def _table(shots: Mapping[str, Shot]) -> str:
    """Strength, success, size and cost of every attack, in Markdown."""
    lines = [
        f"Model `{MODEL}`, seed {SEED}, and the first {N_IMAGES} test images that it gets right; the pictures show "
        f"{N_SHOWN} of them. Sizes are means over the fooled images, forwards and backwards over all; *folding* is "
        "the share of the fooled images whose field folds.",
        "",
        "| attack | entry | strength | fooled | size | folding | forwards | backwards |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, shot in shots.items():
        rows = shot.rows
        fooled = rows[rows["success"]]
        column, form = SIZE[shot.entry.norm]
        size = "–" if column == "epsilon" else form.format(fooled[column].mean())
        folds = "–" if shot.judged.deformation is None else _percent((fooled["folded_share"] > 0).mean())
        strength = "minimal" if shot.epsilon is None else form.format(shot.epsilon)
        share = _percent(rows["success"].mean())
        cost = f"{rows['n_forwards'].mean():.1f} | {rows['n_backwards'].mean():.1f}"
        lines.append(f"| [{kind}](#{kind}) | `{shot.entry.name}` | {strength} | {share} | {size} | {folds} | {cost} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@dataclass(frozen=True)
class _Alike:
    """The smallest fold-free deformations beside the smallest perturbations.

    Attributes:
        deformed: the deformations.
        nearest: by the column of a size, the attack that makes this size small.
        rows: the examples on which all of them succeed.
    """

    deformed: Shot
    nearest: Mapping[str, Shot]
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, deformed: Shot, nearest: Mapping[str, Shot]) -> _Alike:
        success = [shot.rows["success"].to_numpy() for shot in (deformed, *nearest.values())]
        return cls(deformed, nearest, np.flatnonzero(np.all(success, axis=0)))

    def sizes(self, shot: Shot, column: str) -> Picture:
        sizes: Picture = shot.rows[column].to_numpy()[self.rows]
        return sizes

    def text(self, params: Params) -> str:
        """The numbers, in Markdown."""
        tau, folded, l2, linf = (
            self.sizes(self.deformed, name) for name in ("size_deformation", "folded_share", "size_l2", "size_linf")
        )
        least_l2, least_linf = (self.sizes(shot, column) for column, shot in self.nearest.items())
        largest = {norm: max(e for a in params.attacks.values() if a.norm == norm for e in a.epsilons) for norm in SIZE}
        return "\n".join(
            [
                f"Means over the {len(tau)} images on which all three attacks succeed:",
                "",
                "| | ‖τ‖_T | ‖r‖₂ | ‖r‖∞ | folded pixel cells |",
                "| --- | ---: | ---: | ---: | ---: |",
                f"| smallest fold-free deformation (`deform_min`) | {tau.mean():.2f} px | {l2.mean():.2f} "
                f"| {linf.mean():.2f} | {_percent(folded.mean())} |",
                f"| smallest ‖r‖₂ (`lbfgs`) | – | {least_l2.mean():.2f} | | – |",
                f"| smallest ‖r‖∞ (`fmn`) | – | | {least_linf.mean():.2f} | – |",
                "",
                f"The deformed image is {(l2 / least_l2).mean():.1f} times as far from the original in ℓ2, and "
                f"{(linf / least_linf).mean():.1f} times in ℓ∞, as the perturbed one (means of the ratios). "
                f"{_percent((linf > largest['linf']).mean())} of the deformed images lie outside the largest ℓ∞ ball "
                f"of the default run (ε = {largest['linf']:g}) and {_percent((l2 > largest['l2']).mean())} outside its "
                f"largest ℓ2 ball (ε = {largest['l2']:g}).",
            ]
        )

    def figure(self) -> Figure:
        """Sizes of r against ‖τ‖_T, and an image with its deformed and its perturbed neighbours."""
        with styled():
            figure = Figure(figsize=(7.4, 2.75))
            titles = {"size_l2": r"$\Vert r\Vert_2$", "size_linf": r"$\Vert r\Vert_\infty$"}
            for left, (column, title) in zip((0.05, 0.37), titles.items(), strict=True):
                self._scatter(figure.add_axes((left, 0.17, 0.265, 0.7)), column, title)
            self._pair(figure)
        return figure

    def _scatter(self, axes: Axes, column: str, title: str) -> None:
        tau, deformed = (self.sizes(self.deformed, name) for name in ("size_deformation", column))
        least = self.sizes(self.nearest[column], column)
        axes.scatter(tau, least, s=9, color=WITHSTOOD, marker="s", linewidth=0, alpha=0.75, label=f"smallest {title}")
        axes.scatter(tau, deformed, s=13, color=FOOLED, linewidth=0, alpha=0.85, label="smallest deformation")
        axes.set(title=title, xlim=(0, None), ylim=(0, 1.25 * deformed.max()))
        axes.set_xlabel(STRENGTH["deformation"], fontsize=7)
        axes.tick_params(labelsize=7, length=2, color=GRID)
        axes.legend(loc="upper left", fontsize=7, handletextpad=0.1, borderaxespad=0.1, labelspacing=0.3)

    def _pair(self, figure: Figure) -> None:
        """Not chosen by its looks: the deformed image of median ‖r‖₂."""
        index = int(self.rows[np.argsort(self.sizes(self.deformed, "size_l2"))[len(self.rows) // 2]])
        original = self.deformed.examples.inputs[index].numpy()
        pictures = [(original, f"original\nseen as {self.deformed.rows['clean_pred'][index]}")]
        for shot, name in ((self.deformed, "deformed"), (self.nearest["size_l2"], "smallest ‖r‖₂")):
            row = shot.rows.iloc[index]
            title = f"{name}\nseen as {row['adv_pred']}, ‖r‖₂ {row['size_l2']:.2f}"
            pictures.append((shot.judged.adv_inputs[index].numpy(), title))
        places = ((0.76, 0.525), (0.675, 0.02), (0.845, 0.02))
        for (picture, title), place in zip(pictures, places, strict=True):
            axes = figure.add_axes((*place, 0.14, 0.14 * 7.4 / 2.75))
            axes.imshow(np.moveaxis(picture, 0, -1), cmap="gray", vmin=0, vmax=1, interpolation="none")
            axes.set_axis_off()
            axes.set_title(title, fontsize=6.5, fontweight="normal", loc="center", pad=2)


def _fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each block between its markers, ``<!-- gallery: NAME -->`` and ``<!-- end -->``.

    Raises:
        UserError: the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        before, start, rest = text.partition(f"<!-- gallery: {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise UserError(f"{page}: no place for the gallery's block {name!r}")
        text = before + start + block + end + after
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
