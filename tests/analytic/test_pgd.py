"""PGD against its closed forms on a linear classifier, and its bookkeeping on models made to test it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from pipeline.attacks import pgd
from pipeline.attacks.base import AttackOutput, ExampleRng, Status

BallNorm = Literal["linf", "l2"]
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
CONFIG = pgd.Config(norm="linf", steps=20, step_size=2.0, restarts=1, random_start=True, loss="both")


def linear_model(dtype: torch.dtype = torch.float64, scale: float = 1) -> tuple[nn.Module, Tensor]:
    """Two classes on (B, 1, 4, 4); and w = w_1 − w_0, the gradient of the margin of label 0."""
    linear = nn.Linear(16, 2).to(dtype)
    linear.weight.data *= scale
    return nn.Sequential(nn.Flatten(), linear).eval(), (linear.weight[1] - linear.weight[0]).detach()


def interior_images(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, 1, 4, 4) in [0.4, 0.6]: balls of 0.3 around them do not meet the box."""
    return 0.4 + 0.2 * torch.rand(n, 1, 4, 4, dtype=dtype)


def run(
    model: nn.Module,
    inputs: Tensor,
    *,
    epsilon: float,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    config: pgd.Config = CONFIG,
) -> AttackOutput:
    labels = torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="pgd")
    return pgd.attack(model, inputs, labels, targets=targets, epsilon=epsilon, config=config, rng=rng)


def margins(model: nn.Module, inputs: Tensor) -> Tensor:
    """z_1 − z_0 without gradients."""
    with torch.no_grad():
        difference: Tensor = model(inputs).diff(dim=1).squeeze(1)
    return difference


def never_fooled(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].bias[0] += 100  # type: ignore[index]


@every_norm
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "both"])
@pytest.mark.parametrize("random_start", [True, False])
def test_reaches_the_optimum_of_a_linear_model(
    norm: BallNorm, loss: Literal["cross_entropy", "margin", "both"], random_start: bool
) -> None:
    model, weight = linear_model()
    never_fooled(model)
    inputs = interior_images()
    config = dataclasses.replace(CONFIG, norm=norm, loss=loss, random_start=random_start)
    output = run(model, inputs, epsilon=0.3, config=config)
    gain = 0.3 * torch.linalg.vector_norm(weight, ord=1 if norm == "linf" else 2)
    torch.testing.assert_close(margins(model, output.adv_inputs), margins(model, inputs) + gain)
    assert output.adv_inputs.dtype == torch.float64


@every_norm
def test_fools_as_soon_as_a_perturbation_can(norm: BallNorm) -> None:
    model, weight = linear_model()
    inputs = interior_images(1)
    with torch.no_grad():
        model[1].bias[0] += margins(model, inputs).item() + 0.1  # type: ignore[index]
    distance = 0.1 / torch.linalg.vector_norm(weight, ord=1 if norm == "linf" else 2).item()
    config = dataclasses.replace(CONFIG, norm=norm)
    assert margins(model, run(model, inputs, epsilon=0.999 * distance, config=config).adv_inputs) < 0
    assert margins(model, run(model, inputs, epsilon=1.001 * distance, config=config).adv_inputs) > 0


def test_l2_uses_the_whole_ball_where_the_box_cuts_it() -> None:
    """The optimum is clip(x + s w, 0, 1) − x with s such that its length is ε (Karush, Kuhn, Tucker)."""
    model, weight = linear_model()
    never_fooled(model)
    inputs = torch.rand(1, 1, 4, 4, dtype=torch.float64).mul(1.6).sub(0.3).clamp(0, 1)  # a third touch the box

    def cut(scale: float) -> Tensor:
        return (inputs + scale * weight.view(1, 1, 4, 4)).clamp(0, 1) - inputs

    best = cut(brentq(lambda scale: cut(scale).norm().item() - 0.8, 0, 1e3))
    assert (best + inputs == 1).any() or (best + inputs == 0).any()
    output = run(model, inputs, epsilon=0.8, config=dataclasses.replace(CONFIG, norm="l2", steps=50))
    gain = margins(model, output.adv_inputs) - margins(model, inputs)
    assert gain > 0.99 * (best.flatten() @ weight)


@every_norm
def test_a_target_is_reached(norm: BallNorm) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double().eval()
    inputs = interior_images()
    labels = model(inputs).argmax(1)
    targets = (labels + torch.tensor([1, 2, 3, 1, 2])) % 4
    output = run(
        model,
        inputs,
        epsilon=0.5 if norm == "linf" else 2.0,
        labels=labels,
        targets=targets,
        config=dataclasses.replace(CONFIG, norm=norm),
    )
    assert torch.equal(model(output.adv_inputs).argmax(1), targets)


def test_costs_what_it_says() -> None:
    model, _ = linear_model()
    never_fooled(model)
    output = run(model, interior_images(), epsilon=0.3, config=dataclasses.replace(CONFIG, steps=3, restarts=2))
    assert output.n_forwards.tolist() == [2 * (3 + 1)] * 5
    assert output.n_backwards.tolist() == [2 * 3] * 5
    assert output.status.tolist() == [Status.OK] * 5


def test_fooled_images_leave_at_once_and_for_all_restarts() -> None:
    model, _ = linear_model()
    inputs = interior_images()
    labels = model(inputs).argmax(1)
    labels[[1, 3]] = 1 - labels[[1, 3]]
    output = run(model, inputs, epsilon=1e-4, labels=labels, config=dataclasses.replace(CONFIG, steps=3, restarts=2))
    assert output.n_forwards.tolist() == [8, 1, 8, 1, 8]
    assert output.n_backwards.tolist() == [6, 1, 6, 1, 6]


def test_the_last_iterate_counts() -> None:
    """One step of the whole radius: only what it leads to fools."""
    model, weight = linear_model()
    inputs = interior_images(1)
    with torch.no_grad():
        model[1].bias[0] += margins(model, inputs).item() + 0.1  # type: ignore[index]
    epsilon = 1.001 * 0.1 / weight.abs().sum().item()
    config = dataclasses.replace(CONFIG, steps=1, step_size=1.0, random_start=False)
    output = run(model, inputs, epsilon=epsilon, config=config)
    assert margins(model, output.adv_inputs) > 0
    assert (output.n_forwards.item(), output.n_backwards.item()) == (2, 1)


class Recorder(nn.Module):
    """z = (100, sin(40 Σ inputs)): never fooled, with a loss that goes up and down; keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.detach().clone())
        wave = torch.sin(40 * inputs.flatten(1).sum(1))
        return torch.stack((torch.full_like(wave, 100), wave), dim=1)


def test_the_best_iterate_is_kept() -> None:
    model, inputs = Recorder(), interior_images()
    output = run(model, inputs, epsilon=0.1, config=dataclasses.replace(CONFIG, restarts=3))
    seen = torch.stack(model.seen)
    assert len(seen) == 3 * 21
    values = torch.sin(40 * seen.flatten(2).sum(2))
    best = values.argmax(0)
    assert len(set(best.tolist())) > 1
    assert torch.equal(output.adv_inputs, seen[best, torch.arange(5)])


@every_norm
def test_restarts_start_elsewhere(norm: BallNorm) -> None:
    model, inputs = Recorder(), interior_images()
    run(model, inputs, epsilon=0.1, config=dataclasses.replace(CONFIG, norm=norm, steps=1, restarts=2))
    first, second = (model.seen[i] - inputs for i in (0, 2))
    assert (first - second).flatten(1).norm(dim=1).min() > 0.05
    order = torch.inf if norm == "linf" else 2
    assert torch.linalg.vector_norm(first.flatten(1), ord=order, dim=1).max() <= 0.1 + 1e-12


def test_restarts_aim_at_one_other_class_each() -> None:
    """Class 1 is nearest, but never wins, and leads away from class 2: the restart that aims at class 2 finds it."""

    class Decoy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            brightness = inputs.flatten(1).mean(1) - 0.5
            decoy = 0.9 + 0.05 * torch.tanh(10 * brightness)
            return torch.stack((torch.ones_like(decoy), decoy, -4 * brightness), dim=1)

    inputs = torch.full((3, 1, 4, 4), 0.5, dtype=torch.float64)
    for restarts, fooled in ((2, False), (3, True)):
        config = dataclasses.replace(CONFIG, restarts=restarts, loss="margin")
        output = run(Decoy(), inputs, epsilon=0.3, config=config)
        assert (Decoy()(output.adv_inputs).argmax(1) == 2).tolist() == [fooled] * 3


def test_starts_at_the_image_if_told_to() -> None:
    model, inputs = Recorder(), interior_images()
    run(model, inputs, epsilon=0.1, config=dataclasses.replace(CONFIG, steps=1, random_start=False))
    assert torch.equal(model.seen[0], inputs)


def test_repeating_without_randomness_is_refused() -> None:
    with pytest.raises(ValueError, match="restarts"):
        dataclasses.replace(CONFIG, restarts=2, random_start=False)


def test_a_flat_start_waits_for_the_next_restart() -> None:
    """The second logit moves only where the first pixel is above its start at 0.5."""

    class HalfFlat(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            rise = (inputs[:, 0, 0, 0] - 0.5).relu()
            return torch.stack((torch.full_like(rise, 0.19), rise), dim=1)

    inputs = torch.full((20, 1, 2, 2), 0.5, dtype=torch.float64)
    once = run(HalfFlat(), inputs, epsilon=0.2)
    assert set(once.status.tolist()) == {Status.OK, Status.STOPPED}
    assert set(once.n_forwards[once.status == Status.STOPPED].tolist()) == {1}
    assert torch.equal(HalfFlat()(once.adv_inputs).argmax(1) == 1, once.status == Status.OK)
    often = run(HalfFlat(), inputs, epsilon=0.2, config=dataclasses.replace(CONFIG, restarts=12))
    assert often.status.tolist() == [Status.OK] * 20


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.just(0.0) | st.floats(1e-30, 1e-4) | st.floats(1e-4, 5),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e5, 1e20]),
    levels=st.sampled_from([1, 2, 255, 1e9]),
    seed=st.integers(0, 1000),
)
def test_stays_in_the_ball_and_in_the_box(
    norm: BallNorm, epsilon: float, scale: float, levels: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model, _ = linear_model(torch.float32, scale)
    inputs = (torch.rand(3, 1, 4, 4) * levels).round() / levels
    config = dataclasses.replace(CONFIG, norm=norm, steps=4, restarts=2)
    output = run(model, inputs, epsilon=epsilon, labels=model(inputs).argmax(1), config=config)
    assert ((output.adv_inputs >= 0) & (output.adv_inputs <= 1)).all()
    order = torch.inf if norm == "linf" else 2
    sizes = torch.linalg.vector_norm((output.adv_inputs.double() - inputs.double()).flatten(1), ord=order, dim=1)
    assert sizes.max() <= epsilon * (1 + 1e-6)
    assert output.status.tolist() == [Status.OK] * 3
