"""Small vector fields in float64 whose flows are known, or can be differentiated in more than one way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MATRIX = torch.tensor([[-0.5, 2.0, 0.3], [-2.0, -0.5, 0.1], [0.2, 0.4, 0.7]], dtype=torch.float64)


class Smooth(nn.Module):
    """f(t, z) = tanh(z Wᵀ + t b): nonlinear, and of time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64, generator=generator))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + t * self.bias)
