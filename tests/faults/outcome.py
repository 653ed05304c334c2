"""What a run came to, and whether two came to the same: rows, weights, curves and what MLflow holds."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.files import digest, sha256

ROWS = ("results/*/*.parquet", "transfer/*.parquet")
SAME_BYTES = (
    "data/splits/*",
    "checkpoints/*/*.safetensors",
    "results/*/*.safetensors",
    "probes/*.json",
    "refinement/*.json",
    "trajectories/*.json",
    "theory/*.json",
    "reports/curves.csv",
)
METRICS = Path("reports/metrics.json")
TIMED = ("seconds", "mismatches")  # what nets differ in counts the seconds of their training


@dataclass(frozen=True)
class Outcome:
    """All that a finished run leaves.

    Attributes:
        rows: every row of every results file without its seconds, and how often it is there.
        files: hashes of the files that are the same in every run.
        runs: names of MLflow's current runs, and how often they are there.
        leftovers: half-written files that nobody will remove.
    """

    rows: Counter[tuple[Any, ...]]
    files: dict[str, str]
    runs: Counter[str]
    leftovers: tuple[str, ...]


def read(folder: Path) -> Outcome:
    """The outcome of the run in a workspace."""

    def found(patterns: tuple[str, ...]) -> dict[str, Path]:
        return {path.relative_to(folder).as_posix(): path for p in patterns for path in sorted(folder.glob(p))}

    rows: Counter[tuple[Any, ...]] = Counter()
    for name, path in found(ROWS).items():
        frame = pd.read_parquet(path).drop(columns="seconds").astype(str)
        rows.update((name, *row) for row in frame.itertuples(index=False, name=None))
    return Outcome(
        rows,
        {name: sha256(path) for name, path in found(SAME_BYTES).items()}
        | {str(METRICS): digest(_timeless(json.loads((folder / METRICS).read_text(encoding="utf-8"))))},
        Counter(_published(folder / "mlflow.db")),
        tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*.tmp") if ".dvc" not in path.parts),
    )


def _timeless(value: Any) -> Any:
    """Without whatever depends on how long something took."""
    if not isinstance(value, dict):
        return value
    return {name: _timeless(inner) for name, inner in value.items() if not any(word in name for word in TIMED)}


def _published(database: Path) -> list[str]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        current = "select run_uuid from tags where key = 'current' and value = 'true'"
        query = f"select name from runs where lifecycle_stage = 'active' and run_uuid in ({current})"
        return [name for (name,) in connection.execute(query)]


@dataclass(frozen=True)
class Difference:
    """What a disturbed run lost, and everything else that is not as in the undisturbed one."""

    rows_lost: int
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows_lost or self.others)


def compare(disturbed: Outcome, undisturbed: Outcome) -> Difference:
    """Empty if they are the same."""
    lost = (undisturbed.rows - disturbed.rows).total()
    more = (disturbed.rows - undisturbed.rows).total()
    names = sorted(undisturbed.files.keys() | disturbed.files.keys())
    others = [name for name in names if undisturbed.files.get(name) != disturbed.files.get(name)]
    others += [f"{more} rows that should not be"] if more else []
    others += ["MLflow's runs"] if disturbed.runs != undisturbed.runs else []
    others += [f"left over: {name}" for name in disturbed.leftovers]
    return Difference(lost, tuple(others))


def is_clear(status: int, output: str) -> bool:
    """Success, or an error in words: a line that says so, and no traceback. DVC has words of its own for its files."""
    says = any(line.lower().startswith("error") or line.endswith(" is invalid.") for line in output.splitlines())
    return "Traceback" not in output and (status == 0 or says)
