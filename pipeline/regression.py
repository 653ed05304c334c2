"""Two runs of the benchmark compared: ``python -m pipeline compare LAST THIS``, for scheduled runs.

A run's folder has ``reports/curves.csv`` and ``reports/configurations.json`` and, if it was timed
(``python -m benchmarks.timed``), ``timing.json``, with hashes of the curves.csv and the parameters that were timed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError
from pipeline.files import sha256

SLOWER = 1.25  # how much longer than last time a run may take, in units of its reference loop
SLACK = 1e-9  # numbers went through text
CURVE = ["model", "attack"]
POINT = [*CURVE, "epsilon"]


@dataclass(frozen=True)
class Time:
    """How long a run took, in units of the reference loop, and the hash of its parameters, all of them."""

    units: float
    params: str


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        curves: the rows of curves.csv, with the hash of each curve's configuration.
        time: how long it took; None if it was not timed.
    """

    curves: pd.DataFrame
    time: Time | None


@dataclass(frozen=True)
class Comparison:
    """Curves of unchanged configurations, what became of their points, and curves that cannot be compared.

    Attributes:
        points: one a row, of both runs: model, attack, epsilon, robust_accuracy_last, low_last, high_last,
            robust_accuracy, and whether it ``moved``: is now outside its last interval.
        missing: the points that one of the runs lacks: model, attack, epsilon, and ``run``, "last" or "this".
        changed, new, gone: curves as "model attack".
        slower: this run's time in units of last time's; None if it was not timed or params.yaml says something else.
        timed: whether both were timed.
    """

    points: pd.DataFrame
    missing: pd.DataFrame
    changed: list[str]
    new: list[str]
    gone: list[str]
    slower: float | None
    timed: bool

    @property
    def moved(self) -> pd.DataFrame:
        """The points outside their last interval."""
        return self.points[self.points["moved"]]

    @property
    def failed(self) -> bool:
        """Whether somebody has to look."""
        too_slow = self.slower is not None and self.slower > SLOWER
        return len(self.moved) > 0 or len(self.missing) > 0 or too_slow


def read_run(folder: Path) -> Run:
    """A run's folder.

    Raises:
        UserError: a file is missing or damaged, or does not belong to the others.
    """
    path = folder / "reports" / "configurations.json"
    try:
        hashes = _by_curve(json.loads(path.read_text(encoding="utf-8")))
        path = folder / "reports" / "curves.csv"
        curves = _curves(path, hashes)
        timing = folder / "timing.json"
        time = None
        if timing.is_file():
            hashed, path = sha256(path), timing
            time = _timed(json.loads(timing.read_text(encoding="utf-8")), hashed)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; give the folder of a finished run, which has reports/ in it") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); remove it or run again") from error
    return Run(curves, time)


def _by_curve(configurations: dict[str, dict[str, str]]) -> dict[tuple[str, str], str]:
    return {(model, attack): found for model, of in configurations.items() for attack, found in of.items()}


def _curves(path: Path, hashes: dict[tuple[str, str], str]) -> pd.DataFrame:
    """curves.csv with the hashes, after a check that it has every curve of configurations.json and every point once."""
    curves = pd.read_csv(path).astype({"epsilon": float, "robust_accuracy": float, "low": float, "high": float})
    names = list(zip(curves["model"], curves["attack"], strict=True))
    if lost := sorted(set(hashes) - set(names)):
        raise ValueError(f"no row of {', '.join(' '.join(curve) for curve in lost)}")
    if strange := sorted(set(names) - set(hashes)):
        raise ValueError(f"configurations.json does not know {', '.join(' '.join(curve) for curve in strange)}")
    if curves.duplicated(POINT).any():
        raise ValueError("a point has two rows")
    return curves.assign(configuration=[hashes[curve] for curve in names])


def _timed(timing: dict[str, Any], curves: str) -> Time:
    if timing["curves"] != curves:
        raise ValueError("it timed a run with another curves.csv")
    seconds, reference = float(timing["seconds"]), float(timing["reference"])
    if not (0 < seconds < math.inf and 0 < reference < math.inf):
        raise ValueError("seconds and reference must be positive and finite")
    return Time(seconds / reference, str(timing["params"]))


def compare(last: Run, this: Run) -> Comparison:
    """Robust accuracy of unchanged configurations against its last interval, and the time against the last."""
    then, now = _configurations(last), _configurations(this)
    columns = [*POINT, "robust_accuracy", "low", "high"]
    unchanged = pd.DataFrame([curve for curve in now if then.get(curve) == now[curve]], columns=CURVE)
    both = (
        unchanged.merge(last.curves[columns])
        .merge(unchanged.merge(this.curves[columns]), on=POINT, how="outer", suffixes=("_last", ""), indicator="run")
        .astype({"run": str})
    )
    points = both[both["run"] == "both"].drop(columns="run").reset_index(drop=True)
    low, high = points["low_last"] - SLACK, points["high_last"] + SLACK
    lacking = both[both["run"] != "both"][[*POINT, "run"]].replace({"run": {"left_only": "this", "right_only": "last"}})
    return Comparison(
        points=points.assign(moved=~points["robust_accuracy"].between(low, high)),
        missing=lacking.reset_index(drop=True),
        changed=[" ".join(curve) for curve in now if curve in then and now[curve] != then[curve]],
        new=[" ".join(curve) for curve in now if curve not in then],
        gone=[" ".join(curve) for curve in then if curve not in now],
        slower=_slower(last.time, this.time),
        timed=last.time is not None and this.time is not None,
    )


def _slower(last: Time | None, this: Time | None) -> float | None:
    return this.units / last.units if last and this and last.params == this.params else None


def _configurations(run: Run) -> dict[tuple[str, str], str]:
    """Curve to the hash of its configuration, in the order of curves.csv."""
    names = zip(run.curves["model"], run.curves["attack"], strict=True)
    return dict(zip(names, run.curves["configuration"], strict=True))


def text(comparison: Comparison) -> str:
    """In Markdown, for the page of a CI job: what failed in full, then a line for every curve."""
    found = comparison
    lines = [
        "## Against the last run",
        "",
        f"{len(found.points)} points of unchanged configurations: "
        f"{len(found.moved) or 'none'} outside of the last run's interval.",
        _time(found),
    ]
    for words, curves in (("changed", found.changed), ("new", found.new), ("gone", found.gone)):
        if curves:
            lines.append(f"Not compared, because {words}: {', '.join(curves)}.")
    for run in ("this", "last"):
        lacking = found.missing[found.missing["run"] == run]
        if len(lacking):
            listed = ", ".join(f"{row.model} {row.attack} at {row.epsilon:g}" for row in lacking.itertuples())
            lines.append(f"Unchanged configurations, but missing from {run} run's curves.csv: {listed}.")
    if len(found.moved):
        lines += ["", "| model | attack | strength | last run | this run |", "| --- | --- | ---: | ---: | ---: |"]
        lines += [
            f"| {row.model} | {row.attack} | {row.epsilon:g} | "
            f"{row.robust_accuracy_last:.3f} [{row.low_last:.3f}, {row.high_last:.3f}] | {row.robust_accuracy:.3f} |"
            for row in found.moved.itertuples()
        ]
    return "\n".join(lines + _by_curve_table(found.points))


def _by_curve_table(points: pd.DataFrame) -> list[str]:
    """Every curve at the strength where it changed most."""
    if points.empty:
        return []
    lines = [
        "",
        "The largest change of every curve:",
        "",
        "| model | attack | points | outside | at strength | last run | this run |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (model, attack), curve in points.groupby(CURVE, sort=False):
        change = (curve["robust_accuracy"] - curve["robust_accuracy_last"]).abs().fillna(math.inf)
        most = curve.iloc[int(change.to_numpy().argmax())]
        lines.append(
            f"| {model} | {attack} | {len(curve)} | {curve['moved'].sum()} | {most['epsilon']:g} | "
            f"{most['robust_accuracy_last']:.3f} | {most['robust_accuracy']:.3f} |"
        )
    return lines


def _time(found: Comparison) -> str:
    if not found.timed:
        return "Time: not compared, one of the runs was not timed."
    if found.slower is None:
        return "Time: not compared, params.yaml says something else than last time."
    verdict = f"more than the {100 * (SLOWER - 1):.0f} % allowed" if found.slower > SLOWER else "allowed"
    return f"Time, in units of a reference loop in the same run: {100 * (found.slower - 1):+.0f} %, {verdict}."
