"""What every attack owes the judge, whatever it is. A new attack is picked up by its file and its params.yaml entry."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import AttackOutput, ExampleRng, Goal, Norm, Status
from pipeline.config import load_params
from pipeline.evaluate import SIZE_SLACK, CountingModel
from pipeline.judge_field import examine
from pipeline.provenance import ROOT

# Configs of kinds, or branches of them, that params.yaml does not use: {kind: [arguments of its Config, ...]}.
EXTRA: dict[str, list[dict[str, Any]]] = {
    "margin_step": [{"norm": "linf"}],
    "deform_min": [{"norm": "deformation", "fold_free": True, "sigma": 0.5, "steps": 10}],
    "fmn": [{"norm": "linf", "steps": 20, "step_size": 1.0, "gamma": 0.3, "loss": "margin"}],
    "deform_search": [{"norm": "deformation", "fold_free": True, "queries": 20, "first_width": 3.0, "last_width": 1.0}],
    "square": [{"norm": "linf", "queries": 20, "p_init": 0.8}],
    "pgd": [{"norm": "linf", "steps": 3, "step_size": 0.5, "restarts": 3, "random_start": True, "loss": "margin"}],
}
if importlib.util.find_spec("pyautoattack"):  # the extra [autoattack]
    EXTRA["autoattack"] = [
        {"norm": "linf", "member": m, "iterations": 5, "classes": 2} for m in ("apgd_ce", "apgd_t", "fab_t")
    ]
# A strength of each norm at which images of 12 × 12 pixels are changed, but remain what they were.
EPSILON: dict[str, float] = {"sigma": 0.2, "linf": 0.1, "l2": 0.5, "deformation": 1.0}
N, SIDE, K = 6, 12, 5
KINDS = components.kinds("attacks")


@dataclass(frozen=True)
class Case:
    """An attack with one of its configs."""

    kind: str
    config: Any

    def __str__(self) -> str:
        free = "-fold_free" if getattr(self.config, "fold_free", False) else ""
        member = f"-{self.config.member}" if hasattr(self.config, "member") else ""
        return f"{self.kind}{member}-{self.config.norm}{free}"

    @property
    def epsilon(self) -> float | None:
        return EPSILON[self.config.norm] if components.load("attacks", self.kind).GOAL == "budget" else None


def cases() -> list[Case]:
    """Every kind's configs, each under every norm and threat model that the attack has."""
    given: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for entry in load_params(ROOT / "params.yaml").attacks.values():
        given[entry.kind].append(entry.config)
    found = []
    for kind, configs in given.items():
        module = components.load("attacks", kind)
        configs += [module.Config(**arguments) for arguments in EXTRA.get(kind, [])]
        found += [Case(kind, variant) for config in configs for variant in variants(config, module.NORMS)]
    return list(dict.fromkeys(found))


def variants(config: Any, norms: tuple[str, ...]) -> list[Any]:
    found = []
    for norm in norms:
        for fold_free in (False, True) if hasattr(config, "fold_free") else (None,):
            change: dict[str, Any] = {"norm": norm} | ({} if fold_free is None else {"fold_free": fold_free})
            found.append(dataclasses.replace(config, **change))
    return found


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)


class RowWise(nn.Linear):
    """A linear layer whose sums round the same in any batch; a matrix product's rounding depends on its shape.

    Attacks choose and stop by comparisons, which can make a difference of 1e-16 visible. What an image's result shows
    of its neighbours on this layer is the attack's doing, not the rounding's.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs[:, None] * self.weight).sum(-1) + self.bias


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small smooth classifier of 12 × 12 images with weights of its own generator."""
    model = nn.Sequential(nn.Flatten(), RowWise(SIDE * SIDE, 16), nn.Tanh(), RowWise(16, K)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / parameter.shape[-1]) ** 0.5)
    return model.to(dtype)


def images(n: int = N, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 1, 12, 12): bright blobs on black, like digits; touching 0 and 1, with slopes for deformations to use."""
    generator = torch.Generator().manual_seed(2)
    axis = torch.arange(SIDE, dtype=torch.float64)
    centers = 3 + 5 * torch.rand(n, 3, 2, generator=generator, dtype=torch.float64)
    along_y, along_x = (torch.exp(-0.3 * (axis - centers[..., k, None]) ** 2) for k in range(2))
    blobs = (along_y[..., :, None] * along_x[..., None, :]).sum(1, keepdim=True)
    return ((1.4 * blobs).clamp(0.02, 1) - 0.02).div(0.98).to(dtype)


def predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = model(inputs).argmax(1)
    return labels


def generators(n: int = N) -> ExampleRng:
    return ExampleRng.for_examples(range(n), seed=0, dataset="contract", attack="contract")


def run(
    case: Case,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    rng: ExampleRng | None = None,
) -> AttackOutput:
    output: AttackOutput = components.load("attacks", case.kind).attack(
        model,
        inputs,
        labels,
        targets=targets,
        epsilon=case.epsilon,
        config=case.config,
        rng=rng or generators(len(inputs)),
    )
    return output


@dataclass(frozen=True)
class Setting:
    """An attack on six images that the model gets right, and what the judge's counter saw."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    output: AttackOutput
    counts: tuple[int, int]


@cache
def attacked(case: Case, *, targeted: bool = False) -> Setting:
    model, inputs = net(), images()
    labels = predictions(model, inputs)
    counting = CountingModel(model).eval()
    output = run(case, counting, inputs, labels, targets=(labels + 1) % K if targeted else None)
    return Setting(model, inputs, labels, output, (counting.n_forwards, counting.n_backwards))


def check_output(case: Case, inputs: Tensor, output: AttackOutput) -> None:
    """Shapes, types, box and budget."""
    n = len(inputs)
    assert output.adv_inputs.shape == inputs.shape
    assert output.adv_inputs.dtype == inputs.dtype
    assert output.adv_inputs.isfinite().all()
    assert ((output.adv_inputs >= 0) & (output.adv_inputs <= 1)).all()
    for counts in (output.n_forwards, output.n_backwards, output.status):
        assert counts.shape == (n,)
        assert counts.dtype == torch.int64
    assert (output.n_forwards >= 0).all()
    assert (output.n_backwards >= 0).all()
    assert set(output.status.tolist()) <= set(Status)
    if case.config.norm == "deformation":
        assert output.deformation is not None
        assert output.deformation.shape == (n, *inputs.shape[-2:], 2)
        assert output.deformation.dtype == inputs.dtype
    for tensor in (output.adv_inputs, output.deformation):
        assert tensor is None or not tensor.requires_grad
    if n:
        check_sizes(case, inputs, output)


def check_sizes(case: Case, inputs: Tensor, output: AttackOutput) -> None:
    limit = float("inf") if case.epsilon is None else case.epsilon * (1 + SIZE_SLACK) + SIZE_SLACK
    perturbation = (output.adv_inputs.double() - inputs.double()).flatten(1)
    match case.config.norm:
        case "linf":
            assert perturbation.abs().max() <= limit
        case "l2":
            assert torch.linalg.vector_norm(perturbation, dim=1).max() <= limit
        case "deformation":
            assert output.deformation is not None
            field = examine(inputs, output.adv_inputs, output.deformation)
            assert field["honest"].all()
            assert field["size_deformation"].max() <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_is_configured_somewhere(kind: str) -> None:
    if kind == "autoattack":
        pytest.importorskip("pyautoattack", reason="the extra [autoattack] is not installed")
    assert any(case.kind == kind for case in CASES), (
        f"no test below runs {kind}: give it an entry under attacks in params.yaml, "
        "or arguments of its Config in EXTRA of this file"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_interface(kind: str) -> None:
    module = components.load("attacks", kind)
    assert module.GOAL in get_args(Goal)
    assert isinstance(module.NORMS, tuple)
    assert module.NORMS
    assert set(module.NORMS) <= set(get_args(Norm))
    assert module.GOAL == "minimal" or isinstance(module.CLIMBS, bool)
    names = list(inspect.signature(module.attack).parameters)
    assert names == ["model", "inputs", "labels", "targets", "epsilon", "config", "rng"]


@pytest.mark.parametrize("kind", KINDS)
def test_config_is_frozen_and_says_everything(kind: str) -> None:
    config = components.load("attacks", kind).Config
    assert config.__dataclass_params__.frozen
    fields = dataclasses.fields(config)
    assert "norm" in {field.name for field in fields}
    for field in fields:
        assert field.kw_only, field.name
        unset = None if field.name == "budget" else dataclasses.MISSING  # a limit that is absent limits nothing
        assert field.default is unset, f"{field.name} has a default: params.yaml must say it"
        assert field.default_factory is dataclasses.MISSING, field.name


@every_case
@pytest.mark.parametrize("targeted", [False, True])
def test_output_is_well_formed_and_within_its_bounds(case: Case, targeted: bool) -> None:
    setting = attacked(case, targeted=targeted)
    check_output(case, setting.inputs, setting.output)
    same = torch.equal(setting.output.adv_inputs, setting.inputs)
    nothing_near = targeted and getattr(case.config, "member", None) == "fab_t"  # which evaluates nothing else within ε
    assert same == nothing_near, "what changes nothing is within every bound"


@every_case
@pytest.mark.parametrize("targeted", [False, True])
def test_counts_are_the_judges(case: Case, targeted: bool) -> None:
    setting = attacked(case, targeted=targeted)
    output = setting.output
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == setting.counts


@pytest.mark.parametrize("case", [case for case in CASES if hasattr(case.config, "budget")], ids=str)
@pytest.mark.parametrize("budget", [9, 30, 10**6])
def test_a_budget_is_kept_and_changes_nothing_if_large(case: Case, budget: int) -> None:
    setting = attacked(case)
    limited = dataclasses.replace(case.config, budget=budget)
    output = run(dataclasses.replace(case, config=limited), net(), setting.inputs, setting.labels)
    check_output(case, setting.inputs, output)
    assert (output.n_forwards + output.n_backwards <= budget).all()
    assert output.n_backwards.any()
    if budget == 10**6:
        assert torch.equal(output.adv_inputs, setting.output.adv_inputs)
        assert torch.equal(output.status, setting.output.status)


@pytest.mark.parametrize("case", [case for case in CASES if hasattr(case.config, "steps")], ids=str)
def test_a_budget_without_a_step_is_an_error(case: Case) -> None:
    least = 3 * getattr(case.config, "restarts", 1)
    dataclasses.replace(case.config, budget=least)
    with pytest.raises(ValueError, match="budget: must be at least"):
        dataclasses.replace(case.config, budget=least - 1)


@every_case
def test_a_gradient_attack_moves_towards_success(case: Case) -> None:
    """Not a test of strength: it catches a wrong sign and an attack that does nothing."""
    setting = attacked(case)
    if not setting.output.n_backwards.any():
        pytest.skip("uses no gradients")
    rows = torch.arange(N)
    clean, adv = (setting.model(x)[rows, setting.labels].mean() for x in (setting.inputs, setting.output.adv_inputs))
    assert adv < clean - 0.01


@every_case
def test_mutates_nothing(case: Case) -> None:
    model, inputs = net(), images()
    labels, rng = predictions(model, inputs), generators()
    before = [tensor.clone() for tensor in (inputs, labels, *model.state_dict().values())]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run(case, model, inputs, labels, rng=rng)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    after = (inputs, labels, *model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not inputs.requires_grad
    assert rng == generators()
    assert torch.is_grad_enabled()


@every_case
def test_same_randomness_same_result(case: Case) -> None:
    setting = attacked(case)
    torch.manual_seed(99)
    again = run(case, setting.model, setting.inputs, setting.labels)
    assert torch.equal(again.adv_inputs, setting.output.adv_inputs)
    assert torch.equal(again.status, setting.output.status)


@every_case
def test_needs_neither_grad_mode_nor_trainable_parameters(case: Case) -> None:
    setting = attacked(case)
    with torch.no_grad():
        frozen = run(case, net().requires_grad_(False), setting.inputs, setting.labels)
        assert not torch.is_grad_enabled()
    assert torch.equal(frozen.adv_inputs, setting.output.adv_inputs)


@every_case
def test_an_image_does_not_depend_on_its_batch(case: Case) -> None:
    model, inputs = net(torch.float64), images(dtype=torch.float64)
    labels = predictions(model, inputs)
    labels[1] = (labels[1] + 1) % K  # one that needs no attack
    whole = run(case, model, inputs, labels)
    check_output(case, inputs, whole)
    success = predictions(model, whole.adv_inputs) != labels
    for i in range(N):
        row = torch.tensor([i])
        alone = run(case, model, inputs[row], labels[row], rng=generators().subset(row))
        torch.testing.assert_close(alone.adv_inputs, whole.adv_inputs[row], rtol=0, atol=1e-5)
        assert torch.equal(predictions(model, alone.adv_inputs) != labels[row], success[row])
        for name in ("n_forwards", "n_backwards", "status"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[row]), name


@every_case
def test_no_images(case: Case) -> None:
    model = CountingModel(net()).eval()
    inputs = images()[:0]
    check_output(case, inputs, run(case, model, inputs, torch.zeros(0, dtype=torch.int64)))
    assert model.n_forwards == model.n_backwards == 0


@every_case
def test_images_that_are_wrong_already(case: Case) -> None:
    inputs = images()
    model = CountingModel(net()).eval()
    labels = (predictions(net(), inputs) + 1) % K
    output = run(case, model, inputs, labels)
    check_output(case, inputs, output)
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (model.n_forwards, model.n_backwards)
    assert all(Status(code).is_result for code in output.status.tolist())


class Poisoned(nn.Module):
    """A model that gives NaN logits for white images, or whose gradients there are NaN, or NaN after some calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how, self.calls = net(torch.float64), how, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.net(inputs)
        white = inputs.flatten(1).mean(1) > 0.6
        match self.how:
            case "logits":
                return torch.where(white[:, None], torch.nan, logits)
            case "gradients":
                zero = (inputs.flatten(1).sum(1) * 0).where(white, 1)
                return logits + (zero.sqrt() * 0)[:, None]  # 0 · ∞ backwards
            case "later":
                return torch.where(white[:, None] & (self.calls > 2), torch.nan, logits)
        raise AssertionError(self.how)


@every_case
@pytest.mark.parametrize("how", ["logits", "gradients", "later"])
def test_a_model_that_breaks_ends_in_a_status_and_spoils_no_neighbour(case: Case, how: str) -> None:
    inputs = images(dtype=torch.float64)
    inputs[2] = 1 - 0.1 * inputs[2]
    labels = predictions(net(torch.float64), inputs)
    model = CountingModel(Poisoned(how)).eval()
    output = run(case, model, inputs, labels)
    check_output(case, inputs, output)
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (model.n_forwards, model.n_backwards)
    met = {
        "logits": bool(output.n_forwards[2]),
        "gradients": bool(output.n_backwards[2]),
        "later": model.model.calls > 2 and bool(output.n_forwards[2] > 2),  # type: ignore[operator]
    }[how]
    if met:
        assert output.status[2] == Status.NON_FINITE
    others = torch.tensor([0, 1, 3, 4, 5])
    healthy = run(case, net(torch.float64), inputs[others], labels[others], rng=generators().subset(others))
    torch.testing.assert_close(output.adv_inputs[others], healthy.adv_inputs, rtol=0, atol=1e-5)
    assert torch.equal(output.status[others], healthy.status)


@every_case
def test_a_flat_model_is_survived(case: Case) -> None:
    """Zero gradients everywhere: nothing to follow, nothing to divide by."""

    class Flat(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)[:, :K] * 0 + torch.arange(K, 0, -1, dtype=inputs.dtype)

    inputs = images()
    model = CountingModel(Flat()).eval()
    output = run(case, model, inputs, torch.zeros(N, dtype=torch.int64))
    check_output(case, inputs, output)
    assert (int(output.n_forwards.sum()), int(output.n_backwards.sum())) == (model.n_forwards, model.n_backwards)
    assert all(Status(code).is_result for code in output.status.tolist())
