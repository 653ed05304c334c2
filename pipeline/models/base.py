"""The parts that all architectures share: stem, residual function, head, and where nfe is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.fields import PositiveInt


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Width shared by stem, block and head.

    Attributes:
        channels: feature maps everywhere behind the stem's first convolution.
        groups: groups of every GroupNorm; divides ``channels``.
    """

    channels: PositiveInt
    groups: PositiveInt

    def __post_init__(self) -> None:
        if self.channels % self.groups:
            raise ValueError(f"groups: must divide channels ({self.channels})")


class Normalise(nn.Module):
    """[0, 1] to [-1, 1]. Models normalise inside, so that the attack space is always [0, 1]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 - 1


class Stem(nn.Sequential):
    """(B, C, 28, 28) in [0, 1] to (B, channels, 6, 6): three convolutions, two with stride 2 (Chen et al. 2018)."""

    def __init__(self, in_channels: int, config: BlockConfig) -> None:
        width = config.channels
        super().__init__(
            Normalise(),
            nn.Conv2d(in_channels, width, 3),
            nn.GroupNorm(config.groups, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.GroupNorm(config.groups, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
        )


class Head(nn.Sequential):
    """(B, channels, H, W) to logits (B, n_classes): GroupNorm, ReLU, global average, linear."""

    def __init__(self, n_classes: int, config: BlockConfig) -> None:
        super().__init__(
            nn.GroupNorm(config.groups, config.channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(config.channels, n_classes),
        )


class ResidualFunction(nn.Module):
    """f(z) = conv(relu(norm(conv(relu(norm(z)))))), shape-preserving: every architecture's block (He et al. 2016)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm1, self.norm2 = (nn.GroupNorm(config.groups, width) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        hidden: Tensor = self.conv1(F.relu(self.norm1(z), inplace=True))
        shift: Tensor = self.conv2(F.relu(self.norm2(hidden), inplace=True))
        return shift


class ResidualBlock(nn.Module):
    """z + f(z)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.function = ResidualFunction(config)

    def forward(self, z: Tensor) -> Tensor:
        shift: Tensor = self.function(z)
        return z + shift


def assemble(
    make_body: Callable[[], nn.Module], config: BlockConfig, *, in_shape: tuple[int, int, int], n_classes: int
) -> nn.Module:
    """Stem, body, head: (B, *in_shape) in [0, 1] to logits (B, n_classes).

    The body is made last, so that under one seed all architectures start from the same stem and the same head.
    """
    stem, head = Stem(in_shape[0], config), Head(n_classes, config)
    return nn.Sequential(stem, make_body(), head)
