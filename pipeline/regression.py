"""Two runs of the benchmark compared: ``python -m pipeline compare LAST THIS``, for scheduled runs.

A run's folder has ``reports/curves.csv`` and ``reports/configurations.json`` and, if it was timed
(``python -m benchmarks.timed``), ``timing.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError

SLOWER = 1.25  # how much longer than last time a run may take, in units of its reference loop
SLACK = 1e-9  # numbers went through text
CURVE = ["model", "attack"]
POINT = [*CURVE, "epsilon"]


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        curves: the rows of curves.csv, with the hash of each curve's configuration.
        units: its time in units of the reference loop; None if it was not timed.
    """

    curves: pd.DataFrame
    units: float | None


@dataclass(frozen=True)
class Comparison:
    """Points of unchanged configurations, those of them that moved, and curves that cannot be compared.

    Attributes:
        points: one a row: model, attack, epsilon, robust_accuracy_last, low_last, high_last, robust_accuracy.
        moved: those whose robust accuracy is outside its last interval.
        changed, new, gone: curves as "model attack".
        slower: this run's time in units of last time's; None if either was not timed.
    """

    points: pd.DataFrame
    moved: pd.DataFrame
    changed: list[str]
    new: list[str]
    gone: list[str]
    slower: float | None

    @property
    def failed(self) -> bool:
        """Whether somebody has to look."""
        return len(self.moved) > 0 or (self.slower is not None and self.slower > SLOWER)


def read_run(folder: Path) -> Run:
    """A run's folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    path = folder / "reports" / "curves.csv"
    try:
        curves = pd.read_csv(path).astype({"epsilon": float, "robust_accuracy": float, "low": float, "high": float})
        path = folder / "reports" / "configurations.json"
        hashes = json.loads(path.read_text(encoding="utf-8"))
        curves["configuration"] = [hashes[row.model][row.attack] for row in curves.itertuples()]
        path = folder / "timing.json"
        units = None if not path.is_file() else _units(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; give the folder of a finished run, which has reports/ in it") from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); remove it or run again") from error
    return Run(curves, units)


def _units(timing: dict[str, Any]) -> float:
    return float(timing["seconds"]) / float(timing["reference"])


def compare(last: Run, this: Run) -> Comparison:
    """Robust accuracy of unchanged configurations against its last interval, and the time against the last."""
    columns = ["robust_accuracy", "low", "high", "configuration"]
    both = last.curves[[*POINT, *columns]].merge(
        this.curves[[*POINT, *columns]], on=POINT, how="outer", suffixes=("_last", ""), indicator="where"
    )
    same = (both["where"] == "both") & (both["configuration"] == both["configuration_last"])
    points = both[same].reset_index(drop=True)
    low, high = points["low_last"] - SLACK, points["high_last"] + SLACK
    moved = points[~points["robust_accuracy"].between(low, high)]
    then, now = _configurations(last), _configurations(this)
    return Comparison(
        points=points,
        moved=moved,
        changed=[curve for curve in now if curve in then and now[curve] != then[curve]],
        new=[curve for curve in now if curve not in then],
        gone=[curve for curve in then if curve not in now],
        slower=None if last.units is None or this.units is None else this.units / last.units,
    )


def _configurations(run: Run) -> dict[str, str]:
    return {f"{row.model} {row.attack}": str(row.configuration) for row in run.curves.itertuples()}


def text(comparison: Comparison) -> str:
    """In Markdown, for the page of a CI job."""
    found = comparison
    lines = [
        "## Against the last run",
        "",
        f"{len(found.points)} points of unchanged configurations: "
        f"{len(found.moved) or 'none'} outside of the last run's interval.",
        _time(found.slower),
    ]
    for words, curves in (("changed", found.changed), ("new", found.new), ("gone", found.gone)):
        if curves:
            lines.append(f"Not compared, because {words}: {', '.join(curves)}.")
    if len(found.moved):
        lines += ["", "| model | attack | strength | last run | this run |", "| --- | --- | ---: | ---: | ---: |"]
        lines += [
            f"| {row.model} | {row.attack} | {row.epsilon:g} | "
            f"{row.robust_accuracy_last:.3f} [{row.low_last:.3f}, {row.high_last:.3f}] | {row.robust_accuracy:.3f} |"
            for row in found.moved.itertuples()
        ]
    return "\n".join(lines)


def _time(slower: float | None) -> str:
    if slower is None:
        return "Time: not compared, one of the runs was not timed."
    verdict = f"more than the {100 * (SLOWER - 1):.0f} % allowed" if slower > SLOWER else "allowed"
    return f"Time, in units of a reference loop in the same run: {100 * (slower - 1):+.0f} %, {verdict}."
