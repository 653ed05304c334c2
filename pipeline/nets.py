"""Nets: untrained by their seed, the key of their training, and trained. Without Lightning, which loads slowly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline import components, provenance
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.files import digest, sha256
from pipeline.folders import CHECKPOINTS
from pipeline.seeds import derive_seed
from pipeline.settings import Architecture, Component, modules


@dataclass(frozen=True)
class Target:
    """A trained model under attack, and the hash of its weights."""

    model: Component
    seed: int
    net: nn.Module
    weights_sha256: str


def build(model: Component, *, in_shape: tuple[int, int, int], n_classes: int, seed: int) -> nn.Module:
    """The untrained net. Its initial weights depend on the seed alone, so equal parts start equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        net: nn.Module = components.load("models", model.kind).build(
            model.config, in_shape=in_shape, n_classes=n_classes
        )
    return net


def training_key(model: Architecture, card: dict[str, Any], seed: int) -> str:
    """Hash of everything that determines the weights."""
    return digest(
        {
            "model": [model.kind, asdict(model.config)],
            "train": asdict(model.train),
            "data": [card["splits"][name]["sha256"] for name in ("train", "validation")],
            "seed": seed,
            "code": provenance.code_hash(["pipeline.training", model.module, *modules(model.train)]),
            "environment": provenance.environment(),
        }
    )


def load_target(model: Component, trained: str, seed: int, split: Split, n_classes: int) -> Target:
    """A net with the weights of the model ``trained``: itself or, for a variant, another.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another architecture.
    """
    path = CHECKPOINTS / trained / f"seed-{seed}.safetensors"
    net = build(model, in_shape=split.in_shape, n_classes=n_classes, seed=seed)
    try:
        net.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(
            f"{path}: missing, damaged or of another architecture ({' '.join(str(error).split())[:200]}); "
            f"run `dvc repro --force train@{trained}`"
        ) from error
    return Target(model, seed, net.eval(), sha256(path))
