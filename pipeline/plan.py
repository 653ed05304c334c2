"""What ``dvc repro`` would train and attack, and how long it takes if nothing is stored: measured, never guessed."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pipeline.config import Params
from pipeline.progress import duration
from pipeline.settings import AttackEntry
from pipeline.store import STORE

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Costs:
    """Seconds that finished work took on this store's machine.

    Attributes:
        epoch: model to the seconds of an epoch of one seed.
        image: (model, attack) to the seconds of an image's whole curve on one seed.
    """

    epoch: dict[str, float]
    image: dict[tuple[str, str], float]


def read_costs(params: Params, store: Path = STORE) -> Costs:
    """Of each model and attack the latest that is stored, whatever its parameters were."""
    epoch: dict[str, float] = {}
    for path in _latest_first(store.glob("checkpoints/*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["history"]:
            epoch.setdefault(report["model"], report["seconds"] / len(report["history"]))
    image: dict[tuple[str, str], float] = {}
    wanted = {(model, attack) for model in params.attacked for attack in params.attacks}
    for folder in _latest_first(store.glob("rows/*")):
        if wanted <= image.keys():
            break
        paths = list(folder.glob("*.parquet"))
        first = next((rows for path in paths if len(rows := _read_seconds(path))), None)
        cell = None if first is None else (first["model"].iloc[0], first["attack"].iloc[0])
        if cell in wanted - image.keys():
            rows = pd.concat(map(_read_seconds, paths), ignore_index=True)
            image[cell] = float(rows["seconds"].sum()) / rows["index"].nunique()
    return Costs(epoch, image)


def _latest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _read_seconds(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=["model", "attack", "index", "seconds"])
    except (OSError, ValueError):  # damaged, or being replaced: an attack run will find out
        return pd.DataFrame()


def plan(params: Params, costs: Costs) -> str:
    """The plan as text."""
    n_seeds = len(params.seeds)
    trainings = [_training(params, model, costs) for model in params.models]
    attacks = {name: _attack(params, entry, costs) for name, entry in params.attacks.items()}
    sizes = ", ".join(f"{key} {value}" for key, value in asdict(params.dataset.config).items())
    known = [seconds for seconds in (*trainings, *attacks.values()) if seconds is not None]
    unknown = [*(["training"] if None in trainings else []), *(name for name, s in attacks.items() if s is None)]
    lines = [
        f"data    {params.dataset.kind} ({sizes})",
        f"train   {', '.join(params.models)}: {len(params.models)} × {n_seeds} seeds, "
        + ", ".join(sorted({f"{model.train.epochs} epochs" for model in params.models.values()})),
        *([f"        and {', '.join(params.variants)} without training"] if params.variants else []),
        "attack  every seed of each:",
        *_table(params, attacks),
        "",
        f"time    training {_duration(_total(trainings))}, attacks {_duration(_total(list(attacks.values())))}, "
        f"together {'at least ' if unknown and known else ''}{_duration(sum(known) if known else None)}",
        "        if nothing is finished yet. The other stages are not counted. Estimated from the latest finished work "
        f"in {STORE}:",
        "        other parameters or another machine take another time. `dvc status` names what would run.",
    ]
    if unknown:
        text = f"Not measured on every model yet, so unknown: {', '.join(unknown)}."
        lines.append(textwrap.fill(text, 112, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def _training(params: Params, model: str, costs: Costs) -> float | None:
    seconds = costs.epoch.get(model)
    return None if seconds is None else seconds * params.models[model].train.epochs * len(params.seeds)


def _attack(params: Params, attack: AttackEntry, costs: Costs) -> float | None:
    seconds = [costs.image.get((model, attack.name)) for model in params.attacked]
    total = _total(seconds)
    return None if total is None else total * attack.n_images * len(params.seeds)


def _total(seconds: Sequence[float | None]) -> float | None:
    return sum(s for s in seconds if s is not None) if None not in seconds else None


def _table(params: Params, seconds: dict[str, float | None]) -> list[str]:
    rows = [("", "kind", "norm", "images", "strengths", "time")]
    for name, attack in params.attacks.items():
        draws = getattr(attack.config, "draws", 1)
        strengths = f"{len(attack.epsilons)}" + (f" × {draws} draws" if draws > 1 else "")
        rows.append((name, attack.kind, attack.norm, str(attack.n_images), strengths, _duration(seconds[name])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else duration(seconds)
