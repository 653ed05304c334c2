"""FGSM equals Foolbox's; PGD leaves no more images standing than Foolbox's at any of its usual step sizes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from foolbox import PyTorchModel
from foolbox.attacks import L2PGD, LinfPGD
from foolbox.attacks.base import Attack
from foolbox.attacks.fast_gradient_method import LinfFastGradientAttack
from foolbox.criteria import Misclassification, TargetedMisclassification
from torch import Tensor

from pipeline.attacks import fgsm, pgd
from pipeline.attacks.base import ExampleRng
from tests.equivalence.conftest import Victim

STEPS = 20


def foolbox_attack(attack: Attack, victim: Victim, epsilon: float, targets: Tensor | None = None) -> Tensor:
    model = PyTorchModel(victim.net, bounds=(0, 1), device="cpu")
    criterion = Misclassification(victim.labels) if targets is None else TargetedMisclassification(targets)
    images: Tensor = attack(model, victim.inputs, criterion, epsilons=epsilon)[1]
    return images


def noise(victim: Victim) -> ExampleRng:
    return ExampleRng.for_examples(range(len(victim.labels)), seed=0, dataset="digits", attack="pgd")


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("epsilon", [0.003, 0.1])
def test_fgsm_takes_the_same_step(victim: Victim, epsilon: float, targeted: bool) -> None:
    targets = (victim.labels + 1) % 10 if targeted else None
    # Foolbox's FGSM knows no targets; one step of its PGD without a random start is the same.
    one_step = LinfPGD(steps=1, rel_stepsize=1.0, random_start=False)
    theirs = foolbox_attack(one_step if targeted else LinfFastGradientAttack(), victim, epsilon, targets)
    ours = fgsm.attack(
        *victim, targets=targets, epsilon=epsilon, config=fgsm.Config(norm="linf"), rng=noise(victim)
    ).adv_inputs
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize(("norm", "epsilons"), [("linf", (0.06, 0.09, 0.12)), ("l2", (0.8, 1.2, 1.6))])
def test_pgd_is_no_weaker(victim: Victim, norm: Literal["linf", "l2"], epsilons: tuple[float, ...]) -> None:
    peer = LinfPGD if norm == "linf" else L2PGD
    config = pgd.Config(norm=norm, steps=STEPS, step_size=2.0, restarts=1, random_start=True, loss="both")
    for epsilon in epsilons:
        theirs = [
            standing(victim, foolbox_attack(peer(steps=STEPS, rel_stepsize=relative), victim, epsilon))
            for relative in (0.025, 0.1, 0.25)
        ]
        output = pgd.attack(*victim, targets=None, epsilon=epsilon, config=config, rng=noise(victim))
        ours = standing(victim, output.adv_inputs)
        assert 0 < ours < 1, "this strength compares nothing"
        assert ours <= min(theirs)


def standing(victim: Victim, adv_inputs: Tensor) -> float:
    return float((victim.net(adv_inputs).argmax(1) == victim.labels).float().mean())
