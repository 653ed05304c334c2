"""The CNN of Yan et al. 2020 ("On Robustness of Neural Ordinary Differential Equations"): one residual block.

Stem conv 3×3 and conv 4×4 with stride 2, each with GroupNorm and ReLU; the block; GroupNorm, ReLU, global average and a
linear layer. ``channels`` is 64 in the paper. Its ODE is ``yan2020_ode``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pipeline.models.base import BlockConfig, Head, Normalise
from pipeline.models.resnet import ResidualBlock

Config = BlockConfig


class Stem(nn.Sequential):
    """(B, C, 28, 28) in [0, 1] to (B, channels, 13, 13)."""

    def __init__(self, in_channels: int, config: BlockConfig) -> None:
        width = config.channels
        super().__init__(
            Normalise(),
            nn.Conv2d(in_channels, width, 3),
            nn.GroupNorm(config.groups, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.GroupNorm(config.groups, width),
            nn.ReLU(),
        )


def around(
    make_body: Callable[[], nn.Module], config: BlockConfig, *, in_shape: tuple[int, int, int], n_classes: int
) -> nn.Module:
    """Stem, body, head; the body is made last, so that under one seed all start from the same stem and head."""
    stem, head = Stem(in_shape[0], config), Head(n_classes, config)
    return nn.Sequential(stem, make_body(), head)


def build(config: BlockConfig, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return around(lambda: ResidualBlock(config), config, in_shape=in_shape, n_classes=n_classes)
