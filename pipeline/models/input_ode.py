"""The talk's Neural ODE: the state is the image itself, and a linear map of x(t_N) classifies.

Channels of zeros may be added to the image (Dupont et al. 2019): a flow of the image alone is a homeomorphism, which
cannot tear nested classes apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.fields import NonNegativeInt, PositiveInt
from pipeline.models.base import Normalise
from pipeline.models.solved import SolvedBlock
from pipeline.ode import SolverConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        width: feature maps inside the vector field.
        augment: channels of zeros added to the image's.
        solver: the numerical method and how it is differentiated.
        readout: the linear map of x(t_N): ``trained``, or ``fixed`` at its random initial weights.
    """

    width: PositiveInt
    augment: NonNegativeInt
    solver: SolverConfig
    readout: Literal["trained", "fixed"]


def couples_batch(config: Config) -> bool:
    """Whether an image's logits depend on the other images of its batch."""
    return config.solver.couples_batch


class ImageField(nn.Module):
    """f(t, x) = conv(tanh(conv([x, t]))), (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(channels + 1, width, 5, padding=2)
        self.out = nn.Conv2d(width, channels, 5, padding=2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        time = (t * torch.ones_like(x[:, :1])).to(x)
        velocity: Tensor = self.out(torch.tanh(self.into(torch.cat((x, time), dim=1))))
        return velocity


class Flow(SolvedBlock):
    """x(0), with its channels of zeros, to x(1)."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__(config.solver)
        self.augment = config.augment
        self.field = ImageField(channels + config.augment, config.width)

    def forward(self, x: Tensor) -> Tensor:
        start = F.pad(x, (0, 0, 0, 0, 0, self.augment))
        return self.flow(self.field, start, tuple(self.field.parameters()))


def build(config: Config, *, in_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """(B, *in_shape) in [0, 1] to logits (B, n_classes)."""
    channels = in_shape[0] + config.augment
    readout = nn.Linear(channels * math.prod(in_shape[1:]), n_classes)
    if config.readout == "fixed":
        readout.requires_grad_(False)
    return nn.Sequential(Normalise(), Flow(in_shape[0], config), nn.Flatten(), readout)
