"""How far a benchmark is: what the store holds of each cell, which cells are being computed, and what is left."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.attacking import AttackRun
from pipeline.cells import make_cell
from pipeline.config import Params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.folders import CHECKPOINTS, DATA
from pipeline.nets import Target, training_key
from pipeline.plan import Costs, read_costs
from pipeline.progress import duration
from pipeline.settings import Architecture, AttackEntry, Component
from pipeline.store import STORE, is_intact, is_locked

TRAINING = "training"
DONE, NOTHING = "done", "–"


@dataclass(frozen=True)
class Share:
    """Of the training of a model, or of an attack on it, over all seeds.

    Attributes:
        done: from 0 to 1.
        seconds: that the rest takes; None if it was never measured.
    """

    done: float
    seconds: float | None

    def __str__(self) -> str:
        if self.done == 1:
            return DONE
        return f"{100 * self.done:.0f} %" if self.done else NOTHING


def status(params: Params) -> str:
    """The table, what runs, and the time left, as text. Nothing is computed or changed."""
    shares = _shares(params, read_costs(params))
    rows = [["", *params.attacked]]
    rows += [[name, *(_cell(shares, name, model) for model in params.attacked)] for name in (TRAINING, *params.attacks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    running = [cell for cell in _cells(params) if is_locked(cell)]
    log = f" (logs/{running[0]}.log)" if running else ""
    return "\n".join([*table, "", f"running    {', '.join(running) or 'nothing'}{log}", _left(shares.values())])


def _cell(shares: dict[tuple[str, str], Share], name: str, model: str) -> str:
    return str(shares[name, model]) if (name, model) in shares else ""  # a variant is not trained


def _shares(params: Params, costs: Costs) -> dict[tuple[str, str], Share]:
    data = _data()
    found = {}
    for name, model in params.models.items():
        shares = [_trained(model, seed, data) for seed in params.seeds]
        epoch = costs.epoch.get(name)
        found[TRAINING, name] = _share(shares, None if epoch is None else epoch * model.train.epochs)
    for name, attacked in params.attacked.items():
        weights = params.trained(name).name
        for attack in params.attacks.values():
            shares = [_attacked(attacked, weights, seed, attack, params, data) for seed in params.seeds]
            image = costs.image.get((name, attack.name))
            found[attack.name, name] = _share(shares, None if image is None else image * attack.n_images)
    return found


def _share(seeds: Sequence[float], seconds: float | None) -> Share:
    """``seconds``: what a seed takes."""
    left = len(seeds) - sum(seeds)
    return Share(sum(seeds) / len(seeds), 0.0 if not left else None if seconds is None else seconds * left)


def _data() -> tuple[Split, dict[str, Any]] | None:
    try:
        return read_split(DATA, "test"), read_card(DATA)
    except UserError:
        return None  # the data stage has not run


def _trained(model: Architecture, seed: int, data: tuple[Split, dict[str, Any]] | None) -> float:
    """Share of the epochs that are stored."""
    if data is None:
        return 0
    key = training_key(model, data[1], seed)
    path = STORE / "checkpoints" / f"{key}.safetensors"
    if is_intact(path, path.with_suffix(".json")):
        return 1
    try:
        last = torch.load(STORE / "training" / key / "last.ckpt", weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
        return 0  # not begun, or just being written
    return float((last["epoch"] + 1) / (model.train.epochs + 1))  # its accuracies are still to be measured


def _attacked(
    model: Component,
    weights: str,
    seed: int,
    attack: AttackEntry,
    params: Params,
    data: tuple[Split, dict[str, Any]] | None,
) -> float:
    path = CHECKPOINTS / weights / f"seed-{seed}.safetensors"
    if data is None or not path.is_file():
        return 0
    split, card = data
    target = Target(model, seed, nn.Identity(), sha256(path))  # the net itself is not needed to find its rows
    cell = make_cell(target, attack, params.evaluate, dataset=params.dataset.kind, card=card)
    return AttackRun(target, attack, params.evaluate, cell, split).done()


def _cells(params: Params) -> list[str]:
    """Names of their locks and logs."""
    return [
        *(f"train-{name}" for name in params.models),
        *(f"attack-{name}" for name in params.attacked),
        "transfer",
    ]


def _left(shares: Iterable[Share]) -> str:
    seconds = [share.seconds for share in shares]
    known = sum(s for s in seconds if s is not None)
    if not known and None not in seconds:
        return "time left  none for training and attacks; `dvc status` names the other stages that would run"
    at_least = "at least " if None in seconds else ""
    return f"time left  {at_least}{duration(known)} for training and attacks, as they took before on this machine"
