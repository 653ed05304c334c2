"""The batched attack against SciPy's L-BFGS-B: same objective and search over c, one image at a time, in float64."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor, nn

from pipeline.attacks import lbfgs
from pipeline.attacks.base import ExampleRng
from tests.equivalence.conftest import Victim

CONFIG = lbfgs.Config(
    norm="l2",
    targets="runner_up",
    search_steps=10,
    iterations=20,
    memory=5,
    initial_c=3.0,
    bracket_factor=5.0,
    tolerance=1e-3,
)
N = 12
Array = NDArray[np.float64]


def smallest_by_scipy(model: nn.Module, image: Tensor, label: int, target: int, *, targeted: bool) -> float:
    """The least ‖r‖₂ of a success at any evaluation; inf for none. ``image`` is (1, 1, 28, 28)."""
    original: Array = image.flatten().numpy()
    smallest, nearest = np.inf, original

    def evaluate(z: Array) -> tuple[float, Array, bool]:
        nonlocal smallest, nearest
        point = torch.from_numpy(z.copy()).view_as(image).requires_grad_()
        logits = model(point)
        loss = F.cross_entropy(logits, torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, point)
        prediction, size = int(logits.argmax()), float(np.linalg.norm(z - original))
        fooled = prediction == target if targeted else prediction != label
        if fooled and size < smallest:
            smallest, nearest = size, z.copy()
        return float(loss.detach()), gradient.flatten().numpy(), fooled

    def solve(c: float, start: Array) -> Array:
        def penalised(z: Array) -> tuple[float, Array]:
            loss, gradient, _ = evaluate(z)
            r = z - original
            return float(loss + c * r @ r), gradient + 2 * c * r

        bounds = [(0.0, 1.0)] * len(start)
        solution, _, _ = fmin_l_bfgs_b(penalised, start, bounds=bounds, m=CONFIG.memory, maxiter=60, factr=1e9)
        return solution

    loss, gradient, _ = evaluate(original)
    inwards = np.clip(original - gradient, 0, 1) - original
    odds, complement = np.log(np.expm1(loss)), 1 - np.exp(-loss)
    c = CONFIG.initial_c * float(np.sum(gradient[inwards != 0] ** 2)) / (4 * odds * complement**2)
    reaches, misses, z = 0.0, np.inf, original
    for _ in range(CONFIG.search_steps):
        z = solve(c, z)
        if evaluate(z)[2]:
            reaches = c
        else:
            misses = c
        if reaches == 0:
            c /= CONFIG.bracket_factor
        elif misses == np.inf:
            c *= CONFIG.bracket_factor
        else:
            c = float(np.sqrt(reaches * misses))
        z = nearest if smallest < np.inf else z
    return smallest


@pytest.mark.parametrize("targeted", [False, True])
def test_no_fewer_successes_and_no_larger_perturbations(victim: Victim, targeted: bool) -> None:
    """SciPy may take three times the iterations, at a tolerance of 2e-7."""
    model, inputs, labels = deepcopy(victim.net).double(), victim.inputs[:N].double(), victim.labels[:N]
    with torch.no_grad():
        runner_up = model(inputs).scatter(1, labels[:, None], -torch.inf).argmax(1)
    targets = (labels + 3) % 10 if targeted else runner_up
    theirs = np.array(
        [
            smallest_by_scipy(model, inputs[i : i + 1], int(labels[i]), int(targets[i]), targeted=targeted)
            for i in range(N)
        ]
    )
    for dtype in (torch.float32, torch.float64):
        output = lbfgs.attack(
            deepcopy(model).to(dtype),
            inputs.to(dtype),
            labels,
            targets=targets if targeted else None,
            epsilon=None,
            config=CONFIG,
            rng=ExampleRng.for_examples(range(N), seed=0, dataset="d", attack="lbfgs"),
        )
        with torch.no_grad():
            predictions = model(output.adv_inputs.double()).argmax(1)
        fooled = (predictions == targets if targeted else predictions != labels).numpy()
        ours = torch.linalg.vector_norm((output.adv_inputs.double() - inputs).flatten(1), dim=1).numpy()
        assert fooled.sum() >= np.isfinite(theirs).sum() > 0.9 * N
        both = fooled & np.isfinite(theirs)
        assert ours[both].mean() <= 1.02 * theirs[both].mean()
