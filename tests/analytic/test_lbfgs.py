"""The minimal perturbation against closed forms on linear classifiers, and its quasi-Newton step against dense BFGS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, lsq_linear, minimize
from torch import Tensor, nn

from pipeline.attacks import lbfgs
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.evaluate import CountingModel

CONFIG = lbfgs.Config(
    norm="l2",
    targets="runner_up",
    search_steps=16,
    iterations=30,
    memory=5,
    initial_c=2.0,
    bracket_factor=5.0,
    tolerance=1e-6,
)
SIDE = 4
SHARP = 100.0  # logits of this scale leave probability only to the classes that an image lies between
seeds = st.integers(0, 2**31)
few = settings(max_examples=8, deadline=None)


class Linear(nn.Module):
    """logits = W image + b, with the weights of a seed."""

    def __init__(self, n_classes: int = 2, *, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = scale * torch.randn(n_classes, SIDE**2, generator=generator, dtype=torch.float64)
        self.bias = scale * torch.randn(n_classes, generator=generator, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = inputs.flatten(1) @ self.weight.T + self.bias
        return logits


def interior_images(n: int = 8) -> Tensor:
    """(n, 1, 4, 4), all pixels near 0.5: the way to a boundary of ``Linear`` does not meet the box."""
    noise = torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.45 + 0.1 * noise


def digit_like_images(n: int, seed: int) -> Tensor:
    """(n, 1, 4, 4): half of the pixels are 0 or 1, as most are in MNIST."""
    noise = torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * noise - 0.5).clamp(0, 1)


def predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = model(inputs).argmax(1)
    return labels


def run(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    config: lbfgs.Config = CONFIG,
    targets: Tensor | None = None,
) -> AttackOutput:
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="d", attack="lbfgs")
    return lbfgs.attack(model, inputs, labels, targets=targets, epsilon=None, config=config, rng=rng)


def sizes(inputs: Tensor, output: AttackOutput) -> Tensor:
    found: Tensor = torch.linalg.vector_norm((output.adv_inputs - inputs).flatten(1), dim=1)
    return found


def gap(model: Linear, image: Tensor, label: int, target: int) -> tuple[Tensor, float]:
    """w and f of z_target − z_label = w · r − f at ``image`` + r."""
    logits = model(image[None])[0]
    return model.weight[target] - model.weight[label], float(logits[label] - logits[target])


ROUNDING = 1 - 1e-9  # of the bisection below


def distance_in_box(image: Tensor, normal: Tensor, offset: float) -> float:
    """min ‖r‖₂ with normal · r ≥ offset and image + r in [0, 1]: r = clip(λ · normal), λ by bisection; inf if empty."""
    low, high = -image.flatten(), 1 - image.flatten()

    def perturbation(multiplier: float) -> Tensor:
        return (multiplier * normal).maximum(low).minimum(high)

    least, most = 0.0, 1e4
    if perturbation(most) @ normal < offset:
        return float("inf")
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (least, middle) if perturbation(middle) @ normal >= offset else (middle, most)
    return float(perturbation(most).norm())


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_inactive_box_gives_the_distance_to_the_boundary(scale: float) -> None:
    """|f| / ‖w‖ and along w, whatever the scale of the logits."""
    model, inputs = Linear(scale=scale), interior_images()
    labels = predictions(model, inputs)
    output = run(model, inputs, labels)
    for image, label, adv in zip(inputs, labels.tolist(), output.adv_inputs, strict=True):
        normal, offset = gap(model, image, label, 1 - label)
        exact = (image.flatten() + offset / normal.norm() ** 2 * normal).view_as(image)
        assert ((exact > 0) & (exact < 1)).all(), "the box is active"
        assert (adv - exact).norm() <= 1e-3 * (exact - image).norm()
    assert (predictions(model, output.adv_inputs) != labels).all()
    assert (output.status == Status.OK).all()


def test_the_unit_of_c_is_the_c_that_just_reaches() -> None:
    """A single solve at 0.999 of it reaches the boundary, and goes no further than it must."""
    model, inputs = Linear(), interior_images()
    labels = predictions(model, inputs)
    output = run(model, inputs, labels, replace(CONFIG, initial_c=0.999, search_steps=1, tolerance=0))
    assert (predictions(model, output.adv_inputs) != labels).all()
    for image, label, size in zip(inputs, labels.tolist(), sizes(inputs, output).tolist(), strict=True):
        normal, offset = gap(model, image, label, 1 - label)
        assert size == pytest.approx(offset / float(normal.norm()), rel=2e-3)


@few
@given(seed=seeds)
def test_active_box_gives_the_projection(seed: int) -> None:
    model, inputs = Linear(seed=seed), digit_like_images(6, seed)
    labels = predictions(model, inputs)
    output = run(model, inputs, labels)
    fooled = predictions(model, output.adv_inputs) != labels
    for i, label in enumerate(labels.tolist()):
        exact = distance_in_box(inputs[i], *gap(model, inputs[i], label, 1 - label))
        assert fooled[i] == np.isfinite(exact)
        assert not fooled[i] or ROUNDING * exact <= sizes(inputs, output)[i] <= 1.002 * exact
    assert ((output.adv_inputs >= 0) & (output.adv_inputs <= 1)).all()


@few
@given(seed=seeds)
def test_all_targets_give_the_nearest_of_the_boundaries(seed: int) -> None:
    model, inputs = Linear(5, seed=seed, scale=SHARP), digit_like_images(4, seed)
    labels = predictions(model, inputs)
    output = run(model, inputs, labels, replace(CONFIG, targets="all"))
    for i, label in enumerate(labels.tolist()):
        others = set(range(5)) - {label}
        exact = min(distance_in_box(inputs[i], *gap(model, inputs[i], label, other)) for other in others)
        assert ROUNDING * exact <= sizes(inputs, output)[i] <= 1.002 * exact


def test_runner_up_is_the_target_that_the_logits_name() -> None:
    """Of three classes the second is the more likely, the third the nearer; only ``all`` finds the third."""
    model = Linear(3)
    model.weight = torch.zeros(3, SIDE**2, dtype=torch.float64)
    model.weight[1, 0], model.weight[2, 1] = SHARP, 10 * SHARP
    model.bias = SHARP * torch.tensor([0.8, 0.0, -5.2], dtype=torch.float64)
    inputs, labels = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64), torch.tensor([0])
    for config, exact in ((CONFIG, 0.3), (replace(CONFIG, targets="all"), 0.1)):
        assert sizes(inputs, run(model, inputs, labels, config)).item() == pytest.approx(exact, rel=2e-3)


@few
@given(seed=seeds)
@example(seed=234)
@example(seed=268)
def test_targeted_reaches_the_target_region(seed: int) -> None:
    """Against a quadratic programme: least ‖r‖² such that the target's logit is the highest, within the box.

    Where three classes meet, the objective of the attack has another minimum than ‖r‖²: 1.6 % further off at SHARP, and
    a tenth of that for each tenfold scale.
    """
    scale = 10 * SHARP
    model, inputs = Linear(4, seed=seed, scale=scale), digit_like_images(1, seed)
    labels = predictions(model, inputs)
    targets = (labels + 1) % 4
    output = run(model, inputs, labels, targets=targets)
    weight, bias = model.weight.numpy() / scale, model.bias.numpy() / scale
    target, image = int(targets), inputs.flatten().numpy()
    leads = LinearConstraint(weight[target] - np.delete(weight, target, 0), np.delete(bias, target) - bias[target])

    def squared_distance(z: NDArray[np.float64]) -> float:
        return float((z - image) @ (z - image))

    solution = minimize(
        squared_distance,
        image,
        bounds=Bounds(np.zeros(len(image)), np.ones(len(image))),
        constraints=leads,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    reached = int(predictions(model, output.adv_inputs)) == target
    assert reached == solution.success
    if reached:
        size, exact = float(sizes(inputs, output)), float(np.linalg.norm(solution.x - image))
        assert exact * (1 - 1e-6) <= size <= 1.01 * exact


@few
@given(seed=seeds, memory=st.integers(1, 5), filled=st.integers(0, 5))
def test_the_step_minimises_the_bfgs_model_over_the_box(seed: int, memory: int, filled: int) -> None:
    """Dense BFGS updates in order of age, and the box-constrained quadratic solved by SciPy."""
    generator = torch.Generator().manual_seed(seed)
    n, filled, c = 12, min(filled, memory), torch.tensor([0.3], dtype=torch.float64)
    images = torch.rand(1, n, generator=generator, dtype=torch.float64)
    gradient = torch.randn(1, n, generator=generator, dtype=torch.float64)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    steps = nn.functional.normalize(torch.randn(1, memory, n, generator=generator, dtype=torch.float64), dim=2)
    changes = steps @ root @ root.T / n
    age = torch.randperm(memory, generator=generator)[None] + 1
    age[age <= memory - filled] = 0
    for kept in (steps, changes):
        kept[age == 0] = 0

    order = [i for i in age[0].argsort().tolist() if age[0, i] > 0]
    pairs = [((changes[0, i] + 2 * c * steps[0, i]).numpy(), steps[0, i].numpy()) for i in order]
    theta = pairs[-1][0] @ pairs[-1][0] / (pairs[-1][0] @ pairs[-1][1]) if pairs else 2 * c.item()
    hessian = theta * np.eye(n)
    for y, s in pairs:
        image_of_s = hessian @ s
        hessian += np.outer(y, y) / (y @ s) - np.outer(image_of_s, image_of_s) / (s @ image_of_s)
    factor = np.linalg.cholesky(hessian)
    bounds = (-images[0].numpy(), 1 - images[0].numpy())
    exact = lsq_linear(factor.T, -np.linalg.solve(factor, gradient[0].numpy()), bounds=bounds, tol=1e-14).x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lbfgs, "NEWTON_STEPS", 30)
        step = lbfgs._direction(images, gradient, c, torch.cat((changes, steps), dim=1), age)[0]
    np.testing.assert_allclose(step.numpy(), exact, atol=1e-6)

    step = lbfgs._direction(images, gradient, c, torch.cat((changes, steps), dim=1), age)[0]
    assert step @ gradient[0] < 0
    assert ((images[0] + step >= -1e-12) & (images[0] + step <= 1 + 1e-12)).all()


def curved_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Flatten(), nn.Linear(SIDE**2, 16), nn.Tanh(), nn.Linear(16, 5)
    model = nn.Sequential(*layers).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


class BatchSizes(nn.Module):
    """A model that notes the size of each batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, list[int]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(len(inputs))
        logits: Tensor = self.model(inputs)
        return logits


def test_what_is_left_of_a_perturbation_is_needed() -> None:
    """A sixty-fourth of the last tenth less, and the image is no longer fooled."""
    model, inputs = curved_model(), digit_like_images(8, 5)
    labels = predictions(model, inputs)
    output = run(model, inputs, labels)
    left = 1 - 1.01 * 0.1 / 2**lbfgs.SHORTENINGS
    assert (predictions(model, output.adv_inputs) != labels).all()
    assert (predictions(model, inputs + left * (output.adv_inputs - inputs)) == labels).double().mean() >= 0.75


@pytest.mark.parametrize("targets", ["runner_up", "all"])
def test_an_image_does_not_depend_on_its_batch(targets: str) -> None:
    config = replace(CONFIG, targets=targets)  # type: ignore[arg-type]
    model, inputs = curved_model(), digit_like_images(4, 5)
    labels = predictions(model, inputs)
    whole = run(model, inputs, labels, config)
    for i in range(4):
        alone = run(model, inputs[i : i + 1], labels[i : i + 1], config)
        torch.testing.assert_close(alone.adv_inputs[0], whole.adv_inputs[i], rtol=0, atol=1e-6)
        assert alone.n_forwards[0] == whole.n_forwards[i]


def test_images_that_are_done_leave_the_batch() -> None:
    inputs = digit_like_images(8, 5)
    model = BatchSizes(curved_model())
    output = run(model, inputs, predictions(model.model, inputs))
    assert len(set(output.n_forwards.tolist())) > 1, "all images are equally hard: the test tests nothing"
    searching, shortening = model.seen[: -lbfgs.SHORTENINGS], model.seen[-lbfgs.SHORTENINGS :]
    assert searching == sorted(searching, reverse=True)
    assert shortening == [8] * lbfgs.SHORTENINGS
    assert [sum(size > i for size in model.seen) for i in range(8)] == output.n_forwards.sort(descending=True)[
        0
    ].tolist()


@pytest.mark.parametrize("targets", ["runner_up", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_and_types(targets: str, dtype: torch.dtype) -> None:
    model, inputs = CountingModel(curved_model(dtype)).eval(), digit_like_images(8, 5).to(dtype)
    labels = predictions(model.model, inputs)
    labels[3] = (labels[3] + 1) % 5
    with torch.no_grad():
        output = run(model, inputs, labels, replace(CONFIG, targets=targets))  # type: ignore[arg-type]
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (model.n_forwards, model.n_backwards)
    assert output.adv_inputs.dtype == dtype
    assert (predictions(model.model, output.adv_inputs) != labels).all()


def test_the_judge_finds_the_same_successes_in_another_batch() -> None:
    """In float32 a success may not hang on the rounding of the batch that it was found in."""
    model, inputs = curved_model(torch.float32), digit_like_images(64, 6).float()
    labels = predictions(model, inputs)
    output = run(model, inputs, labels, replace(CONFIG, search_steps=40))
    alone = torch.cat([predictions(model, image[None]) for image in output.adv_inputs])
    assert (alone != labels).all()


def test_what_is_fooled_already_costs_a_forward() -> None:
    model, inputs = Linear(3), interior_images()
    predicted = predictions(model, inputs)
    for labels, targets in (((predicted + 1) % 3, None), (predicted, predicted)):
        output = run(model, inputs, labels, targets=targets)
        assert torch.equal(output.adv_inputs, inputs)
        assert output.n_forwards.tolist() == [1] * 8
        assert output.n_backwards.tolist() == [0] * 8
        assert (output.status == Status.OK).all()


def test_a_failure_returns_what_came_closest() -> None:
    """The box does not reach the boundary: the corner nearest to it in logits is the best attempt."""
    model = Linear()
    model.bias[0] += 100
    inputs = digit_like_images(4, 2)
    normal, _ = gap(model, inputs[0], 0, 1)
    output = run(model, inputs, torch.zeros(4, dtype=torch.long))
    assert (predictions(model, output.adv_inputs) == 0).all()
    corner = (normal > 0).double().view(1, 1, SIDE, SIDE).expand_as(inputs)
    torch.testing.assert_close(output.adv_inputs, corner)
    assert (output.status == Status.OK).all()


class Spoilt(nn.Module):
    """The linear model, with one image's logits or gradients not finite from some call on, and one's constant."""

    def __init__(self, how: str, calls: int) -> None:
        super().__init__()
        self.model, self.how, self.calls = Linear(3), how, calls

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls -= 1
        corner = inputs[:, 0, 0, 0]  # of the images of this test, marked by a first pixel that no weight sees
        logits: Tensor = self.model(inputs)
        poison = (corner > 0.8) & (self.calls < 0)
        if self.how == "logits":
            logits = logits.masked_fill(poison[:, None], torch.nan)
        else:
            logits = logits + ((corner * 0).where(poison, 1).sqrt() * 0)[:, None]  # 0 · ∞ backwards
        return torch.where((corner < 0.2)[:, None], logits.detach(), logits)


@pytest.mark.parametrize("how", ["logits", "gradients"])
@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_spoilt_image_spoils_no_other(how: str, calls: int) -> None:
    spoilt = Spoilt(how, calls)
    model = CountingModel(spoilt).eval()
    spoilt.model.weight[:, 0] = 0
    inputs = interior_images(4)
    inputs[1, 0, 0, 0], inputs[2, 0, 0, 0] = 0.9, 0.1
    labels = predictions(spoilt.model, inputs)
    output = run(model, inputs, labels)
    assert output.status.tolist() == [Status.OK, Status.NON_FINITE, Status.STOPPED, Status.OK]
    assert output.adv_inputs.isfinite().all()
    assert torch.equal(output.adv_inputs[2], inputs[2])
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (model.n_forwards, model.n_backwards)
    healthy = torch.tensor([0, 3])
    expected = run(spoilt.model, inputs[healthy], labels[healthy])
    torch.testing.assert_close(output.adv_inputs[healthy], expected.adv_inputs)


def test_given_targets_must_be_given() -> None:
    inputs = interior_images(1)
    with pytest.raises(ValueError, match=r"^targets: "):
        run(Linear(), inputs, torch.zeros(1, dtype=torch.long), replace(CONFIG, targets="given"))
