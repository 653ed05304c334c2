"""Gaussian noise on a share of the training images (as Yan et al. 2020 train), clipped to [0, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng
from pipeline.defences.noise import Noise, noisy

Config = Noise


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:
    """Mean cross-entropy of the noisy batch."""
    return F.cross_entropy(net(noisy(inputs, config, rng)), labels)
