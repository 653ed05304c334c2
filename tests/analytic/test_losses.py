"""The objectives that attacks climb, against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.attacks.base import Status
from pipeline.attacks.losses import (
    cross_entropy,
    is_fooled,
    loss_at,
    margin,
    objective,
    status_of,
    value,
    value_and_gradient,
)

LABELS = torch.tensor([0, 3, 4, 1, 1, 2])


def random_logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(6, 5, dtype=torch.float64)


def test_softplus_of_the_log_odds_is_the_cross_entropy() -> None:
    logits = random_logits()
    expected = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(F.softplus(cross_entropy(logits, LABELS)), expected)


def test_its_gradient_is_parallel_to_the_cross_entropys() -> None:
    logits = random_logits().requires_grad_()
    (ours,) = torch.autograd.grad(cross_entropy(logits, LABELS).sum(), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), logits)
    torch.testing.assert_close(F.normalize(ours), F.normalize(theirs))


def test_it_does_not_saturate() -> None:
    logits = torch.tensor([[200.0, 1.0, 0.0]], requires_grad=True)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0])), logits)
    (ours,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([0])).sum(), logits)
    assert not theirs.any()
    torch.testing.assert_close(ours[0, 1:], torch.softmax(torch.tensor([1.0, 0.0]), dim=0))
    assert ours[0, 0] == -1


def test_margin_is_positive_where_another_class_wins() -> None:
    logits = random_logits()
    assert torch.equal(margin(logits, LABELS) > 0, logits.argmax(1) != LABELS)
    torch.testing.assert_close(
        margin(torch.tensor([[1.0, 5.0, 3.0]]).expand(3, 3), torch.arange(3)), torch.tensor([4.0, -2.0, 2.0])
    )


def test_objective_turns_for_a_target() -> None:
    logits, targets = random_logits(), (LABELS + 1) % 5
    assert torch.equal(objective("margin", logits, LABELS, None), margin(logits, LABELS))
    assert torch.equal(objective("cross_entropy", logits, LABELS, None), cross_entropy(logits, LABELS))
    assert torch.equal(objective("margin", logits, LABELS, targets), -margin(logits, targets))
    assert torch.equal(objective("cross_entropy", logits, LABELS, targets), -cross_entropy(logits, targets))


def test_fooled_means_wrong_or_on_target_and_finite() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [torch.nan, 1.0, 0.0], [0.0, torch.inf, 0.0]])
    labels, targets = torch.zeros(4, dtype=torch.long), torch.full((4,), 2)
    assert is_fooled(logits, labels, None).tolist() == [True, False, False, False]
    assert is_fooled(logits, labels, targets).tolist() == [False] * 4
    assert is_fooled(logits, labels, targets - 1).tolist() == [True, False, False, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_status_of_logits_and_gradients(bad: float) -> None:
    logits, gradient = torch.zeros(4, 3), torch.ones(4, 1, 2, 2)
    logits[1, 2] = bad
    gradient[2] = 0
    gradient[3, 0, 1, 1] = bad
    expected = [Status.OK, Status.NON_FINITE, Status.STOPPED, Status.NON_FINITE]
    assert status_of(logits, gradient).tolist() == expected
    assert status_of(logits, None).tolist() == [Status.OK, Status.NON_FINITE, Status.OK, Status.OK]


def test_both_losses_take_half_the_steps_each() -> None:
    assert [loss_at("both", step / 4) for step in range(4)] == ["cross_entropy"] * 2 + ["margin"] * 2
    assert {loss_at("margin", step / 4) for step in range(4)} == {"margin"}
    assert {loss_at("cross_entropy", step / 4) for step in range(4)} == {"cross_entropy"}


def test_gradient_of_a_linear_model() -> None:
    linear = nn.Linear(4, 2).double()
    model = nn.Sequential(nn.Flatten(), linear)
    points, labels = torch.rand(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 0])
    with torch.no_grad():
        logits, values, gradient = value_and_gradient(model, points, labels, None, "margin")
        towards_one = (linear.weight[1] - linear.weight[0]).view(1, 2, 2)
        torch.testing.assert_close(gradient, torch.stack((towards_one, -towards_one, towards_one)))
        assert torch.equal(logits, model(points))
        assert torch.equal(values, margin(logits, labels))
        assert torch.equal(value(model, points, labels, None, "margin")[1], values)
    assert not logits.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
