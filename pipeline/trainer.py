"""Lightning's Trainer as this project uses it: the compute section of params.yaml, no side effects, quiet logs."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from pipeline.settings import ComputeConfig


def make_trainer(compute: ComputeConfig, **arguments: Any) -> pl.Trainer:
    """A Trainer on the devices of ``compute``; progress bars only on a terminal.

    ``use_distributed_sampler`` is off: the loaders know their rank, so that no example is padded in or counted twice.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for harmless in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        "predict returned None.*",
        ".*sync_dist=True.*",  # the ranks' sums are added up before they are logged
    ):
        warnings.filterwarnings("ignore", message=harmless)
    return pl.Trainer(
        accelerator=compute.accelerator,
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=compute.strategy,
        use_distributed_sampler=False,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
        default_root_dir=Path.cwd(),
        **arguments,
    )
