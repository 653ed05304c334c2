"""What a data set is, and how it lies on disk: one safetensors file a split and a card with their checksums."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import atomic_directory, sha256, write_json

SPLITS = ("train", "validation", "test")
CARD = "card.json"


class DataError(UserError):
    """One line for the user: what is wrong with the data and what to do."""


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]: the attack space."""
        return self.images.float() / 255

    @property
    def in_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Dataset:
    """Three splits and where they come from."""

    splits: dict[str, Split]
    n_classes: int
    source: str
    licence: str


def stratified_split(labels: Tensor, sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Disjoint index sets of the given sizes, every class represented as evenly as the sizes allow.

    Each class is shuffled by ``seed``; classes then take turns, so any prefix of a split is balanced, too.

    Raises:
        DataError: the sizes exceed the data.
    """
    if sum(sizes.values()) > len(labels):
        raise DataError(
            f"dataset: train + validation + test = {sum(sizes.values())} exceeds the {len(labels)} images there are"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    turn = torch.empty_like(labels)
    for label in torch.unique(labels):
        members = (labels[order] == label).nonzero().flatten()
        turn[members] = torch.arange(len(members))
    dealt = order[torch.argsort(turn, stable=True)]
    parts = torch.split(dealt[: sum(sizes.values())], list(sizes.values()))
    return dict(zip(sizes, parts, strict=True))


def write_dataset(dataset: Dataset, folder: Path, *, kind: str) -> None:
    """All splits and the card, or nothing."""
    with atomic_directory(folder) as temporary:
        card: dict[str, Any] = {
            "kind": kind,
            "source": dataset.source,
            "licence": dataset.licence,
            "n_classes": dataset.n_classes,
            "splits": {},
        }
        for name, split in dataset.splits.items():
            path = temporary / f"{name}.safetensors"
            save_file({"images": split.images.contiguous(), "labels": split.labels.contiguous()}, path)
            card["splits"][name] = {
                "sha256": sha256(path),
                "shape": list(split.images.shape),
                "range": [int(split.images.min()), int(split.images.max())],
                "per_class": torch.bincount(split.labels, minlength=dataset.n_classes).tolist(),
            }
        write_json(temporary / CARD, card)


def read_card(folder: Path) -> dict[str, Any]:
    """The data card.

    Raises:
        DataError: there is none, or it is not readable.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder / CARD}: missing; run `dvc repro data`") from error
    except ValueError as error:
        raise DataError(f"{folder / CARD}: not readable; run `dvc repro --force data`") from error
    return card


def read_split(folder: Path, name: str) -> Split:
    """A split, verified against the card.

    Raises:
        DataError: a file is missing or not the one that the card describes.
    """
    card = read_card(folder)
    path = folder / f"{name}.safetensors"
    if not path.is_file() or sha256(path) != card["splits"][name]["sha256"]:
        raise DataError(f"{path}: missing or damaged (SHA-256 differs from {CARD}); run `dvc repro --force data`")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not readable ({error}); run `dvc repro --force data`") from error
    return Split(tensors["images"], tensors["labels"])


def input_sha256(image: Tensor) -> str:
    """SHA-256 of an example's uint8 pixels."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
