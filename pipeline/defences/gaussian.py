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
        std: standard deviation of the noise, in [0, 1] units of pixel values.
        share: of the images that get it.
    """

    std: PositiveFloat
    share: UnitFloat


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the noisy batch."""
    chosen = rng.uniform((1, 1, 1), like=inputs) < config.share
    noise = config.std * rng.normal(inputs.shape[1:], like=inputs)
    return F.cross_entropy(net((inputs + noise * chosen).clamp(0, 1)), labels)
