"""A small convolutional net trained on the embedded digits in about two seconds, for attacks to be compared on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.datasets.base import Split


class Victim(NamedTuple):
    """A net, and 100 held-out images (B, 1, 28, 28) with labels that it gets right."""

    net: nn.Module
    inputs: Tensor
    labels: Tensor


@pytest.fixture(scope="session")
def victim(digits: Split) -> Victim:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    order = torch.randperm(len(digits.labels))
    inputs, labels = digits.inputs[order], digits.labels[order]
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for batch in torch.randperm(4000).repeat(4).view(-1, 64).unbind():
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.eval().requires_grad_(False)
    held_out = slice(4000, 4200)
    right = (net(inputs[held_out]).argmax(1) == labels[held_out]).nonzero().flatten()[:100] + 4000
    return Victim(net, inputs[right], labels[right])
