"""The time-conditioned vector field that euler_net and neural_ode share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import BlockConfig


class TimeConv2d(nn.Module):
    """3×3 convolution of a state joined with a constant channel of value t (Chen et al. 2018), without joining.

    conv([t, z]) = conv_z(z) + t·conv_t(1): the time channel contributes t times a map that depends on the weights
    alone, so it is computed once per solve and not once per evaluation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.state = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        bound = (9 * (channels + 1)) ** -0.5  # the default initialisation of the joint convolution
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def time_map(self, z: Tensor) -> Tensor:
        """conv_t(1), (1, channels, H, W) for a state z of shape (B, channels, H, W)."""
        result: Tensor = self.time(torch.ones_like(z[:1, :1]))
        return result

    def forward(self, t: Tensor, z: Tensor, time_map: Tensor) -> Tensor:
        result: Tensor = self.state(z)
        # The convolution's result is nobody else's: adding in place saves a pass over memory.
        return result.add_(t * time_map)


class TimeField(nn.Module):
    """f(t, z), (B, channels, H, W) to the same shape: ``ResidualFunction`` with time-conditioned convolutions."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm1, self.norm2 = (nn.GroupNorm(config.groups, width) for _ in range(2))
        self.conv1, self.conv2 = (TimeConv2d(width) for _ in range(2))

    def bind(self, z: Tensor) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, ...]]:
        """The field for states of z's shape, and every tensor besides (t, z) that it reads.

        The second is what the adjoint method must know: the time maps stand there as inputs of their own, and
        autograd carries their gradients on to the weights they were made from.
        """
        map1, map2 = self.conv1.time_map(z), self.conv2.time_map(z)

        def field(t: Tensor, state: Tensor) -> Tensor:
            hidden = self.conv1(t, F.relu(self.norm1(state), inplace=True), map1)
            velocity: Tensor = self.conv2(t, F.relu(self.norm2(hidden), inplace=True), map2)
            return velocity

        states = [p for name, p in self.named_parameters() if not name.endswith("time.weight")]
        return field, (*states, map1, map2)
