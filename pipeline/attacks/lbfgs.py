"""The minimal ℓ2 perturbation by box-constrained L-BFGS (Szegedy et al. 2013, section 4.1), a batch at a time.

For an image x and a target l, L-BFGS minimises

    c ‖r‖₂² + CE(model(x + r), l)    subject to    x + r ∈ [0, 1]ⁿ,

and a search over c (out by ``bracket_factor`` until one c reaches the target and one misses it, then bisection of
log c) finds the largest c, and with it about the smallest ‖r‖₂, that still reaches it.

Every image has its own problem: curvature pairs, active bounds, line search and c. No image waits for another: a round
of the loop evaluates one trial point of each image, wherever its own search stands, and an image that is done leaves.
In the end r is shortened, along itself, to the boundary that the largest c only comes near.
Two things follow from the Hessian 2c I + ∇²CE. Pairs are stored for CE alone, and those of the whole objective are made
when c is known; so they stay valid from one c to the next, and changing c costs no evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import AttackOutput, Budgeted, ExampleRng, Goal, Norm, Status
from pipeline.attacks.losses import is_fooled, objective
from pipeline.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Range

GOAL: Goal = "minimal"
NORMS: tuple[Norm, ...] = ("l2",)

ARMIJO = 1e-4  # share of the decrease promised by the slope that a step must bring
SMALLEST_STEP = 2.0**-10  # a line search that comes to this has met rounding: the solve ends
CURVATURE = 0.1  # a pair is used if sᵀy is at least this share of what c ‖r‖² alone gives it
NEWTON_STEPS = 2  # on the box-constrained model; a third does not change the sizes found
SHORTENINGS = 6  # halvings of the last tenth of ‖r‖, a forward each
ROUNDING = 100  # machine epsilons (relative to the largest logit) that another batch may move a logit by


@dataclass(frozen=True, kw_only=True)
class Config(Budgeted):
    """Parameters.

    Attributes:
        norm: of the perturbation.
        targets: the classes tried for an image: all others, the runner-up of the clean logits, or the one given.
            Targets passed to ``attack`` come before this.
        search_steps: values of c tried for each target.
        iterations: most L-BFGS steps for each c.
        memory: curvature pairs kept.
        initial_c: the first c, in units of the one that would just do if the classifier were linear (``_natural_c``),
            so that one number means the same to classifiers with small and with large logits.
        bracket_factor: c is multiplied or divided by this until it is bracketed.
        tolerance: a solve ends when a step lowers the objective by less than this share.
    """

    norm: Literal["l2"]
    targets: Literal["all", "runner_up", "given"]
    search_steps: PositiveInt
    iterations: PositiveInt
    memory: PositiveInt
    initial_c: PositiveFloat
    bracket_factor: Annotated[float, Range(gt=1)]
    tolerance: NonNegativeFloat


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
    """The smallest perturbation that was met at any evaluation. Deterministic; ``epsilon`` means nothing.

    Untargeted, another class than the label is success, whichever it is. Images that are fooled as they come cost one
    forward and are returned. Failures return the image that came closest to the boundary in logits.

    Status: STOPPED where the gradient at the image, without what points out of the box, is zero for every target;
    BUDGET where the budget ended the search; NON_FINITE where logits or gradients are not finite.

    Raises:
        ValueError: ``config.targets`` is "given" and no targets are.
    """
    if targets is None and config.targets == "given":
        raise ValueError("targets: 'given', but none were passed")
    with torch.no_grad():
        logits = model(inputs)
    finite = logits.isfinite().all(1)
    status = torch.full_like(labels, Status.OK).masked_fill_(~finite, Status.NON_FINITE)
    evaluations = torch.zeros_like(labels)
    # A budget is one forward, then evaluations of a forward and a backward each, then the forwards that shorten.
    unlimited = torch.iinfo(labels.dtype).max
    affordable = unlimited if config.budget is None else max(0, (config.budget - 1 - SHORTENINGS) // 2)
    best = _Point.unseen(inputs)

    rows = (finite & ~is_fooled(logits, labels, targets)).nonzero().flatten()
    status[rows] = Status.STOPPED
    for candidates in _candidates(logits, labels, targets, config).unbind(1):
        paid = evaluations[rows] < affordable
        status[rows[~paid]] = Status.BUDGET
        rows = rows[paid]
        known = _take(best, rows)
        to_beat = torch.where(known.lead > 0, known.size, torch.inf)
        task = _Task(
            model,
            inputs[rows],
            labels[rows],
            candidates[rows],
            to_beat,
            allowance=affordable - evaluations[rows],
            targeted=targets is not None,
        )
        found, spent, outcome = _search(task, config)
        evaluations[rows] += spent
        _put(best, rows, _where(_better(found, known), found, known))
        status[rows] = torch.where(outcome == Status.STOPPED, status[rows], outcome)
        rows = rows[outcome != Status.NON_FINITE]
    fooled = (best.size.isfinite() & (best.lead > 0)).nonzero().flatten()
    best.images[fooled] = _shorten(
        model, inputs[fooled], labels[fooled], None if targets is None else targets[fooled], best.images[fooled]
    )
    return AttackOutput(
        adv_inputs=best.images.view_as(inputs),
        deformation=None,
        n_forwards=(evaluations + 1).index_add(0, fooled, torch.full_like(fooled, SHORTENINGS)),
        n_backwards=evaluations,
        status=status,
    )


def _candidates(logits: Tensor, labels: Tensor, targets: Tensor | None, config: Config) -> Tensor:
    """(B, number of targets to try), the most likely first."""
    if targets is not None:
        return targets[:, None]
    ranked = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    return ranked[:, : 1 if config.targets == "runner_up" else -1]


@torch.no_grad()
def _shorten(model: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor | None, images: Tensor) -> Tensor:
    """The images (b, n), which fool the model, moved towards ``inputs`` until just before they do not."""
    originals = inputs.flatten(1)
    step = images - originals
    fails, fools = torch.full_like(step[:, :1], 0.9), torch.ones_like(step[:, :1])
    for _ in range(SHORTENINGS if len(images) else 0):
        share = (fails + fools) / 2
        lead = _lead(model((originals + share * step).view_as(inputs)), labels, targets)
        fails, fools = torch.where(lead[:, None] > 0, fails, share), torch.where(lead[:, None] > 0, share, fools)
    return torch.where(fools < 1, originals + fools * step, images)


def _lead(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """(b,), positive iff these logits fool, and will in another batch too; NaN or -inf if they are not finite."""
    rounding = ROUNDING * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    return objective("margin", logits, labels, targets) - rounding


@dataclass
class _Point:
    """Images and what their evaluation said.

    Attributes:
        images: (b, n) in [0, 1].
        loss: (b,), CE towards the target; inf where logits or gradients are not finite.
        gradient: (b, n), of the loss.
        lead: (b,), positive iff the image fools the model, and will in another batch too: a margin of logits.
        size: (b,), ‖r‖₂.
    """

    images: Tensor
    loss: Tensor
    gradient: Tensor
    lead: Tensor
    size: Tensor

    @classmethod
    def unseen(cls, inputs: Tensor) -> _Point:
        """The images themselves, which any finite evaluation is better than."""
        images = inputs.flatten(1).clone()
        infinite = torch.full_like(images[:, 0], torch.inf)
        return cls(images, infinite, torch.zeros_like(images), -infinite, infinite.clone())

    def objective(self, c: Tensor) -> Tensor:
        """c ‖r‖² + CE, (b,)."""
        return self.loss + c * self.size**2


@dataclass(frozen=True)
class _Task:
    """One target for each of b images (b, C, H, W)."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    candidates: Tensor
    to_beat: Tensor
    allowance: Tensor  # evaluations that each image may still make, at least one
    targeted: bool

    def evaluate(self, rows: Tensor, images: Tensor) -> _Point:
        """One forward and one backward for each of the ``rows``, at ``images`` (len(rows), n)."""
        candidates = self.candidates[rows]
        with torch.enable_grad():
            points = images.detach().view(-1, *self.inputs.shape[1:]).requires_grad_()
            logits = self.model(points)
            losses = F.cross_entropy(logits, candidates, reduction="none")
            (gradient,) = torch.autograd.grad(losses.sum(), points)
        logits, gradient = logits.detach(), gradient.flatten(1)
        lead = _lead(logits, self.labels[rows], candidates if self.targeted else None)
        finite = logits.isfinite().all(1) & gradient.isfinite().all(1)
        return _Point(
            images=images,
            loss=torch.where(finite, losses.detach(), torch.inf),
            gradient=gradient,
            lead=torch.where(finite, lead, -torch.inf),
            size=self.perturbations(rows, images).norm(dim=1),
        )

    def perturbations(self, rows: Tensor, images: Tensor) -> Tensor:
        """r, (len(rows), n)."""
        return images - self.inputs[rows].flatten(1)


@dataclass
class _State:
    """Where the search of every image stands that has not finished it.

    Attributes:
        rows: (b,), of the task.
        point: the iterate of the solve.
        best: the success of least size or, before any, the point of highest lead.
        direction: (b, n), from the iterate; within the box at full length.
        slope: (b,), of the objective along it.
        length: (b,), of the step being tried, in (0, 1].
        c: (b,), with the largest known to reach the target (0: none) and the smallest known to miss it (inf: none).
        iterations, search_steps: (b,), done for this c; values of c done.
        pairs: (b, 2 memory, n), changes of the loss's gradient and then the steps of unit length that made them.
        age: (b, memory), the higher the newer; 0 is no pair.
    """

    rows: Tensor
    point: _Point
    best: _Point
    direction: Tensor
    slope: Tensor
    length: Tensor
    c: Tensor
    reaches: Tensor
    misses: Tensor
    iterations: Tensor
    search_steps: Tensor
    pairs: Tensor
    age: Tensor


def _search(task: _Task, config: Config) -> tuple[_Point, Tensor, Tensor]:
    """For each image of the task the best point, the evaluations it cost and a status."""
    rows = torch.arange(len(task.inputs), device=task.inputs.device)
    start = task.evaluate(rows, task.inputs.flatten(1))
    best = _take(start, rows)
    evaluations = torch.ones_like(rows)
    c = config.initial_c * _natural_c(start)
    status = torch.full_like(rows, Status.OK).masked_fill_(c == 0, Status.STOPPED)
    status.masked_fill_(task.allowance <= 1, Status.BUDGET)
    status.masked_fill_(start.loss.isinf(), Status.NON_FINITE)

    state = _take(_begin(rows, start, c, config), status == Status.OK)
    _aim(task, state, torch.ones_like(state.rows, dtype=torch.bool))
    while len(state.rows):
        trial = task.evaluate(state.rows, (state.point.images + state.length[:, None] * state.direction).clamp(0, 1))
        evaluations[state.rows] += 1
        state.best = _where(_better(trial, state.best), trial, state.best)
        accepted, ended = _line_search(state, trial, config)
        # ‖r‖ falls as c rises: if this c misses at a size that another target beats, the c that reach are of no use.
        hopeless = ended & (state.point.lead <= 0) & (state.point.size >= task.to_beat[state.rows])
        _next_c(state, ended, config)
        failed = trial.loss.isinf()
        done = hopeless | (state.search_steps == config.search_steps)
        spent = ~done & (evaluations[state.rows] >= task.allowance[state.rows])
        status[state.rows[spent]] = Status.BUDGET
        status[state.rows[failed]] = Status.NON_FINITE
        done |= spent | failed
        if done.any():
            _put(best, state.rows[done], _take(state.best, done))
            state = _take(state, ~done)
        _aim(task, state, (accepted | ended)[~done])
    return best, evaluations, status


def _begin(rows: Tensor, start: _Point, c: Tensor, config: Config) -> _State:
    zeros, counts = torch.zeros_like(c), torch.zeros_like(rows)
    return _State(
        rows=rows,
        point=start,
        best=start,
        direction=torch.zeros_like(start.images),
        slope=zeros,
        length=torch.ones_like(c),
        c=c,
        reaches=zeros,
        misses=torch.full_like(c, torch.inf),
        iterations=counts,
        search_steps=counts,
        pairs=start.images.new_zeros(len(rows), 2 * config.memory, start.images.shape[1]),
        age=rows.new_zeros(len(rows), config.memory),
    )


def _natural_c(start: _Point) -> Tensor:
    """The c whose minimiser is on the boundary for a linear classifier of two classes without a box, (b,).

    With m the log-odds against the target and p its probability, CE = softplus(m) and ∇CE = (1 − p)∇m. The nearest
    point of m = 0 has ‖r‖ = m / ‖∇m‖, and 2cr = −∇CE = −∇m / 2 there: c = ‖∇m‖² / (4m). Zero where all of the
    gradient points out of the box.
    """
    outwards = ((start.images <= 0) & (start.gradient > 0)) | ((start.images >= 1) & (start.gradient < 0))
    complement = -torch.expm1(-start.loss)  # 1 - p
    odds = (start.loss + complement.log()).clamp(min=torch.finfo(start.loss.dtype).eps)
    return start.gradient.masked_fill(outwards, 0).square().sum(1) / (4 * odds * complement**2)


def _line_search(state: _State, trial: _Point, config: Config) -> tuple[Tensor, Tensor]:
    """Take the trial points that lower the objective enough, shorten the others' steps: (accepted, solve ended)."""
    value, trial_value = state.point.objective(state.c), trial.objective(state.c)
    promised = state.length * state.slope
    accepted = trial_value <= value + ARMIJO * promised
    _remember(state, trial, accepted)
    # The minimum of the parabola through the two values and the slope, which is used where it lies in [0.1, 0.5].
    shorter = (-0.5 * promised / (trial_value - value - promised)).clamp(0.1, 0.5)
    state.length = torch.where(accepted, 1, state.length * shorter)
    state.point = _where(accepted, trial, state.point)
    state.iterations = state.iterations + accepted
    converged = accepted & (value - trial_value <= config.tolerance * trial_value)
    return accepted, converged | (state.length < SMALLEST_STEP) | (state.iterations == config.iterations)


def _remember(state: _State, trial: _Point, accepted: Tensor) -> None:
    """Put the accepted steps and the changes of gradient along them in the place of the oldest pairs."""
    steps = trial.images - state.point.images
    norms = steps.norm(dim=1, keepdim=True)
    moved = (accepted & (norms[:, 0] > 0)).nonzero().flatten()
    oldest = state.age[moved].argmin(1)
    # BFGS does not see the length of a pair: of unit length, their products are of one order in float32 too.
    state.pairs[moved, oldest] = ((trial.gradient - state.point.gradient) / norms)[moved]
    state.pairs[moved, oldest + state.age.shape[1]] = (steps / norms)[moved]
    state.age[moved, oldest] = state.age[moved].amax(1) + 1


def _next_c(state: _State, ended: Tensor, config: Config) -> None:
    """Where a solve has ended, choose the next c, and go on from the best success if there is one."""
    reached = state.point.lead > 0
    state.reaches = torch.where(ended & reached, state.c, state.reaches)
    state.misses = torch.where(ended & ~reached, state.c, state.misses)
    outwards = torch.where(reached, state.c * config.bracket_factor, state.c / config.bracket_factor)
    bracketed = (state.reaches > 0) & state.misses.isfinite()
    c = torch.where(bracketed, (state.reaches * state.misses).sqrt(), outwards)
    state.c = torch.where(ended, c, state.c)
    state.search_steps = state.search_steps + ended
    state.iterations = torch.where(ended, 0, state.iterations)
    state.length = torch.where(ended, 1, state.length)
    state.point = _where(ended & (state.best.lead > 0), state.best, state.point)


def _aim(task: _Task, state: _State, fresh: Tensor) -> None:
    """Give a direction to the rows that have come to a new point or a new c."""
    gradient = state.point.gradient + 2 * state.c[:, None] * task.perturbations(state.rows, state.point.images)
    direction = _direction(state.point.images, gradient, state.c, state.pairs, state.age)
    state.direction = torch.where(fresh[:, None], direction, state.direction)
    state.slope = (gradient * state.direction).sum(1)


def _direction(images: Tensor, gradient: Tensor, c: Tensor, pairs: Tensor, age: Tensor) -> Tensor:
    """The step (b, n) that minimises L-BFGS's quadratic model of the objective over the whole box.

    The model is gᵀd + dᵀBd/2 with B = θI − Wᵀ M⁻¹ W and rows W = [Y; S] (Byrd, Nocedal, Schnabel 1994, theorem 2.3).
    Its minimiser over the box l ≤ d ≤ u is d = clamp((Wᵀw − g) / θ, l, u) with M w = W d: 2 · memory equations, not n.
    They are piecewise linear, and Newton's method is mostly done with them in two steps.
    """
    memory = age.shape[1]
    low, high, double_c = -images, 1 - images, 2 * c[:, None]
    steps = pairs[:, memory:]
    basis = torch.cat((pairs[:, :memory] + double_c[:, :, None] * steps, steps), dim=1)
    theta, middle, used = _compact_form(basis @ basis.mT, double_c, age)

    shift = torch.zeros_like(gradient)  # Wᵀw
    descent = step = torch.clamp(-gradient / theta, low, high)
    for _ in range(NEWTON_STEPS):
        free = (low < step) & (step < high)
        free_basis = basis * free[:, None]
        jacobian = middle - (free_basis @ basis.mT) * used[:, :, None] * used[:, None, :] / theta[:, :, None]
        residual = (basis @ (step - free * shift / theta)[:, :, None]) * used[:, :, None]
        shift = (basis.mT @ torch.linalg.solve_ex(jacobian, residual).result).squeeze(2)
        step = torch.clamp((shift - gradient) / theta, low, high)
    descends = (gradient * step).sum(1, keepdim=True) < 0  # not if rounding has spoilt the equations
    return torch.where(descends, step, descent)


def _compact_form(gram: Tensor, double_c: Tensor, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """θ (b, 1), M (b, 2m, 2m) and which rows of W are used (b, 2m), from W Wᵀ.

    M = [−D, Lᵀ/θ; L/θ, SSᵀ/θ], where D is the diagonal and L the part of SYᵀ below it, in order of age. M is the
    identity where a pair is not used.
    """
    memory = age.shape[1]
    yy, ss = gram.diagonal(dim1=1, dim2=2).chunk(2, dim=1)
    sy = gram[:, memory:, :memory].diagonal(dim1=1, dim2=2)
    usable = sy > CURVATURE * double_c * ss
    newest = (age * usable).argmax(1, keepdim=True)
    theta = torch.where(usable.any(1, keepdim=True), (yy / sy).gather(1, newest), double_c).clamp(min=double_c)

    used = usable.repeat(1, 2)
    gram = torch.where(used[:, :, None] & used[:, None, :], gram, 0) / theta[:, :, None]
    later = age[:, :, None] > age[:, None, :]
    lower = torch.where(later, gram[:, memory:, :memory], 0)
    upper_left = torch.diag_embed(torch.where(usable, -sy, 1))
    lower_right = gram[:, memory:, memory:] + torch.diag_embed((~usable).to(gram.dtype))
    middle = torch.cat((torch.cat((upper_left, lower.mT), dim=2), torch.cat((lower, lower_right), dim=2)), dim=1)
    return theta, middle, used


def _better(new: _Point, old: _Point) -> Tensor:
    """(b,): a smaller success or, as long as there is none, a higher lead."""
    success = (old.lead <= 0) | (new.size < old.size)
    return torch.where(new.lead > 0, success, (old.lead <= 0) & (new.lead > old.lead))


_Rows = TypeVar("_Rows", _Point, _State)


def _take(tree: _Rows, rows: Tensor) -> _Rows:
    """The rows that a mask or indices select, as new tensors."""
    parts: dict[str, Any] = {
        name: _take(part, rows) if isinstance(part, _Point) else part[rows] for name, part in vars(tree).items()
    }
    return replace(tree, **parts)


def _put(point: _Point, rows: Tensor, values: _Point) -> None:
    """Overwrite rows of a point."""
    for name, tensor in vars(point).items():
        tensor[rows] = getattr(values, name)


def _where(mask: Tensor, point: _Point, other: _Point) -> _Point:
    """Row by row one of two points."""
    chosen = {
        name: torch.where(mask if tensor.dim() == 1 else mask[:, None], tensor, getattr(other, name))
        for name, tensor in vars(point).items()
    }
    return _Point(**chosen)
