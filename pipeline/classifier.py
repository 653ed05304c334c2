"""Training: the one LightningModule, and the data order that any number of devices shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline import components
from pipeline.attacks.base import ExampleRng
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.seeds import derive_seed
from pipeline.settings import TrainConfig


class TrainingDivergedError(UserError):
    """The training loss is not finite; the message says when and what to change."""


class Classifier(pl.LightningModule):
    """Trains any architecture: AdamW, one-cycle schedule, cross-entropy or a defence's loss."""

    def __init__(self, net: nn.Module, train: TrainConfig, *, seed: int, steps: int) -> None:
        super().__init__()
        self.net = net
        self.train_config = train
        self.seed = seed
        self.steps = steps

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(inputs)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _batch_idx: int) -> Tensor:
        # Dropout draws from the global generator: a resumed run must find it where an undisturbed one would.
        torch.manual_seed(derive_seed(self.seed, "step", self.global_step, self.global_rank))
        loss = self._loss(*batch)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"the training loss is {loss.item()} at epoch {self.current_epoch}, step {self.global_step}; "
                "lower train.learning_rate or train.gradient_clip in params.yaml"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.validation_sums = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _batch_idx: int) -> None:
        inputs, labels, _ = batch
        logits = self(inputs).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(1) == labels).sum()
        self.validation_sums += torch.tensor([loss.item(), correct.item(), len(labels)], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        # Sums, not means: the ranks' shares of a batch may differ by one image.
        summed = self.trainer.strategy.reduce(self.validation_sums.to(self.device, torch.float32), reduce_op="sum")
        loss, correct, n = torch.as_tensor(summed).tolist()
        self.log("validation_loss", loss / n)
        self.log("validation_accuracy", correct / n, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.train_config.learning_rate, weight_decay=self.train_config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.train_config.learning_rate, total_steps=self.steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, inputs: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        defence = self.train_config.defence
        if defence is None:
            return F.cross_entropy(self.net(inputs), labels)
        rng = ExampleRng.for_examples(
            indices.tolist(), seed=self.seed, dataset="train", attack=defence.kind, draw=self.current_epoch
        )
        loss: Tensor = components.load("defences", defence.kind).loss(
            self.net, inputs, labels, config=defence.config, rng=rng
        )
        return loss


class IndexedSplit(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A split that serves whole batches: (inputs, labels, indices)."""

    def __init__(self, split: Split) -> None:
        self.inputs, self.labels = split.inputs, split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.labels[chosen], chosen


class GlobalBatches(Sampler[list[int]]):
    """Batches of the whole job; each rank takes its share of every one of them.

    The order depends on (seed, epoch) alone, so a resumed run and a run on other devices see the same batches.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, shuffle: bool, rank: int, world_size: int) -> None:
        self.n, self.batch_size = n, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        # Training drops the incomplete batch: every rank then has the same number of images in every step, and the
        # mean of the ranks' gradients is the gradient of the mean.
        return self.n // self.batch_size if self.shuffle else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.n)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
            order = torch.randperm(self.n, generator=generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size][self.rank :: self.world_size].tolist()


def batches(split: Split, *, batch_size: int, seed: int, shuffle: bool, rank: int, world_size: int) -> DataLoader[Any]:
    """A loader over ``GlobalBatches``."""
    sampler = GlobalBatches(len(split.labels), batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
    return DataLoader(IndexedSplit(split), sampler=sampler, batch_size=None)
