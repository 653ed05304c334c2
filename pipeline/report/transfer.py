"""Whose images fool whom: the transfer matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from pipeline import statistics
from pipeline.report.inputs import Benchmark
from pipeline.report.style import styled
from pipeline.report.tables import NOTHING, Table

CELL = 0.75  # inches
ANOTHER_SEED = "another seed of it"


def matrix(benchmark: Benchmark, attack: str) -> pd.DataFrame:
    """Share of the target's correctly classified images that fall: source (rows) × target (columns), over all seeds.

    The diagonal is the attack on the model itself, on the same images. A target ``model@solver`` is tried on the images
    of its own weights alone.
    """
    rows = benchmark.transfers[attack]
    own = pd.concat([result.rows for result in benchmark.of_attack(attack)])
    own = own[own["index"].isin(rows["index"].unique())] if len(rows) else own
    sources = rows["source_model"].mask(rows["source_model"] == rows["model"], ANOTHER_SEED)
    everything = pd.concat(
        [own.assign(source_model=own["model"], source_seed=own["seed"]), rows.assign(source_model=sources)]
    )
    shares = _fallen(everything).unstack()
    models = list(benchmark.params.attacked)
    targets = [*models, *(name for name in dict.fromkeys(rows["model"]) if name not in models)]
    return shares.reindex(index=[name for name in [*models, ANOTHER_SEED] if name in shares.index], columns=targets)


def _fallen(rows: pd.DataFrame) -> pd.Series[float]:
    """(source, target) to the share that falls at any strength, over pairs of seeds and correctly classified images."""
    correct = rows[rows["clean_correct"]]
    keys = [correct[name] for name in ("source_model", "model", "source_seed", "seed", "index")]
    fell = (correct["success"] & ~statistics.is_failed(correct)).groupby(keys).any()
    return fell.astype(float).groupby(level=[0, 1]).mean()


def picture(benchmark: Benchmark) -> Figure:
    """A matrix per attack; darker is more often fooled."""
    matrices = {attack: matrix(benchmark, attack) for attack in benchmark.transfers}
    with styled(axes_grid=False):
        rows, columns = next(iter(matrices.values())).shape
        size = (CELL * columns + 2.2, (CELL * 0.6 * rows + 1.4) * len(matrices))
        figure = Figure(figsize=size, layout="constrained")
        for axes, (attack, shares) in zip(
            figure.subplots(len(matrices), 1, squeeze=False).flat, matrices.items(), strict=True
        ):
            values: npt.NDArray[np.float64] = shares.to_numpy(np.float64)
            axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(columns), [name.replace("@", "\n@ ") for name in shares.columns], size=7)
            axes.set_yticks(range(len(shares)), shares.index, size=7)
            axes.set_title(
                f"{attack}: fooled by images made on …, up to {benchmark.params.attacks[attack].epsilons[-1]:g}"
            )
            axes.set_xlabel("target")
            axes.set_ylabel("images made on")
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    axes.text(
                        j,
                        i,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        size=7,
                        color="white" if value > 0.5 else "black",
                    )
    return figure


def table(benchmark: Benchmark, attack: str) -> Table:
    """The matrix in numbers."""
    shares = matrix(benchmark, attack)
    rows = [
        (str(source), *(NOTHING if np.isnan(value) else f"{value:.3f}" for value in shares.loc[source]))
        for source in shares.index
    ]
    largest = benchmark.params.attacks[attack].epsilons[-1]
    return Table(
        f"{attack}: share of the target's correctly classified images that fall to images made on another model, up to "
        f"strength {largest:g}: means over pairs of seeds. An image is tried as it was where its own model fell. "
        "@: the same weights under another solver, on their own images.",
        ("images made on", *shares.columns),
        tuple(rows),
    )
