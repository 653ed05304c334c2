"""Nets that look robust and are not, on the weights of sound ones: each hides what an attack by gradients needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ode import SolverConfig


def _coupled(tolerance: float, gradient: Literal["backprop", "adjoint"]) -> SolverConfig:
    return SolverConfig(
        method="dopri5", rtol=tolerance, atol=tolerance, max_steps=100, control="batch", gradient=gradient
    )


class Wrapped(nn.Module):
    """A net with something before and something after it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.net(self.before(inputs)))


class QuantisedStem(nn.Module):
    """Activations in steps of ``width``, with ripples that only a gradient sees: shattered (Athalye et al. 2018)."""

    def __init__(self, net: nn.Module, width: float = 0.25) -> None:
        super().__init__()
        self.stem, self.rest, self.width = net[0], net[1:], width  # type: ignore[index]

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.stem(inputs)
        ripples = (2 * math.pi * 1e3 * z).sin() * 1e-4
        logits: Tensor = self.rest((z / self.width).round() * self.width + ripples)
        return logits


class _Scrambled(torch.autograd.Function):
    """The identity, whose gradient is noise."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:  # noqa: ARG004
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return torch.randn_like(gradients[0]) * gradients[0].abs().mean()


class DropoutAtTest(nn.Module):
    """Features dropped at random behind the stem, at evaluation, too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.stem, self.rest = net[0], net[1:]  # type: ignore[index]

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.rest(F.dropout(self.stem(inputs), 0.1, training=True))
        return logits


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Defect:
    """A planted defect.

    Attributes:
        plant: from a sound net; None where the solver is the defect.
        alarms: of which at least one must be raised.
        solver: in place of the Neural ODE's own.
        held_out: whether it had no say in the thresholds.
    """

    plant: Callable[[nn.Module], nn.Module] | None
    alarms: tuple[str, ...]
    solver: SolverConfig | None = None
    held_out: bool = False


DEFECTS: dict[str, Defect] = {
    "quantised activations": Defect(QuantisedStem, ("no ascent",)),
    "logits × 1e4": Defect(lambda net: Wrapped(net, _same, lambda logits: 1e4 * logits), ("scale",)),
    "random input": Defect(lambda net: Wrapped(net, lambda x: x + 0.05 * torch.randn_like(x), _same), ("random",)),
    "zero gradient": Defect(lambda net: Wrapped(net, lambda x: x.detach() + 0 * x, _same), ("dead gradient",)),
    "adjoint at tolerance 1": Defect(None, ("adjoint",), _coupled(1.0, "adjoint")),
    "batch-coupled": Defect(None, ("batch",), _coupled(0.1, "backprop")),
    "probabilities": Defect(lambda net: Wrapped(net, _same, lambda z: z.softmax(1)), ("no logits",), held_out=True),
    "scrambled gradient": Defect(lambda net: Wrapped(net, _Scrambled.apply, _same), ("no ascent",), held_out=True),
    "clipped logits": Defect(lambda net: Wrapped(net, _same, lambda z: z.clamp(-1, 1)), ("clipped",), held_out=True),
    "dropout at test": Defect(DropoutAtTest, ("random",), held_out=True),
    "eight grey levels": Defect(
        lambda net: Wrapped(net, lambda x: (7 * x).round() / 7, _same), ("dead gradient",), held_out=True
    ),
}
