"""Flow-gradient regularisation (Xia and Li 2021): the loss should not change, to first order, if pixels move a little.

    mean over images of  CE(F(x), y) + weight · Σ over pixels u of |∂CE/∂τ(u)|²  at τ = 0.

With ∇x by central differences, as in ADef, ∂CE/∂τ(u) = Σ over channels of ∂CE/∂x(u) ∇x(u): the bilinear interpolant has
no derivative of its own at the pixels. Here τ is in pixels and CE is the image's own; in the authors' code, as in their
weights, the field is in units of half an image and the loss is the batch's mean, without their random start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import ExampleRng
from pipeline.deform import image_gradient
from pipeline.fields import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Config:
    """Attributes: weight: of the penalty, per squared nat per pixel."""

    weight: PositiveFloat


def loss(net: nn.Module, inputs: Tensor, labels: Tensor, *, config: Config, rng: ExampleRng) -> Tensor:  # noqa: ARG001
    """Mean of cross-entropy and penalty; differentiable in the net's parameters."""
    points = inputs.detach().requires_grad_()
    losses = F.cross_entropy(net(points), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
    along = [(gradient * slope).sum(1) for slope in image_gradient(inputs)]
    penalty = sum(part.square().flatten(1).sum(1) for part in along)
    return (losses + config.weight * penalty).mean()
