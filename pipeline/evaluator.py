"""An attack's chunks spread over devices and hosts by Lightning's Trainer: each is taken once, by one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.climbing import Chunk, Chunks
from pipeline.settings import ComputeConfig
from pipeline.trainer import make_trainer

Step = Callable[[Chunk, int, int], None]


def spread(model: nn.Module, chunks: Chunks, step: Step, compute: ComputeConfig) -> bool:
    """Call ``step(chunk, i, n)`` with each chunk on the device of some rank, where it is the i-th of n.

    Returns:
        Whether this process is the first of all; by then all chunks are done.
    """
    trainer = make_trainer(compute, inference_mode=False)
    trainer.predict(Evaluator(model, chunks, step), return_predictions=False)
    trainer.strategy.barrier()
    return bool(trainer.is_global_zero)


class Evaluator(pl.LightningModule):
    """A model that Lightning brings to the devices; ``predict`` calls ``step`` and returns nothing."""

    def __init__(self, model: nn.Module, chunks: Chunks, step: Step) -> None:
        super().__init__()
        self.model, self.chunks, self.step = model, chunks, step
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no chunk

    @property
    def of_rank(self) -> range:
        """This rank's chunks; a rank without chunks has nothing to do and writes nothing."""
        return range(self.trainer.global_rank, len(self.chunks), self.trainer.world_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.chunks, sampler=self.of_rank, batch_size=None)

    def predict_step(self, batch: Chunk, batch_idx: int) -> None:
        with torch.enable_grad():
            self.step(batch, batch_idx, len(self.of_rank))

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, _dataloader_idx: int) -> Chunk:
        return batch[0], batch[1].to(device)
