"""The batched attack against SciPy's L-BFGS-B: same objective and search over c, one image at a time, in float64."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers import SCIPY_ITERATIONS, SCIPY_TOLERANCE, ScipyProblem, scipy_search
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


def smallest_by_scipy(model: nn.Module, image: Tensor, label: int, target: int, *, targeted: bool) -> float:
    """The least ‖r‖₂ of a success at any evaluation; inf for none. ``image`` is (1, 1, 28, 28)."""
    problem = ScipyProblem(model, image, label, target, targeted)
    scipy_search(problem, CONFIG, iterations=SCIPY_ITERATIONS, tolerance=SCIPY_TOLERANCE)
    return problem.smallest


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
