"""What every training loss owes the trainer, and each against what it should be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import ExampleRng
from pipeline.classifier import Classifier
from pipeline.config import ParamsError, load_params, parse
from pipeline.datasets.base import Split
from pipeline.deform import warp
from pipeline.errors import UserError
from pipeline.nets import training_key
from pipeline.provenance import ROOT
from pipeline.settings import Architecture, ComputeConfig, TrainConfig, modules
from pipeline.training import train

DEFORM = {"kind": "deform_pgd", "norm": "deformation", "fold_free": True, "sigma": 0.5, "steps": 3, "step_size": 1.0}
ADEF = {"kind": "adef", "norm": "deformation", "candidates": 2, "sigma": 0.5, "max_iter": 3, "max_norm": 3.0}
DEFENCES: dict[str, dict[str, Any]] = {
    "gaussian": {"kind": "gaussian", "std": 0.3, "share": 0.5},
    "pgd": {"kind": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 3, "step_size": 0.5, "share": 0.5},
    "pgd_l2": {"kind": "pgd", "norm": "l2", "epsilon": 0.5, "steps": 3, "step_size": 0.5, "share": 0.5},
    "deform": {"kind": "deform_pgd", "fold_free": False, "sigma": 0.5, "epsilon": 0.5, "steps": 3, "step_size": 0.5}
    | {"share": 0.5},
    "fold_free": {"kind": "deform_pgd", "fold_free": True, "sigma": 0.5, "epsilon": 2, "steps": 3, "step_size": 0.5}
    | {"share": 0.5},
    "any": {"kind": "adversarial", "attack": DEFORM | {"restarts": 1, "loss": "margin"}, "epsilon": 1.0, "share": 0.5},
    "adef": {"kind": "adversarial", "attack": ADEF | {"overshoot": 1.2}, "epsilon": None, "share": 0.5},
    "flow_gradient": {"kind": "flow_gradient", "weight": 0.1},
    "steady_state": {"kind": "steady_state", "weight": 0.5, "beyond": 1.0, "noise": None},
    "noises": {"kind": "gaussian", "std": [0.1, 0.3], "share": 1.0},
}
BASE = load_params(ROOT / "params.yaml")
every_defence = pytest.mark.parametrize("name", DEFENCES)


def train_config(**changes: Any) -> TrainConfig:
    raw = dataclasses.asdict(BASE.train) | {"defence": None, "epochs": 1, "batch_size": 50} | changes
    return parse(TrainConfig, raw, "train")


def loss(entry: dict[str, Any], net: nn.Module, inputs: Tensor, labels: Tensor, *, epoch: int = 0) -> Tensor:
    defence = train_config(defence=entry).defence
    assert defence is not None
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="train", attack=defence.kind, draw=epoch)
    found: Tensor = components.load("defences", defence.kind).loss(net, inputs, labels, config=defence.config, rng=rng)
    return found


class Steady(nn.Module):
    """A layer that pretends to be at a steady state, or not: ``path`` is the mean square of its input."""

    beyond = 0.0
    path: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        if self.beyond:
            self.path = self.beyond * hidden.square().mean(1)
        return hidden


class Net(nn.Sequential):
    """A small smooth classifier that knows whether it was evaluated in training mode."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(144, 16), nn.Tanh(), Steady(), nn.Linear(16, 5))
        self.modes: list[bool] = []
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        logits: Tensor = super().forward(inputs)
        return logits


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    axis = torch.arange(12, dtype=torch.float64)
    centers = 3 + 6 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    along_y, along_x = (torch.exp(-0.1 * (axis - centers[:, k, None]) ** 2) for k in range(2))
    return (along_y[:, :, None] * along_x[:, None, :])[:, None], torch.arange(n) % 5


@pytest.mark.parametrize("kind", components.kinds("defences"))
def test_is_configured_somewhere(kind: str) -> None:
    assert kind in {entry["kind"] for entry in DEFENCES.values()}, f"give {kind} an entry in DEFENCES of this file"


@every_defence
def test_a_loss_trains_the_net_and_leaves_the_rest_alone(name: str) -> None:
    net, (inputs, labels) = Net().train(), batch()
    before, state = inputs.clone(), torch.get_rng_state()
    found = loss(DEFENCES[name], net, inputs, labels)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert found.shape == ()
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    found.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad


@every_defence
def test_randomness_belongs_to_the_example_and_the_epoch(name: str) -> None:
    net, (inputs, _) = Net(), batch()
    labels = net(inputs).argmax(1)
    first, again, later = (loss(DEFENCES[name], net, inputs, labels, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again
    if DEFENCES[name]["kind"] not in ("flow_gradient", "steady_state"):
        assert first != later


@pytest.mark.parametrize("name", [name for name, entry in DEFENCES.items() if "share" in entry])
def test_a_share_of_none_is_the_cross_entropy(name: str) -> None:
    net, (inputs, labels) = Net(), batch()
    found = loss(DEFENCES[name] | {"share": 0.0}, net, inputs, labels)
    torch.testing.assert_close(found, F.cross_entropy(net(inputs), labels))


ADVERSARIAL = ["pgd", "pgd_l2", "deform", "fold_free", "any", "adef"]


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_attacked_images_are_harder(name: str) -> None:
    net, (inputs, _) = Net(), batch()
    labels = net(inputs).argmax(1)
    found = loss(DEFENCES[name] | {"share": 1.0}, net, inputs, labels)
    assert found > F.cross_entropy(net(inputs), labels) + 0.01


@pytest.mark.parametrize("name", ["pgd", "pgd_l2"])
def test_pgd_trains_on_the_worst_of_the_ball(name: str) -> None:
    """On a linear net of two classes CE is softplus of the margin: its maximum over the ball is known."""
    norm, epsilon = DEFENCES[name]["norm"], DEFENCES[name]["epsilon"]
    weights = torch.randn(144, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    class Linear(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            value = (inputs.flatten(1) * weights).sum(1)
            return torch.stack((value, -value), dim=1)

    inputs, labels = torch.full((4, 1, 12, 12), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    found = loss(DEFENCES[name] | {"steps": 40, "step_size": 0.1, "share": 1.0}, Linear(), inputs, labels)
    gain = 2 * epsilon * (weights.abs().sum() if norm == "linf" else weights.norm())
    margins = -2 * (0.5 * weights).sum() * torch.tensor([1, -1]) + gain
    torch.testing.assert_close(found, F.softplus(margins).mean(), rtol=1e-3 if norm == "l2" else 1e-9, atol=0)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_attacks_meet_the_net_in_eval_mode(name: str) -> None:
    net, (inputs, labels) = Net().train(), batch()
    loss(DEFENCES[name], net, inputs, labels)
    assert net.modes[:-1] == [False] * (len(net.modes) - 1)
    assert net.modes[-1]


def test_gaussian_noise_has_its_size() -> None:
    seen = []

    class Sees(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return super().forward(inputs)

    inputs = torch.full((500, 1, 12, 12), 0.5, dtype=torch.float64)
    loss({"kind": "gaussian", "std": 0.1, "share": 0.3}, Sees(), inputs, torch.zeros(500, dtype=torch.long))
    noise = (seen[0] - inputs).flatten(1)
    noisy = noise.any(1)
    assert noisy.double().mean().item() == pytest.approx(0.3, abs=0.06)
    assert noise[noisy].std().item() == pytest.approx(0.1, rel=0.02)
    loss(DEFENCES["noises"], Sees(), inputs, torch.zeros(500, dtype=torch.long))
    sizes = (seen[1] - inputs).flatten(1).std(1)
    small, large = sizes[sizes < 0.18], sizes[sizes > 0.18]
    assert small.mean().item() == pytest.approx(0.1, rel=0.02)
    assert large.mean().item() == pytest.approx(0.3, rel=0.1)  # less, because it is clipped
    assert len(small) / 500 == pytest.approx(0.5, abs=0.07)


def test_the_steady_state_loss_may_be_that_of_noisy_images() -> None:
    seen: list[Tensor] = []
    net, (inputs, labels) = Net(), batch()
    net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    loss(DEFENCES["steady_state"] | {"noise": {"std": 0.3, "share": 1.0}}, net, inputs, labels)
    assert (seen[0] != inputs).flatten(1).any(1).all()


def test_flow_gradient_is_the_derivative_by_finite_differences() -> None:
    """On images whose interpolant is smooth (ramps) ∂CE/∂τ is what moving the pixels really does."""
    net, labels = Net(), torch.tensor([0, 3])
    rows, columns = torch.meshgrid(*2 * [torch.linspace(0, 1, 12, dtype=torch.float64)], indexing="ij")
    inputs = torch.stack((0.2 + 0.3 * rows + 0.1 * columns, 0.9 - 0.6 * columns))[:, None]
    weight, h = 0.7, 1e-5
    penalty = torch.zeros(2, dtype=torch.float64)
    for i in range(1, 11):
        for j in range(1, 11):
            for component in range(2):
                field = torch.zeros(2, 12, 12, 2, dtype=torch.float64)
                field[:, i, j, component] = h
                up, down = (
                    F.cross_entropy(net(warp(inputs, sign * field)), labels, reduction="none") for sign in (1, -1)
                )
                penalty += ((up - down) / (2 * h)).detach() ** 2
    # The border's pixels can move inwards alone: one-sided there, and their share is taken from the closed form.
    points = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(points), labels, reduction="sum"), points)
    border = torch.ones(12, 12, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    slopes = torch.tensor([(0.3**2 + 0.1**2), 0.6**2], dtype=torch.float64) / 11**2
    penalty += slopes * (gradient[:, 0] ** 2)[:, border].sum(1)
    expected = (F.cross_entropy(net(inputs), labels, reduction="none") + weight * penalty).mean()
    torch.testing.assert_close(loss({"kind": "flow_gradient", "weight": weight}, net, inputs, labels), expected)


def test_the_steady_state_loss_is_added_and_forgotten() -> None:
    net, (inputs, labels) = Net(), batch()
    hidden = torch.tanh(net[1](inputs.flatten(1)))  # type: ignore[operator]
    expected = F.cross_entropy(net(inputs), labels) + 0.5 * 2.0 * hidden.square().mean()
    torch.testing.assert_close(loss(DEFENCES["steady_state"] | {"beyond": 2.0}, net, inputs, labels), expected)
    assert net[3].beyond == 0
    with pytest.raises(UserError, match=r"train\.defence: steady_state needs .* tisode"):
        loss(DEFENCES["steady_state"], nn.Sequential(nn.Flatten(), nn.Linear(144, 5).double()), inputs, labels)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (DEFENCES["adef"] | {"epsilon": 1.0}, "train.defence.epsilon: for adef it must be null"),
        (DEFENCES["any"] | {"epsilon": None}, "train.defence.epsilon: for deform_pgd it must be a number"),
        (DEFENCES["adef"] | {"attack": ADEF | {"kind": "adeff"}}, "train.defence.attack.kind: .*did you mean 'adef'"),
        (DEFENCES["adef"] | {"attack": ADEF}, "train.defence.attack: missing key overshoot"),
        ({"kind": "gausian", "std": 1.0}, "train.defence.kind: .*did you mean 'gaussian'"),
        ("gaussian", "train.defence: must be a mapping"),
    ],
)
def test_wrong_entries_are_named(entry: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        train_config(defence=entry)


def test_the_key_knows_the_code_of_a_defence_and_of_its_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config(defence=DEFENCES["adef"])
    assert modules(config) == ["pipeline.defences.adversarial", "pipeline.attacks.adef"]
    seen: list[list[str]] = []

    def code_hash(names: list[str]) -> str:
        seen.append(names)
        return "hash"

    monkeypatch.setattr("pipeline.provenance.code_hash", code_hash)
    card = {"splits": {"train": {"sha256": "a"}, "validation": {"sha256": "b"}}}
    training_key(dataclasses.replace(BASE.models["resnet"], train=config), card, 0)
    assert set(modules(config)) <= set(seen[0])


@pytest.mark.parametrize("name", ["gaussian", "pgd", "deform", "flow_gradient"])
def test_training_with_it_gives_the_same_weights_twice(name: str, digits: Split, tmp_path: Path) -> None:
    small = {"kind": "resnet", "channels": 8, "groups": 4, "blocks": 1}
    config = parse(components.load("models", "resnet").Config, {k: v for k, v in small.items() if k != "kind"}, "m")
    model = Architecture("models", "small", "resnet", config, train_config(defence=DEFENCES[name]))
    part = Split(digits.images[:100], digits.labels[:100])
    splits, card = {"train": part, "validation": part}, {"n_classes": 10, "splits": {}}
    card["splits"] = {split: {"sha256": split} for split in splits}
    compute = ComputeConfig(
        accelerator="cpu", devices=1, num_nodes=1, strategy="auto", batch_size="auto", launcher=None, live=False
    )
    weights = [train(model, 0, splits, card, compute, store=tmp_path / run)[0] for run in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    undefended = dataclasses.replace(model, train=train_config())
    plain, report = train(undefended, 0, splits, card, compute, store=tmp_path / "c")
    assert not all(torch.equal(weights[0][key], plain[key]) for key in plain)
    assert math.isfinite(report["history"][0]["train_loss"])


def test_dropout_does_not_depend_on_what_ran_before() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5)).double()
    classifier = Classifier(net, train_config(), seed=0, steps=1)
    classifier.log = lambda *_, **__: None  # type: ignore[method-assign]
    inputs, labels = batch()
    losses = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        losses.append(classifier.training_step((inputs, labels, torch.arange(8)), 0))
    assert losses[0] == losses[1]
