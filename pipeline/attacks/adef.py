"""ADef: a small deformation that changes the label, by linearised steps (Alaifari, Alberti, Gauksson, ICLR 2019).

A step is the smallest field (before smoothing) that would bring a candidate label k level with the prediction l if
logits and image were linear. With f = F_k(y) − F_l(y), α = Σ_channels ∇_y f · ∇y and G a Gaussian filter it is

    τ_k = −f G(Gα) / Σ|Gα|².

There is no control of the step: where the linearisation fails, the field grows far beyond a small deformation. An image
that withstands ADef need not be robust; attacks that ascend on the field are much stronger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status
from pipeline.attacks.losses import is_fooled
from pipeline.deform import deformation_size, image_gradient, smooth, warp
from pipeline.fields import NonNegativeFloat, PositiveInt, PositiveOrInfinite, Range

GOAL: Goal = "minimal"
NORMS: tuple[Norm, ...] = ("deformation",)

BOUNDARY = 1e-6  # an image lies on a boundary if its second logit is that close to the first
STANDSTILL = 1e-6  # pixels; a field that changes by no more does not change


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
    """The paper's setting for MNIST: 9 candidates, sigma 0.5, 100 iterations, no bound, overshoot 1.2.

    Attributes:
        norm: ‖τ‖_T = max over pixels of |τ|.
        candidates: number of labels tried in every step: those that the model ranks second, third, ... on the original
            image; 9 (or more) are all others on MNIST. With targets, the target is the only candidate.
        sigma: width of the Gaussian filter in pixels; 0 is no smoothing.
        max_iter: most steps per image.
        max_norm: pixels; an image is given up before a step that would take its field to this size.
        overshoot: η, by which the fields of images that were not fooled, or lie on a boundary, are stretched in the end
            (to ``max_norm`` at most).
    """

    norm: Literal["deformation"]
    candidates: PositiveInt
    sigma: NonNegativeFloat
    max_iter: PositiveInt
    max_norm: PositiveOrInfinite
    overshoot: Annotated[float, Range(ge=1)]


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,  # noqa: ARG001
    config: Config,
    rng: ExampleRng,  # noqa: ARG001
) -> AttackOutput:
    """Deform each image until the model errs or, targeted, says the target. Deterministic; ``epsilon`` means nothing.

    n steps cost an image 2n + 1 forwards and n backwards per candidate, whatever its neighbours do. One that the model
    gets wrong anyway costs one forward and is returned as it came. Failures return the last image and its field.

    Status: STOPPED where the next field would be the same, or as long as ``max_norm``, or (for a zero gradient) have no
    size; BUDGET where the budget ended it; NON_FINITE, with the last field before it, where logits or gradients are not
    finite.
    """
    deformation = inputs.new_zeros(len(inputs), *inputs.shape[-2:], 2)
    status = torch.full_like(labels, Status.OK)
    n_forwards, n_backwards = torch.zeros_like(labels), torch.zeros_like(labels)
    crossed = torch.zeros_like(labels, dtype=torch.bool)
    candidates = None if targets is None else targets[:, None]

    alive, images, fields = torch.arange(len(inputs), device=inputs.device), inputs, deformation
    for iteration in range(config.max_iter + 1):
        with torch.no_grad():
            logits = model(images)
        n_forwards[alive] += 1
        if candidates is None:
            candidates = _runners_up(logits, labels, config.candidates)
        finite = logits.isfinite().all(1)
        fooled = is_fooled(logits, labels[alive], None if targets is None else targets[alive])
        deformation[alive[finite]] = fields[finite]
        status[alive[~finite]] = Status.NON_FINITE
        crossed[alive] = fooled & (logits.topk(2).values.diff().squeeze(1) < -BOUNDARY)
        alive, images, fields = (kept[finite & ~fooled] for kept in (alive, images, fields))
        iterations = _affordable(config, candidates.shape[1])
        if iteration == iterations or not len(alive):
            status[alive] = Status.OK if iterations == config.max_iter else Status.BUDGET
            break

        # Evaluated anew: backwards through the graph of the whole batch would be spent on the images that just ended.
        step = _smallest_step(model, images, fields, candidates[alive], config.sigma)
        n_forwards[alive] += 1
        n_backwards[alive] += candidates.shape[1]
        # The authors' code takes an unchanged ‖τ‖ for an unchanged τ. It thereby also gives up images on which only the
        # longest vector stands still, a few of which would have been fooled.
        stops = (step.size >= config.max_norm) | (deformation_size(step.deformation - fields) <= STANDSTILL)
        status[alive[stops]] = Status.STOPPED
        status[alive[~step.finite]] = Status.NON_FINITE
        alive, fields = (kept[step.finite & ~stops] for kept in (alive, step.deformation))
        if not len(alive):
            break
        images = warp(inputs[alive], fields).clamp(0, 1)

    stretch = torch.clamp(config.max_norm / deformation_size(deformation), max=config.overshoot)
    stretch = torch.where(crossed | (status == Status.NON_FINITE), 1, stretch)
    deformation = deformation * stretch[:, None, None, None]
    deformed = deformation.flatten(1).any(1)[:, None, None, None]
    return AttackOutput(
        adv_inputs=torch.where(deformed, warp(inputs, deformation).clamp(0, 1), inputs),
        deformation=deformation,
        n_forwards=n_forwards,
        n_backwards=n_backwards,
        status=status,
    )


def _affordable(config: Config, n_candidates: int) -> int:
    """Iterations within the budget: each is two forwards and a backward per candidate, the last look one forward."""
    if config.budget is None:
        return config.max_iter
    return min(config.max_iter, (config.budget - 1) // (2 + n_candidates))


def _runners_up(logits: Tensor, labels: Tensor, number: int) -> Tensor:
    """The ``number`` labels with the highest logits apart from ``labels``, (B, at most K - 1)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(number, logits.shape[1] - 1)).indices


class _Step(NamedTuple):
    """The field after a step (b, H, W, 2), its size (b,) and whether logits and gradients were finite (b,)."""

    deformation: Tensor
    size: Tensor
    finite: Tensor


def _smallest_step(model: nn.Module, images: Tensor, deformation: Tensor, candidates: Tensor, sigma: float) -> _Step:
    """Of τ + τ_k over the candidates (b, K), the field of least size; τ and the size inf where none is finite.

    One forward and K backwards: F_k − F_l is differentiated as one function.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        # l is the label until an untargeted attack ends; a targeted one may pass through a third class.
        gaps = logits.gather(1, candidates) - logits.gather(1, logits.argmax(1, keepdim=True))
        sums = gaps.sum(0).unbind()
    finite = logits.isfinite().all(1)
    best, best_size = deformation, torch.full_like(finite, torch.inf, dtype=images.dtype)
    slopes = image_gradient(images.detach())
    for gap, total in zip(gaps.detach().unbind(1), sums, strict=True):
        (gradient,) = torch.autograd.grad(total, images, retain_graph=total is not sums[-1])
        finite &= gradient.flatten(1).isfinite().all(1)
        alpha = torch.stack([(gradient * slope).sum(1) for slope in slopes], dim=1).movedim(1, -1)
        proposal = deformation + _minimum_norm_step(gap, alpha, sigma)
        size = deformation_size(proposal)
        better = size < best_size  # never for NaN
        best_size = torch.where(better, size, best_size)
        best = torch.where(better[:, None, None, None], proposal, best)
    return _Step(best, best_size, finite)


def _minimum_norm_step(gap: Tensor, alpha: Tensor, sigma: float) -> Tensor:
    """−f G(Gα) / Σ|Gα|² for gaps f (b,) and α (b, H, W, 2): of the G ρ with ⟨α, G ρ⟩ = −f the one of least ‖ρ‖₂.

    NaN or infinite where α is zero.
    """
    once = smooth(alpha, sigma)
    scale = -gap / once.square().sum((1, 2, 3))
    return scale[:, None, None, None] * smooth(once, sigma)
