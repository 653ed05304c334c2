"""The CNN of Yan et al. 2020 ("On Robustness of Neural Ordinary Differential Equations"): one residual block.

Stem conv 3×3 and conv 4×4 with stride 2, each with GroupNorm and ReLU; the block; GroupNorm, ReLU, global average and a
linear layer. ``channels`` is 64 in the paper. Its ODE is ``yan2020_ode``.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.base import BlockConfig, ResidualBlock
from pipeline.models.yan2020_stem import around

Config = BlockConfig


def build(config: BlockConfig, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return around(lambda: ResidualBlock(config), config, in_shape=in_shape, n_classes=n_classes)
