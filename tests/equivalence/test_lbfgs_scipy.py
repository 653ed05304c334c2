"""The batched attack against SciPy's L-BFGS-B: same objective and search over c, one image at a time, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
from torch import Tensor, nn

from pipeline.attacks import lbfgs
from pipeline.attacks.base import ExampleRng
from pipeline.datasets.base import Split

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
N = 16
Array = NDArray[np.float64]


@dataclass
class Victim:
    """A small convolutional net trained for a few seconds, and digits that it gets right."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def victim(digits: Split) -> Victim:
    torch.manual_seed(0)
    images, labels = digits.images.float() / 255, digits.labels
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for chosen in torch.randperm(len(images)).split(100) + torch.randperm(len(images)).split(100):
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    model.double().eval()
    images = images.double()
    right = (model(images).argmax(1) == labels).nonzero().flatten()
    assert len(right) > 0.9 * len(labels)
    chosen = right[torch.randperm(len(right))[:N]]
    return Victim(model, images[chosen], labels[chosen])


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
        return float(loss), gradient.flatten().numpy(), fooled

    def solve(c: float, start: Array) -> Array:
        def penalised(z: Array) -> tuple[float, Array]:
            loss, gradient, _ = evaluate(z)
            r = z - original
            return float(loss + c * r @ r), gradient + 2 * c * r

        options = {"maxcor": CONFIG.memory, "maxiter": 100, "ftol": 1e-7, "gtol": 1e-7}  # generous
        bounds = Bounds(np.zeros_like(start), np.ones_like(start))
        solution: Array = minimize(  # type: ignore[call-overload]
            penalised, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        return solution

    loss, gradient, _ = evaluate(original)
    inwards = np.clip(original - gradient, 0, 1) - original
    c = CONFIG.initial_c * float(gradient[inwards != 0] @ gradient[inwards != 0]) / (4 * loss)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("targeted", [False, True])
def test_no_fewer_successes_and_no_larger_perturbations(victim: Victim, targeted: bool, dtype: torch.dtype) -> None:
    """SciPy may take five times the iterations at a ten-thousandth of the tolerance."""
    model, inputs, labels = victim.model, victim.inputs, victim.labels
    with torch.no_grad():
        runner_up = model(inputs).scatter(1, labels[:, None], -torch.inf).argmax(1)
    targets = (labels + 3) % 10 if targeted else runner_up
    theirs = [
        smallest_by_scipy(model, inputs[i : i + 1], int(labels[i]), int(targets[i]), targeted=targeted)
        for i in range(N)
    ]

    try:
        output = lbfgs.attack(
            model.to(dtype),
            inputs.to(dtype),
            labels,
            targets=targets if targeted else None,
            epsilon=None,
            config=CONFIG,
            rng=ExampleRng.for_examples(range(N), seed=0, dataset="d", attack="lbfgs"),
        )
    finally:
        model.double()
    with torch.no_grad():
        predictions = model(output.adv_inputs.double()).argmax(1)
    fooled = predictions == targets if targeted else predictions != labels
    ours = torch.linalg.vector_norm((output.adv_inputs.double() - inputs.to(dtype).double()).flatten(1), dim=1)
    assert fooled.sum() >= np.isfinite(theirs).sum() > 0.9 * N
    both = fooled.numpy() & np.isfinite(theirs)
    ratio = ours.numpy()[both].mean() / np.array(theirs)[both].mean()
    assert ratio <= 1.02
