"""Objectives that attacks climb, and their gradients, image by image. Not a component: gradient attacks import it.

Objectives rise as an image comes closer to fooling the model, are unbounded, and act on logits (B, K), K ≥ 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.base import Status

Loss = Literal["cross_entropy", "margin"]
Plan = Literal["cross_entropy", "margin", "both"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log Σ_{j≠y} e^{z_j} − z_y, the log-odds against the label, (B,): the cross-entropy without its saturation.

    The cross-entropy is softplus of it. Per image the gradients are therefore parallel, and sign or normalised steps
    identical; but where the model is so sure that 1 − p_y rounds to 0, the cross-entropy's gradient vanishes (and
    would pass for robustness) while this one does not.
    """
    return _others(logits, labels).logsumexp(1) - _own(logits, labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y, (B,): positive iff the model prefers another class (Carlini and Wagner 2017, f_6)."""
    return _others(logits, labels).amax(1) - _own(logits, labels)


def objective(loss: Loss, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """What to ascend, (B,): the loss of the labels or, targeted, minus the loss of the targets."""
    function = {"cross_entropy": cross_entropy, "margin": margin}[loss]
    return function(logits, labels) if targets is None else -function(logits, targets)


def is_fooled(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """(B,) bool: predicted wrongly or, targeted, as the target. Logits that are not finite predict nothing."""
    predictions = logits.argmax(1)
    success = predictions != labels if targets is None else predictions == targets
    return success & logits.isfinite().all(1)


def loss_at(plan: Plan, progress: float) -> Loss:
    """The loss to ascend when this share of the steps is done: ``both`` is one half each.

    The cross-entropy weighs all other classes while it is open which of them is nearest; the margin is what decides.
    """
    if plan == "both":
        return "cross_entropy" if progress < 0.5 else "margin"
    return plan


def value_and_gradient(
    model: nn.Module, points: Tensor, labels: Tensor, targets: Tensor | None, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and one backward: logits (B, K), the objective (B,) and its gradient (B, C, H, W)."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        values = objective(loss, logits, labels, targets)
        (gradient,) = torch.autograd.grad(values.sum(), points)
    return logits.detach(), values.detach(), gradient


def value(
    model: nn.Module, points: Tensor, labels: Tensor, targets: Tensor | None, loss: Loss
) -> tuple[Tensor, Tensor, None]:
    """One forward: logits (B, K), the objective (B,) and no gradient."""
    with torch.no_grad():
        logits = model(points)
        return logits, objective(loss, logits, labels, targets), None


def status_of(logits: Tensor, gradient: Tensor | None) -> Tensor:
    """(B,): NON_FINITE if a logit or a component of the gradient is not finite, STOPPED if the gradient is 0, else OK.

    A gradient of None was not asked for.
    """
    finite = logits.isfinite().all(1)
    status = torch.full_like(finite, Status.OK, dtype=torch.int64)
    if gradient is not None:
        largest = gradient.abs().flatten(1).amax(1)
        finite &= largest.isfinite()
        status.masked_fill_(largest == 0, Status.STOPPED)
    return status.masked_fill_(~finite, Status.NON_FINITE)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf)
