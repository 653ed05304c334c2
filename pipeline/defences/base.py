"""What a defence is: a module ``pipeline/defences/<kind>.py`` with

``Config``
    A frozen keyword-only dataclass; nothing that moves a result has a default.
``loss(net, inputs, labels, *, config, rng) -> Tensor``
    The mean training loss of a batch, a scalar to differentiate in the net's parameters. ``net`` maps (B, C, H, W) in
    [0, 1] to logits (B, K) and is left in the mode in which it came; randomness is the examples' own
    (``pipeline.attacks.base.ExampleRng``, fresh in every epoch), so that it depends on no device count.

The default, ``train.defence: null``, is the cross-entropy of the images as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The net as a function of its input, without dropout; then in the mode in which it was."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def loss_with(net: nn.Module, inputs: Tensor, labels: Tensor, chosen: Tensor, adv_inputs: Tensor) -> Tensor:
    """Mean cross-entropy of a batch whose ``chosen`` images, a mask (B,), are replaced by ``adv_inputs``."""
    mixed = inputs.clone()
    mixed[chosen] = adv_inputs
    return F.cross_entropy(net(mixed), labels)
