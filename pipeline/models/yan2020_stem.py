"""Stem and head of Yan et al. 2020. Not a component: the paper's two architectures share them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pipeline.models.base import BlockConfig, Head, Normalise


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
