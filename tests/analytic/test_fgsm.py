"""FGSM against its closed form on a linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import fgsm
from pipeline.attacks.base import AttackOutput, ExampleRng, Status

CONFIG = fgsm.Config(norm="linf")


def linear_model(n_classes: int = 2, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(16, n_classes)
    with torch.no_grad():
        linear.weight.mul_(scale)
    return nn.Sequential(nn.Flatten(), linear).eval()


def interior_images(n: int = 8) -> Tensor:
    """(n, 1, 4, 4) in [0.3, 0.7]: a ball of 0.2 around them does not meet the box."""
    return 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def run(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, epsilon: float, targets: Tensor | None = None
) -> AttackOutput:
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="fgsm")
    return fgsm.attack(model, inputs, labels, targets=targets, epsilon=epsilon, config=CONFIG, rng=rng)


def margins(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Two classes: z_y − z_other."""
    logits = model(inputs)
    rows = torch.arange(len(labels))
    difference: Tensor = logits[rows, labels] - logits[rows, 1 - labels]
    return difference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_falls_by_epsilon_times_the_dual_norm(dtype: torch.dtype) -> None:
    model, inputs = linear_model().to(dtype), interior_images().to(dtype)
    labels = torch.arange(8) % 2
    with torch.no_grad():
        weight = model[1].weight  # type: ignore[index]
        fall = 0.2 * (weight[0] - weight[1]).abs().sum()
        output = run(model, inputs, labels, epsilon=0.2)
        reached = margins(model, output.adv_inputs, labels)
        torch.testing.assert_close(reached, margins(model, inputs, labels) - fall)
    assert output.adv_inputs.dtype == dtype


def test_targeted_moves_towards_the_target() -> None:
    model, inputs = linear_model(), interior_images()
    labels = torch.zeros(8, dtype=torch.long)
    untargeted = run(model, inputs, labels, epsilon=0.1)
    targeted = run(model, inputs, labels, epsilon=0.1, targets=1 - labels)
    assert torch.equal(untargeted.adv_inputs, targeted.adv_inputs)  # two classes: the same thing
    assert not torch.equal(run(model, inputs, labels, epsilon=0.1, targets=labels).adv_inputs, targeted.adv_inputs)


def test_a_saturated_cross_entropy_does_not_hide_the_gradient() -> None:
    """Logits of ±1e4 make the float32 cross-entropy's gradient exactly zero; the attack's direction is unchanged."""
    inputs, labels = interior_images(), torch.zeros(8, dtype=torch.long)
    model, sure = linear_model(), linear_model(scale=1e4)
    labels = sure(inputs).argmax(1)
    assert torch.equal(
        run(sure, inputs, labels, epsilon=0.1).adv_inputs, run(model, inputs, labels, epsilon=0.1).adv_inputs
    )


def test_clipped_to_the_box_and_to_the_ball() -> None:
    model = linear_model()
    inputs = torch.rand(8, 1, 4, 4).round()
    adv = run(model, inputs, torch.zeros(8, dtype=torch.long), epsilon=0.3).adv_inputs
    assert adv.min() == 0
    assert adv.max() == 1
    assert 0 < (adv - inputs).abs().max() <= 0.3


def test_spends_one_forward_and_one_backward() -> None:
    output = run(linear_model(), interior_images(), torch.zeros(8, dtype=torch.long), epsilon=0.1)
    assert output.n_forwards.tolist() == output.n_backwards.tolist() == [1] * 8
    assert output.status.tolist() == [Status.OK] * 8
    assert output.deformation is None


def test_images_without_a_usable_gradient_come_back_with_a_status() -> None:
    """A NaN image spoils no other; a flat one is STOPPED, not robust by its own fault."""

    class Odd(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            value = inputs.flatten(1).sum(1) * torch.tensor([1.0, 0.0, torch.nan, torch.inf])
            return torch.stack((value, -value), dim=1)

    inputs, labels = interior_images(4), torch.zeros(4, dtype=torch.long)
    output = run(Odd(), inputs, labels, epsilon=0.1)
    assert output.status.tolist() == [Status.OK, Status.STOPPED, Status.NON_FINITE, Status.NON_FINITE]
    torch.testing.assert_close(output.adv_inputs[0], inputs[0] - 0.1)
    assert torch.equal(output.adv_inputs[1:], inputs[1:])
