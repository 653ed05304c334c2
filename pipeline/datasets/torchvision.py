"""torchvision's MNIST and FashionMNIST with their official test sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.datasets.base import DataError, Dataset, Split, stratified_split
from pipeline.fields import NonNegativeInt, PositiveInt

_LICENCES = {"MNIST": "CC BY-SA 3.0", "FashionMNIST": "MIT"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """A torchvision data set.

    Attributes:
        name: torchvision's class.
        folder: where its files lie or are downloaded to (``<folder>/<name>/raw``).
        split_seed: decides which training images validate.
        validation: images held out of the official training set.
    """

    name: Literal["MNIST", "FashionMNIST"]
    folder: str
    split_seed: NonNegativeInt
    validation: PositiveInt


def load(config: Config) -> Dataset:
    """The official training set without a stratified validation part, that part, and the official test set.

    Raises:
        DataError: the files are neither there nor to be downloaded, or ``validation`` leaves nothing to train on.
    """
    images, labels = _official(config, train=True)
    if config.validation >= len(labels):
        raise DataError(f"dataset.validation: {config.validation} leaves nothing of the {len(labels)} training images")
    sizes = {"validation": config.validation, "train": len(labels) - config.validation}
    parts = stratified_split(labels, sizes, config.split_seed)
    test_images, test_labels = _official(config, train=False)
    return Dataset(
        splits={
            "train": Split(images[parts["train"]], labels[parts["train"]]),
            "validation": Split(images[parts["validation"]], labels[parts["validation"]]),
            "test": Split(test_images, test_labels),
        },
        n_classes=10,
        source=f"torchvision.datasets.{config.name}",
        licence=_LICENCES[config.name],
    )


def _official(config: Config, *, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    import torchvision.datasets  # a second of import: only the data stage pays

    source: Any = getattr(torchvision.datasets, config.name)
    try:
        dataset = source(Path(config.folder), train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"dataset: {config.name} is not complete in {Path(config.folder) / config.name / 'raw'} and cannot be "
            f"downloaded ({' '.join(str(error).split())}). Put its IDX files there, connect to the internet, or set "
            "dataset.kind to mnist5k, the embedded set"
        ) from error
    return dataset.data.unsqueeze(1).contiguous(), dataset.targets.to(torch.int64)
