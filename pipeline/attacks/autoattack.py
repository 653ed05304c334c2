"""The gradient attacks of AutoAttack (Croce and Hein, ICML 2020), by their authors' library pyautoattack.

They are there so that nobody has to trust this project's own attacks. The library is an optional extra,
``pip install '.[autoattack]'``. It gets each image's own random start and evaluates all images of a run equally often,
so results do not depend on the batch and counts are exact for every image.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.attacks.balls import BallNorm, ball, random_point
from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.attacks.losses import is_fooled, objective, status_of
from pipeline.fields import PositiveInt

GOAL: Goal = "budget"
CLIMBS = True
NORMS: tuple[Norm, ...] = ("linf", "l2")

LIBRARY = "pyautoattack"
_NORMS = {"linf": "Linf", "l2": "L2"}  # as the library calls them


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters.

    Attributes:
        norm: the ball's norm.
        member: ``apgd_ce`` (auto-PGD on the cross-entropy), ``apgd_t`` (auto-PGD on the difference of logits ratio
            towards one class after the other; needs four classes) or ``fab_t`` (fast adaptive boundary, one class
            after the other).
        iterations: gradient steps of each run; AutoAttack takes 100.
        classes: most runs of ``apgd_t`` and ``fab_t``, towards the likeliest other classes; AutoAttack takes 9.
            ``apgd_ce`` is one run towards none.

    Raises:
        ValueError: the library is not installed: a UserError of params.yaml, and not after hours of training.
    """

    norm: BallNorm
    member: Literal["apgd_ce", "apgd_t", "fab_t"]
    iterations: PositiveInt
    classes: PositiveInt

    def __post_init__(self) -> None:
        if importlib.util.find_spec(LIBRARY) is None:
            raise ValueError(f"member: needs {LIBRARY}, which is not installed; run: pip install '.[autoattack]'")


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,
    epsilon: float | None,
    config: Config,
    rng: ExampleRng,
) -> AttackOutput:
    """1 forward for the image; then, for each run, ``iterations + 1`` forwards and backwards (``apgd_``) or
    ``2 · iterations + 2`` forwards and ``iterations`` backwards (``fab_t``).

    An image that is fooled has no further run; targeted, there is one run towards the target. FAB looks for the nearest
    adversarial image, whatever ε is; what it finds counts within ε only. For images that are not fooled the one of the
    highest margin among those evaluated within ε is returned. ``epsilon`` is in [0, 1] units.
    """
    assert epsilon is not None, "a budget attack needs a strength"
    adv_inputs = inputs.clone()
    n_forwards, n_backwards, status = (torch.zeros_like(labels) for _ in range(3))
    everything = torch.arange(len(labels), device=labels.device)
    look = _Watch(model, inputs, labels, targets, epsilon, config.norm)
    logits = look(inputs) if len(inputs) else inputs.new_zeros(0, 2)
    others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
    aims = others[:, : 1 if config.member == "apgd_ce" else config.classes] if targets is None else targets[:, None]
    highest = look.highest
    status[:] = look.status
    n_forwards += look.n_forwards
    rows = everything[~look.fooled & (status == Status.OK)]

    for turn, aim in enumerate(aims.unbind(1)):
        if len(rows) == 0:
            break
        watch = _Watch(
            model, inputs[rows], labels[rows], None if targets is None else targets[rows], epsilon, config.norm
        )
        run = _fab if config.member == "fab_t" else _apgd
        starts = random_point(inputs[rows], epsilon, config.norm, rng.subset(rows), stream=turn)
        # The library draws from the global generator, and warns of zero gradients.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(watch, starts, aim[rows], targeted=targets is not None, config=config)
        n_forwards[rows] += watch.n_forwards
        n_backwards[rows] += watch.n_backwards
        better = watch.fooled | (watch.highest > highest[rows])
        adv_inputs[rows[better]], highest[rows[better]] = watch.best[better], watch.highest[better]
        status[rows] = watch.status
        rows = rows[~watch.fooled & (watch.status == Status.OK)]
    return AttackOutput(adv_inputs, None, n_forwards, n_backwards, status)


class _Watch:
    """The model as the library sees it: images (b, C, H, W), always all of a run, to logits; it remembers the best.

    Attributes:
        best: of the images within ε: one that fooled the model or else that of the highest margin.
        fooled, highest, status: (b,).
        n_forwards, n_backwards: of each image.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor | None, epsilon: float, norm: BallNorm
    ) -> None:
        self.model, self.inputs, self.labels, self.targets = model, inputs, labels, targets
        self.epsilon, self.norm, self.ball = epsilon, norm, ball(inputs, epsilon, norm)
        self.best, self.fooled = inputs.clone(), torch.zeros_like(labels, dtype=torch.bool)
        self.highest = torch.full_like(labels, -torch.inf, dtype=inputs.dtype)
        self.status = torch.zeros_like(labels)
        self.n_forwards = self.n_backwards = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (b, K). Where the library asks for gradients, it takes one of each."""
        climbs = torch.is_grad_enabled() and images.requires_grad
        self.n_forwards += 1
        self.n_backwards += climbs
        if climbs:
            images.register_hook(self._check)  # type: ignore[no-untyped-call]
        with torch.set_grad_enabled(climbs):
            logits: Tensor = self.model(images.to(self.inputs.dtype))
        self._remember(images.detach().to(self.inputs.dtype), logits.detach())
        return logits

    def verdict(self, images: Tensor) -> Tensor:
        """(b,): the label where the model is not fooled and another class where it is, which is all that FAB asks."""
        logits = self(images).detach()
        return (self.labels + is_fooled(logits, self.labels, self.targets).long()) % logits.shape[1]

    def difference(self, images: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
        """z_aim − z_y, (b, 1), and its gradient, (b, 1, C, H, W)."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = self(images)
            differences = (logits.gather(1, aims[:, None]) - logits.gather(1, self.labels[:, None])).to(images.dtype)
            (gradient,) = torch.autograd.grad(differences.sum(), images)
        return differences.detach(), gradient[:, None]

    def _remember(self, images: Tensor, logits: Tensor) -> None:
        near = self.ball.project(images)
        order = torch.inf if self.norm == "linf" else 2
        # What the library computes in float32 may lie outside by its rounding; FAB's images lie anywhere.
        within = torch.linalg.vector_norm((images - near).flatten(1), ord=order, dim=1) <= 1e-6
        goals = self.labels, self.targets
        fooled, margins = is_fooled(logits, *goals), objective("margin", logits, *goals)
        better = within & ~self.fooled & (fooled | (margins > self.highest))
        self.best[better], self.highest[better] = near[better], margins[better]
        self.fooled |= within & fooled
        self._give_up(status_of(logits, None) != Status.OK)

    def _check(self, gradient: Tensor) -> None:
        self._give_up(~gradient.flatten(1).isfinite().all(1))

    def _give_up(self, broken: Tensor) -> None:
        self.status[broken & ~self.fooled] = int(Status.NON_FINITE)


def _apgd(watch: _Watch, starts: Tensor, aims: Tensor, *, targeted: bool, config: Config) -> None:
    """One run of auto-PGD. Without targets ``apgd_ce`` leads away from the label and ``apgd_t`` towards the aims."""
    library = importlib.import_module(f"{LIBRARY}.autopgd_base")
    away = config.member == "apgd_ce" and not targeted
    kind: Any = library.APGDAttack if away else library.APGDAttack_targeted
    apgd = kind(watch, n_iter=config.iterations, norm=_NORMS[config.norm], eps=watch.epsilon, device=starts.device)
    if config.member == "apgd_ce" and targeted:
        apgd.loss = "ce-targeted"
    if not away:
        apgd.y_target = aims
    apgd.init_hyperparam(watch.inputs)
    apgd.attack_single_run(watch.inputs.float(), watch.labels, x_init=starts.float())


def _fab(watch: _Watch, starts: Tensor, aims: Tensor, *, targeted: bool, config: Config) -> None:
    """One run of FAB towards the aims, from the image itself. Its functions of the model are virtual: here they are."""
    del starts, targeted
    library = importlib.import_module(f"{LIBRARY}.fab_base")
    fab: Any = library.FABAttack(norm=_NORMS[config.norm], n_iter=config.iterations, eps=watch.epsilon, targeted=True)
    fab.target_class = 1  # of the likeliest; the aims replace what the library makes of it
    fab._predict_fn = watch
    fab._get_predicted_label = watch.verdict
    fab.get_diff_logits_grads_batch_targeted = lambda images, *_: watch.difference(images, aims)
    fab.attack_single_run(watch.inputs, watch.labels, is_targeted=True)
