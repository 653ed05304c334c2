"""K tied residual blocks z ← z + f(k/K, z)/K: the Euler discretisation of the Neural ODE, as a network of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.fields import PositiveInt
from pipeline.models.base import BlockConfig, assemble
from pipeline.models.vector_field import TimeField


@dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """Attributes: blocks: number K of blocks, all with the same weights."""

    blocks: PositiveInt


class TiedBlocks(nn.Module):
    """K Euler steps of size 1/K from t = 0 to 1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.field = TimeField(config)
        self.blocks = config.blocks

    def forward(self, z: Tensor) -> Tensor:
        field, _ = self.field.bind(z)
        for k in range(self.blocks):
            z = z + field(torch.tensor(k / self.blocks, dtype=z.dtype), z) / self.blocks
        return z


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    return assemble(lambda: TiedBlocks(config), config, in_shape=in_shape, n_classes=n_classes)
