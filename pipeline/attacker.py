"""What attacks: chunk by chunk in this process or, over several, through ``pipeline.evaluator``."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.attacking import AttackRun
from pipeline.climbing import Chunk, climb
from pipeline.evaluate import Examples, Judged, evaluate, join, predict
from pipeline.parts import Parts
from pipeline.progress import Progress
from pipeline.settings import ComputeConfig

logger = logging.getLogger(__name__)


def attack(run: AttackRun, compute: ComputeConfig) -> None:
    """Attack what the run's store lacks, on all ranks; every finished unit is stored at once."""
    run.store.forget_crashed()
    started = time.perf_counter()
    if _attack(run, compute):
        logger.info("%s, %.1f s", run.summary(), time.perf_counter() - started)


def _attack(run: AttackRun, compute: ComputeConfig) -> bool:
    attacker = Attacker(run, Parts(compute.batch_size, whole=run.coupled))
    device = single_device(compute)
    if device is None:
        from pipeline.evaluator import spread  # Lightning loads for seconds, which one process need not wait for

        return spread(run.target.net, run.chunks, attacker.step, compute)
    run.target.net.to(device)
    for i in range(len(run.chunks)):
        chunk, examples = run.chunks[i]
        attacker.step((chunk, examples.to(device)), i, len(run.chunks))
    return True


def single_device(compute: ComputeConfig) -> torch.device | None:
    """The device, if there is one process with one CPU or CUDA device; None if Lightning has to find that out."""
    started_many = any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if started_many or compute.devices not in (1, "1") or compute.num_nodes != 1 or compute.strategy != "auto":
        return None
    if compute.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if compute.accelerator == "cpu" or (compute.accelerator == "auto" and not torch.accelerator.is_available()):
        return torch.device("cpu")
    return None


class Attacker:
    """Attacks what a run's store lacks of a chunk, and says now and then how far it is."""

    def __init__(self, run: AttackRun, parts: Parts) -> None:
        self.run, self.parts = run, parts
        self.model = run.target.net.requires_grad_(False)  # only inputs need gradients: weights' would be wasted work
        self.progress = Progress(run.name)

    def step(self, chunk: Chunk, i: int, n: int) -> None:
        """Of a chunk, the i-th of the n that this process takes, all strengths."""
        number, examples = chunk
        clean_logits = functools.cache(lambda: self._clean_logits(examples))  # not needed if the store has it all

        def attack(epsilon: float | None, some: Examples) -> Judged:
            judged = self._judged(epsilon, some, clean_logits())
            self.progress.reach((i + (self.run.epsilons.index(epsilon) + 1) / len(self.run.epsilons)) / n)
            return judged

        climb(number, examples, self.run.store, epsilons=self.run.epsilons, climbs=self.run.climbs, attack=attack)

    def _clean_logits(self, examples: Examples) -> dict[int, Tensor]:
        """(K,) of every example, by its index."""
        logits = torch.cat(self.parts.each(functools.partial(predict, self.model), examples))
        return dict(zip(examples.indices, logits, strict=True))

    def _judged(self, epsilon: float | None, examples: Examples, clean_logits: Mapping[int, Tensor]) -> Judged:
        def attack(part: Examples) -> Judged:
            logits = torch.stack([clean_logits[index] for index in part.indices])
            return evaluate(self.model, part, self.run.cell, epsilon=epsilon, clean_logits=logits)

        return join(self.parts.each(attack, examples))
