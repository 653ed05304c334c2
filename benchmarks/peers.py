"""Independent implementations to compare with: Foolbox's attacks, and SciPy's L-BFGS-B under this project's search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from foolbox import PyTorchModel
from foolbox.criteria import Misclassification
from numpy.typing import NDArray
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor, nn

from pipeline.attacks import lbfgs

Array = NDArray[np.float64]
Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, inputs, labels) -> adv_inputs; untargeted

PGD_STEP = 0.1  # of Foolbox's PGD in units of epsilon: 20 of them are twice the radius
SCIPY_ITERATIONS, SCIPY_TOLERANCE = 60, 2e-7  # of a solve: enough for SciPy to converge


def foolbox_peer(attack: Any, epsilon: float | None) -> Peer:
    """A Foolbox attack. Foolbox looks at the last images once more, as ours do: equal steps are equal passes."""

    def run(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        wrapped = PyTorchModel(model, bounds=(0, 1), device=inputs.device)
        adv_inputs: Tensor = attack(wrapped, inputs, Misclassification(labels), epsilons=epsilon)[1]
        return adv_inputs

    return run


def scipy_peer(config: lbfgs.Config, *, iterations: int, tolerance: float) -> Peer:
    """``lbfgs`` with SciPy as its solver, for one image after the other, towards the runner-up.

    ``iterations`` and ``tolerance`` (a relative decrease) end a solve in place of ``config``'s.
    """

    def run(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        found = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # at its best: on single images SciPy and torch get into each other's threads
        try:
            for image, label in zip(inputs[:, None], labels.tolist(), strict=True):
                with torch.no_grad():
                    target = int(model(image)[0].argsort(descending=True)[:2].tolist()[1])
                problem = ScipyProblem(model, image, label, target)
                scipy_search(problem, config, iterations=iterations, tolerance=tolerance)
                found.append(problem.nearest)
        finally:
            torch.set_num_threads(threads)
        return torch.cat(found)

    return run


@dataclass
class ScipyProblem:
    """One image (1, C, H, W), and the smallest perturbation that was met at any evaluation.

    ``targeted``: only the target is success, else any class but the label.
    """

    model: nn.Module
    image: Tensor
    label: int
    target: int
    targeted: bool = False

    def __post_init__(self) -> None:
        self.original: Array = self.image.flatten().double().numpy()
        self.smallest, self.nearest = float("inf"), self.image

    def evaluate(self, z: Array) -> tuple[float, Array, bool]:
        """CE towards the target, its gradient, and whether the image z fools the model."""
        # A copy: SciPy goes on to write into z.
        point = torch.tensor(z, dtype=self.image.dtype).view_as(self.image).requires_grad_()
        logits = self.model(point)
        loss = F.cross_entropy(logits, torch.tensor([self.target]))
        (gradient,) = torch.autograd.grad(loss, point)
        prediction = int(logits.argmax())
        fooled = prediction == self.target if self.targeted else prediction != self.label
        size = float(np.linalg.norm(z - self.original))
        if fooled and size < self.smallest:
            self.smallest, self.nearest = size, point.detach()
        return float(loss.detach()), gradient.flatten().double().numpy(), fooled

    def penalised(self, z: Array, c: float) -> tuple[float, Array]:
        """c ‖r‖² + CE and its gradient."""
        loss, gradient, _ = self.evaluate(z)
        r = z - self.original
        return float(loss + c * r @ r), gradient + 2 * c * r


def scipy_search(problem: ScipyProblem, config: lbfgs.Config, *, iterations: int, tolerance: float) -> None:
    """The search over c of ``pipeline.attacks.lbfgs``: same first c, same bracketing, same bisection."""
    loss, gradient, _ = problem.evaluate(problem.original)
    inwards = np.clip(problem.original - gradient, 0, 1) - problem.original
    odds, complement = np.log(np.expm1(loss)), -np.expm1(-loss)
    c = config.initial_c * float(np.sum(gradient[inwards != 0] ** 2)) / (4 * odds * complement**2)
    reaches, misses, z = 0.0, np.inf, problem.original
    for _ in range(config.search_steps):
        z, _, _ = fmin_l_bfgs_b(
            problem.penalised,
            z,
            args=(c,),
            bounds=[(0.0, 1.0)] * len(z),
            m=config.memory,
            maxiter=iterations,
            factr=tolerance / np.finfo(np.float64).eps,
        )
        if problem.evaluate(z)[2]:
            reaches = c
        else:
            misses = c
        if reaches == 0:
            c /= config.bracket_factor
        elif misses == np.inf:
            c *= config.bracket_factor
        else:
            c = float(np.sqrt(reaches * misses))
        if problem.smallest < np.inf:
            z = problem.nearest.flatten().double().numpy()
