"""The training run of one net by Lightning, continued where it was killed, on any number of devices."""

from __future__ import annotations

import logging
import pickle
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from pipeline.classifier import Classifier, batches
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.settings import ComputeConfig, TrainConfig
from pipeline.trainer import make_trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """What came of a training run.

    Attributes:
        weights: of the epoch with the least validation loss.
        history: the metrics of every epoch.
        seconds: that this process trained.
        first: whether this process is the first of all.
    """

    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    seconds: float
    first: bool


def fit(
    net: nn.Module,
    train: TrainConfig,
    compute: ComputeConfig,
    seed: int,
    splits: dict[str, Split],
    folder: Path,
    watchers: Sequence[Callback],
) -> Fit:
    """Train ``net`` and leave it with the weights that are returned; ``folder`` keeps what a killed run goes on from.

    Raises:
        TrainingDivergedError: the loss is not finite.
    """
    steps = train.epochs * (len(splits["train"].labels) // train.batch_size)
    classifier = Classifier(net, train, seed=seed, steps=steps)
    best = ModelCheckpoint(
        folder, filename="best", monitor="validation_loss", save_last=True, enable_version_counter=False
    )
    history = History()
    trainer = make_trainer(
        compute,
        max_epochs=train.epochs,
        precision=train.precision,
        gradient_clip_val=train.gradient_clip,
        num_sanity_val_steps=0,
        callbacks=[best, history, *watchers],
    )
    resume = _resumable(folder)
    started = time.perf_counter()
    trainer.fit(
        classifier,
        datamodule=Batches(splits, train.batch_size, seed),
        ckpt_path=resume,
        weights_only=True,
    )
    seconds = time.perf_counter() - started
    state = torch.load(best.best_model_path, weights_only=True, map_location="cpu")["state_dict"]
    weights = {name.removeprefix("net."): tensor.contiguous() for name, tensor in state.items()}
    net.load_state_dict(weights)
    return Fit(weights, history.epochs, seconds, trainer.is_global_zero)


def _resumable(folder: Path) -> Path | None:
    """The checkpoint to go on from, or None: there is none, or what is there cannot be believed."""
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    if not last.is_file():
        return None
    try:
        for path in (last, best):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # torch.load compares no checksums
                    raise zipfile.BadZipFile(f"{path.name} has changed")
            torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        logger.warning("%s: not usable, training starts anew (%s)", folder, " ".join(str(error).split())[:120])
        return None
    return last


class Batches(pl.LightningDataModule):
    """Loaders made when the rank is known."""

    def __init__(self, splits: dict[str, Split], batch_size: int, seed: int) -> None:
        super().__init__()
        self.splits, self.batch_size, self.seed = splits, batch_size, seed

    def train_dataloader(self) -> Any:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        return self._loader("validation", shuffle=False)

    def _loader(self, name: str, *, shuffle: bool) -> Any:
        assert self.trainer is not None
        ranks = self.trainer.world_size
        if shuffle and self.batch_size % ranks:
            raise UserError(
                f"params.yaml: train.batch_size is {self.batch_size}, which the {ranks} processes of compute cannot "
                "share evenly; take a multiple"
            )
        return batches(
            self.splits[name],
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            rank=self.trainer.global_rank,
            world_size=ranks,
        )


class History(Callback):
    """Metrics of every epoch, a line each, kept in the checkpoint so that a resumed run knows its past."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_start(self, _trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first, self.progress = pl_module.current_epoch, Progress("training")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        names = ("train_loss", "validation_loss", "validation_accuracy")
        metrics = {name: float(trainer.callback_metrics[name]) for name in names}
        self.epochs.append({"epoch": pl_module.current_epoch} | metrics)
        if trainer.is_global_zero:
            text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
            epoch, epochs = pl_module.current_epoch + 1, trainer.max_epochs or 0
            left = self.progress.left((epoch - self.first) / (epochs - self.first))
            logger.info("epoch %d/%d: %s, %s", epoch, epochs, text, left)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
