"""Gaussian noise on a share of the training images (as Yan et al. 2020 train), clipped to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng
from pipeline.fields import PositiveFloat, UnitFloat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        std: standard deviation of the noise, in [0, 1] units of pixel values; of several, each image gets one.
        share: of the images that get it.
    """

    std: PositiveFloat | tuple[PositiveFloat, ...]
    share: UnitFloat

    def __post_init__(self) -> None:
        if self.std == ():
            raise ValueError("std: is empty; name at least one")


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the noisy batch."""
    return F.cross_entropy(net(noisy(inputs, config, rng)), labels)


def noisy(inputs: Tensor, config: Config, rng: ExampleRng) -> Tensor:
    """The images, a share of them with noise, in [0, 1]."""
    chosen = rng.uniform((1, 1, 1), like=inputs) < config.share
    noise = _std(config, rng, inputs) * rng.normal(inputs.shape[1:], like=inputs)
    return (inputs + noise * chosen).clamp(0, 1)


def _std(config: Config, rng: ExampleRng, inputs: Tensor) -> Tensor | float:
    """Each image's standard deviation, (B, 1, 1, 1), or everybody's."""
    if isinstance(config.std, float):
        return config.std
    drawn = (rng.uniform((1, 1, 1), like=inputs) * len(config.std)).long().clamp_max(len(config.std) - 1)
    return inputs.new_tensor(config.std)[drawn]
