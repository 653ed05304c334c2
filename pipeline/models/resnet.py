"""A residual net with pre-activation blocks (He et al. 2016): K untied blocks z ← z + f_k(z)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pipeline.fields import NonNegativeInt
from pipeline.models.base import BlockConfig, ResidualBlock, assemble


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: blocks: number K of residual blocks, each with weights of its own."""

    blocks: NonNegativeInt


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return assemble(
        lambda: nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks))),
        config,
        in_shape=in_shape,
        n_classes=n_classes,
    )
