"""One trained model: from the store or, by Lightning (``pipeline.fitting``), trained now; its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.datasets.base import Split
from pipeline.files import atomic_write, write_json
from pipeline.nets import build, training_key
from pipeline.settings import Architecture, ComputeConfig
from pipeline.store import STORE, is_intact, seal

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback

    from pipeline.fitting import Fit

logger = logging.getLogger(__name__)


def train(
    model: Architecture,
    seed: int,
    splits: dict[str, Split],
    card: dict[str, Any],
    compute: ComputeConfig,
    *,
    watchers: Callable[[str], Sequence[Callback]] = lambda _key: (),
    store: Path = STORE,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and report of one model and seed: from the store, continued where it was killed, or from the start.

    Args:
        watchers: made with the training's key, if there is something to train.

    Raises:
        TrainingDivergedError: the loss is not finite.
    """
    key = training_key(model, card, seed)
    path = store / "checkpoints" / f"{key}.safetensors"
    finished = _finished(path)
    if finished is None:
        from pipeline.fitting import fit  # Lightning loads for seconds, which what is finished need not wait for

        net = build(model, in_shape=splits["train"].in_shape, n_classes=card["n_classes"], seed=seed)
        done = fit(net, model.train, compute, seed, splits, store / "training" / key, watchers(key))
        finished = done.weights, _report(model, seed, key, net, splits, done)
        if done.first:  # the report says how long it took, so each process would write another
            _keep(path, *finished)
    return finished


def _finished(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Weights and report under this path, or None if they are not there or damaged."""
    report = path.with_suffix(".json")
    if not is_intact(path, report):
        return None
    try:
        return load_file(path), json.loads(report.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError):  # damaged before there were seals
        return None


def _report(
    model: Architecture, seed: int, key: str, net: nn.Module, splits: dict[str, Split], fit: Fit
) -> dict[str, Any]:
    """What is known of a trained net, which is told in a line, too."""
    accuracies = {name: accuracy(net, split) for name, split in splits.items()}
    words = ", ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
    logger.info("%s seed %d: accuracy on %s after %.0f s", model.name, seed, words, fit.seconds)
    return {
        "accuracy": accuracies,
        "history": fit.history,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "seconds": fit.seconds,
        "model": model.name,
        "kind": model.kind,
        "seed": seed,
        "key": key,
    }


def _keep(path: Path, weights: dict[str, Tensor], report: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={"key": report["key"], "kind": report["kind"]})
    write_json(path.with_suffix(".json"), report)
    seal(path, path.with_suffix(".json"))


@torch.no_grad()
def accuracy(net: nn.Module, split: Split, *, batch_size: int = 500) -> float:
    """Share of a split's images that the net predicts right."""
    net.eval()
    device = next(net.parameters()).device
    correct = 0
    for inputs, labels in zip(
        torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size), strict=True
    ):
        correct += int((net(inputs.to(device)).argmax(1).cpu() == labels).sum())
    return correct / len(split.labels)
