"""The two MNIST classifiers of the ADef paper (Alaifari et al. 2019, section 3.1): plain, wide convolutional nets.

They share neither stem nor head with the other architectures and are no control for them: they are here so that ADef's
published success can be checked on its own nets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Attributes: preset: ``mnist_a`` (5×5 convolutions and pooling) or ``mnist_b`` (3×3 convolutions and dropout)."""

    preset: Literal["mnist_a", "mnist_b"]


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes). Sides must be divisible by 4.

    The paper leaves padding and pooling windows open; MNIST-A is padded to keep its size and pooled 2 × 2, as in the
    TensorFlow tutorial of the time, MNIST-B neither, which is the order of layers given.
    """
    channels, height, width = in_shape
    if config.preset == "mnist_a":
        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, n_classes),
        )
    return nn.Sequential(
        nn.Conv2d(channels, 128, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 64, 3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (height - 4) * (width - 4), 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, n_classes),
    )
