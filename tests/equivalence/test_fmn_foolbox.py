"""FMN's perturbations are no larger than Foolbox's at the same number of gradient evaluations."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from foolbox import PyTorchModel
from foolbox.attacks.fast_minimum_norm import L2FMNAttack, LInfFMNAttack
from foolbox.criteria import Misclassification
from torch import Tensor

from pipeline.attacks import fmn
from pipeline.attacks.base import ExampleRng
from tests.equivalence.conftest import Victim


def sizes(victim: Victim, adv_inputs: Tensor, norm: Literal["linf", "l2"]) -> Tensor:
    """(B,), infinite for failures."""
    order = torch.inf if norm == "linf" else 2
    found: Tensor = torch.linalg.vector_norm((adv_inputs - victim.inputs).flatten(1), ord=order, dim=1)
    return found.where(victim.net(adv_inputs).argmax(1) != victim.labels, torch.inf)


@pytest.mark.parametrize("steps", [20, 60])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_median_is_no_larger(victim: Victim, norm: Literal["linf", "l2"], steps: int) -> None:
    # In ℓ2, Foolbox 3.3.4 forgets to project (it divides the norms by themselves), which happens to help it: with the
    # projection it fails on most images.
    peer = {"linf": LInfFMNAttack, "l2": L2FMNAttack}[norm](steps=steps)
    model = PyTorchModel(victim.net, bounds=(0, 1), device="cpu")
    theirs = sizes(victim, peer.run(model, victim.inputs, Misclassification(victim.labels)), norm)
    output = fmn.attack(
        *victim,
        targets=None,
        epsilon=None,
        config=fmn.Config(norm=norm, steps=steps, step_size=1.0, gamma=0.3, loss="both"),
        rng=ExampleRng.for_examples(range(len(victim.labels)), seed=0, dataset="digits", attack="fmn"),
    )
    ours = sizes(victim, output.adv_inputs, norm)
    assert output.n_backwards.tolist() == [steps] * len(victim.labels)
    assert ours.isfinite().all()
    assert ours.median() <= theirs.median()
    assert ours.mean() <= theirs.mean()
