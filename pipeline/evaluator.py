"""Attacking through Lightning's Trainer: ranks take whole chunks of examples, climb the strengths, store the rows."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.attacking import AttackRun
from pipeline.climbing import climb
from pipeline.evaluate import Examples, Judged, evaluate, join, predict
from pipeline.parts import Parts
from pipeline.progress import Progress
from pipeline.settings import ComputeConfig
from pipeline.trainer import make_trainer

logger = logging.getLogger(__name__)


def attack(run: AttackRun, compute: ComputeConfig) -> None:
    """Attack what the run's store lacks, on all ranks; every finished unit is stored at once."""
    run.store.forget_crashed()
    started = time.perf_counter()
    trainer = make_trainer(compute, inference_mode=False)
    parts = Parts(compute.batch_size, whole=run.coupled)
    trainer.predict(Evaluator(run, parts), return_predictions=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        logger.info("%s, %.1f s", run.summary(), time.perf_counter() - started)


class Evaluator(pl.LightningModule):
    """``predict`` fills the row store of an attack on a trained model, and returns nothing."""

    def __init__(self, run: AttackRun, parts: Parts) -> None:
        super().__init__()
        self.model = run.target.net.requires_grad_(False)  # only inputs need gradients: weights' would be wasted work
        self.run, self.parts = run, parts
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no chunk

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's chunks; a rank without chunks has nothing to do and writes nothing."""
        mine = range(self.trainer.global_rank, len(self.run.chunks), self.trainer.world_size)
        return DataLoader(self.run.chunks, sampler=mine, batch_size=None)

    def on_predict_start(self) -> None:
        of_rank = range(self.trainer.global_rank, len(self.run.chunks), self.trainer.world_size)
        self.progress = Progress(self.run.name, len(of_rank))

    def predict_step(self, batch: tuple[int, Examples], batch_idx: int) -> None:
        chunk, examples = batch
        # Not needed if the store has it all.
        clean_logits = functools.cache(lambda: torch.cat(self.parts.each(self._predict, examples)))

        def attack(epsilon: float | None, some: Examples) -> Judged:
            logits = clean_logits()[[examples.indices.index(index) for index in some.indices]]
            judged = self._attack(epsilon, some, logits)
            if self.trainer.is_global_zero:
                self.progress.reach(batch_idx + (self.run.epsilons.index(epsilon) + 1) / len(self.run.epsilons))
            return judged

        with torch.enable_grad():
            climb(chunk, examples, self.run.store, epsilons=self.run.epsilons, climbs=self.run.climbs, attack=attack)

    def _predict(self, examples: Examples) -> Tensor:
        return predict(self.model, examples)

    def _attack(self, epsilon: float | None, examples: Examples, clean_logits: Tensor) -> Judged:
        of_example = dict(zip(examples.indices, clean_logits, strict=True))

        def attack(part: Examples) -> Judged:
            logits = torch.stack([of_example[index] for index in part.indices])
            return evaluate(self.model, part, self.run.cell, epsilon=epsilon, clean_logits=logits)

        return join(self.parts.each(attack, examples))

    def transfer_batch_to_device(
        self, batch: tuple[int, Examples], device: torch.device, _dataloader_idx: int
    ) -> tuple[int, Examples]:
        chunk, examples = batch
        inputs, labels = examples.inputs.to(device), examples.labels.to(device)
        return chunk, Examples(examples.indices, inputs, labels, examples.sha256)
