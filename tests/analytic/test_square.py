"""Square attack against the vertex of a linear classifier's ball, its constraints, and its bookkeeping."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.attacks import square
from pipeline.attacks.base import AttackOutput, ExampleRng, Status

BallNorm = Literal["linf", "l2"]
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
CONFIG = square.Config(norm="linf", queries=300, p_init=0.8)
SIDE = 6


def linear_model(n_classes: int = 2, *, bias: float = 0, channels: int = 1) -> tuple[nn.Module, Tensor]:
    """Classes on (B, channels, 6, 6); and w_1 − w_0, (channels, 6, 6). ``bias`` is what label 0 has ahead."""
    linear = nn.Linear(channels * SIDE * SIDE, n_classes).double()
    with torch.no_grad():
        linear.bias[0] += bias
    weight = (linear.weight[1] - linear.weight[0]).detach()
    return nn.Sequential(nn.Flatten(), linear).eval(), weight.view(channels, SIDE, SIDE)


def interior_images(n: int = 4, channels: int = 1) -> Tensor:
    """In [0.4, 0.6]: balls of 0.3 around them do not meet the box."""
    return 0.4 + 0.2 * torch.rand(n, channels, SIDE, SIDE, dtype=torch.float64)


class Recorder(nn.Module):
    """Keeps the images that it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, list[Tensor]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.clone())
        logits: Tensor = self.model(inputs)
        return logits


def generators(n: int, seed: int = 0) -> ExampleRng:
    return ExampleRng.for_examples(range(n), seed=seed, dataset="d", attack="square")


def run(
    model: nn.Module,
    inputs: Tensor,
    *,
    epsilon: float,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
    rng: ExampleRng | None = None,
    **changes: Any,
) -> AttackOutput:
    labels = torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels
    config = dataclasses.replace(CONFIG, **changes)
    rng = rng or generators(len(inputs))
    return square.attack(model, inputs, labels, targets=targets, epsilon=epsilon, config=config, rng=rng)


def margins(model: nn.Module, inputs: Tensor) -> Tensor:
    """z_1 − z_0."""
    with torch.no_grad():
        difference: Tensor = model(inputs).diff(dim=1).squeeze(1)
    return difference


# --- strength


@pytest.mark.parametrize("channels", [1, 3])
def test_finds_the_vertex_of_the_linf_ball_of_a_linear_model(channels: int) -> None:
    """Its optimum, x + ε sign w, is one of the 2^n images that a search can reach, and no other is a local one."""
    model, weight = linear_model(bias=100, channels=channels)
    inputs = interior_images(channels=channels)
    output = run(model, inputs, epsilon=0.3, queries=3000)
    torch.testing.assert_close(output.adv_inputs, inputs + 0.3 * weight.sign())


def test_comes_near_the_optimum_of_the_l2_ball_of_a_linear_model() -> None:
    """The patterns span no more than themselves: no closed form, but most of ε ‖w‖₂."""
    model, weight = linear_model(bias=100)
    inputs = interior_images()
    output = run(model, inputs, epsilon=0.3, norm="l2", queries=3000, p_init=0.3)
    gain = (margins(model, output.adv_inputs) - margins(model, inputs)) / (0.3 * weight.norm())
    assert (gain > 0.7).all()
    assert (gain <= 1 + 1e-9).all()


@every_norm
def test_more_queries_raise_the_margin(norm: BallNorm) -> None:
    model, _ = linear_model(bias=100)
    inputs = interior_images()
    found = [
        margins(model, run(model, inputs, epsilon=0.3, norm=norm, queries=queries).adv_inputs)
        for queries in (1, 10, 100)
    ]
    assert (found[0] < found[1]).all()
    assert (found[1] < found[2]).all()


@every_norm
def test_a_target_is_reached(norm: BallNorm) -> None:
    model, _ = linear_model(4)
    inputs = interior_images()
    labels = model(inputs).argmax(1)
    targets = (labels + torch.tensor([1, 2, 3, 1])) % 4
    epsilon = 0.4 if norm == "linf" else 2.0
    output = run(model, inputs, epsilon=epsilon, labels=labels, targets=targets, norm=norm)
    assert torch.equal(model(output.adv_inputs).argmax(1), targets)


# --- the paper's steps


def test_squares_shrink_by_the_papers_schedule() -> None:
    """p halves at 10, 50, 200, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries; sides are of area p · 784."""
    at = [0, 9, 10, 49, 50, 199, 200, 999, 1000, 2000, 4000, 6000, 8000, 9999]
    sides = [square.square_side(0.8, query / 10_000, 28, 28) for query in at]
    assert sides == [25, 25, 18, 18, 13, 13, 9, 9, 6, 4, 3, 2, 2, 2]
    assert square.square_side(1, 0, 28, 20) == 20
    assert square.square_side(1e-9, 0, 28, 28) == 1


def test_linf_starts_with_stripes_and_changes_one_square_of_one_colour_a_query() -> None:
    model = Recorder(linear_model(bias=100, channels=2)[0])
    inputs = interior_images(channels=2)
    run(model, inputs, epsilon=0.3, queries=40)
    offsets = torch.stack(model.seen) - inputs
    torch.testing.assert_close(offsets.abs(), torch.full_like(offsets, 0.3))
    start = offsets[0]
    assert (start - start[:, :, :1]).abs().max() < 1e-9
    assert (start.diff(dim=3).abs() > 0.1).any()

    best, highest, wasted = start, margins(model.model, model.seen[0]), 0
    for query in range(1, 40):
        side = square.square_side(0.8, query / 40, SIDE, SIDE)
        changed = (offsets[query] - best).abs() > 0.1
        wasted += int((~changed.flatten(1).any(1)).sum())
        for image in range(len(inputs)):
            places = changed[image].any(0).nonzero()
            assert (places.amax(0) - places.amin(0)).max() < side
        found = margins(model.model, model.seen[query])
        best = torch.where((found > highest)[:, None, None, None], offsets[query], best)
        highest = highest.maximum(found)
    assert wasted <= 1


def test_l2_moves_size_between_two_squares_and_stays_on_the_sphere() -> None:
    model = Recorder(linear_model(bias=100)[0])
    inputs = interior_images()
    run(model, inputs, epsilon=0.3, norm="l2", queries=40, p_init=0.3)
    offsets = torch.stack(model.seen) - inputs
    torch.testing.assert_close(offsets.flatten(2).norm(dim=2), torch.full((40, 4), 0.3, dtype=torch.float64))


def test_l2_uses_what_the_box_has_cut() -> None:
    """On black images half of every pattern is lost; later queries put it where the model wants brightness."""
    model, _ = linear_model(bias=100)
    with torch.no_grad():
        model[1].weight[1] = model[1].weight[0] + 1  # type: ignore[index]
    inputs = torch.zeros(4, 1, SIDE, SIDE, dtype=torch.float64)
    few, many = (
        run(model, inputs, epsilon=0.3, norm="l2", queries=queries).adv_inputs.flatten(1).norm(dim=1)
        for queries in (1, 100)
    )
    assert (few < 0.25).all()
    assert (many > 0.29).all()


def test_the_l2_pattern_is_a_bump_above_its_negative() -> None:
    """Equation 2 by hand: for a side of 4, n = 2 and values 1/9, 1/9 + 1/4 and 1/9 + 1/4 + 1."""
    rim, middle, peak = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    bump = torch.tensor([[rim, middle, middle, middle], [rim, middle, peak, middle]])
    expected = torch.cat((bump, -bump))
    torch.testing.assert_close(square._pattern(4, like=expected), expected / expected.norm())


# --- bookkeeping


@every_norm
@pytest.mark.parametrize("queries", [1, 2, 70])
def test_costs_what_it_says(norm: BallNorm, queries: int) -> None:
    model, _ = linear_model(bias=100)
    output = run(model, interior_images(), epsilon=0.3, norm=norm, queries=queries)
    assert output.n_forwards.tolist() == [queries] * 4
    assert output.n_backwards.tolist() == [0] * 4
    assert output.status.tolist() == [Status.OK] * 4


@every_norm
def test_fooled_images_leave_at_once(norm: BallNorm) -> None:
    model, _ = linear_model(bias=100)
    labels = torch.tensor([0, 1, 0, 1])
    output = run(model, interior_images(), epsilon=0.3, norm=norm, labels=labels, queries=7)
    assert output.n_forwards.tolist() == [7, 1, 7, 1]


@every_norm
def test_the_best_query_is_returned(norm: BallNorm) -> None:
    model = Recorder(linear_model(bias=100)[0])
    inputs = interior_images()
    output = run(model, inputs, epsilon=0.3, norm=norm, queries=100)
    best = torch.stack([margins(model.model, images) for images in model.seen]).argmax(0)
    assert torch.equal(output.adv_inputs, torch.stack(model.seen)[best, torch.arange(4)])


@every_norm
def test_an_image_sees_the_same_queries_whoever_is_beside_it(norm: BallNorm) -> None:
    """Beside images that leave at different queries, over several chunks of randomness."""
    model, weight = linear_model()
    inputs, rng = interior_images(12), generators(12)
    reachable = (0.16 if norm == "linf" else 0.05) * torch.linalg.vector_norm(weight, ord=1 if norm == "linf" else 2)
    with torch.no_grad():
        model[1].bias[0] += margins(model, inputs).amax() + reachable  # type: ignore[index]
    whole = run(model, inputs, epsilon=0.2, norm=norm, queries=150, rng=rng)
    assert len(set(whole.n_forwards.tolist())) > 2
    order = torch.randperm(12)
    turned = run(model, inputs[order], epsilon=0.2, norm=norm, queries=150, rng=rng.subset(order))
    assert torch.equal(turned.n_forwards, whole.n_forwards[order])
    torch.testing.assert_close(turned.adv_inputs, whole.adv_inputs[order])


@every_norm
def test_randomness_comes_from_the_example(norm: BallNorm) -> None:
    model, _ = linear_model(bias=100)
    inputs = interior_images(1).expand(2, -1, -1, -1)
    output = run(model, inputs, epsilon=0.3, norm=norm, queries=5)
    assert not torch.equal(output.adv_inputs[0], output.adv_inputs[1])


@every_norm
def test_needs_no_gradients(norm: BallNorm) -> None:
    """A step function of a linear model has a zero gradient everywhere, and falls none the less."""

    class Stairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, _ = linear_model()

        def forward(self, inputs: Tensor) -> Tensor:
            return (100 * self.model(inputs)).round().detach() / 100

    model, inputs = Stairs(), interior_images()
    labels = model(inputs).argmax(1)
    output = run(model, inputs, epsilon=0.3 if norm == "linf" else 1.5, norm=norm, labels=labels)
    assert (model(output.adv_inputs).argmax(1) != labels).all()


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.just(0.0) | st.floats(1e-30, 1e-4) | st.floats(1e-4, 5),
    shape=st.sampled_from([(1, 6, 6), (3, 6, 9), (2, 1, 4), (1, 1, 1)]),
    p_init=st.floats(1e-3, 1),
    levels=st.sampled_from([1, 2, 255, 1e9]),
    seed=st.integers(0, 1000),
)
def test_stays_in_the_ball_and_in_the_box(
    norm: BallNorm, epsilon: float, shape: tuple[int, int, int], p_init: float, levels: float, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = (torch.rand(3, *shape) * levels).round() / levels
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 2)).eval()
    labels = model(inputs).argmax(1)
    output = run(model, inputs, epsilon=epsilon, norm=norm, p_init=p_init, queries=12, labels=labels)
    assert ((output.adv_inputs >= 0) & (output.adv_inputs <= 1)).all()
    order = torch.inf if norm == "linf" else 2
    sizes = torch.linalg.vector_norm((output.adv_inputs.double() - inputs.double()).flatten(1), ord=order, dim=1)
    assert sizes.max() <= epsilon * (1 + 1e-6)
    assert output.status.tolist() == [Status.OK] * 3
