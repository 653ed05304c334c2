"""What every architecture owes the benchmark. A new one is picked up by its file and its params.yaml entry."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import components
from pipeline.config import load_params, parse
from pipeline.nets import build
from pipeline.provenance import ROOT
from pipeline.settings import Component

IN_SHAPE, N_CLASSES = (1, 28, 28), 10
# Entries of kinds that params.yaml does not use, and of settings worth testing besides: {name: entry}.
WITHOUT_ENTRY: dict[str, dict[str, Any]] = {
    "mnist_a": {"kind": "adef_cnn", "preset": "mnist_a"},
    "mnist_b": {"kind": "adef_cnn", "preset": "mnist_b"},
    "tisode": {
        "kind": "tisode",
        "channels": 16,
        "groups": 4,
        "solver": {"method": "rk4", "steps": 3, "gradient": "backprop"},
    },
    "input_ode": {
        "kind": "input_ode",
        "width": 8,
        "augment": 2,
        "solver": {"method": "rk4", "steps": 3, "gradient": "backprop"},
        "readout": "trained",
    },
    "yan2020_cnn": {"kind": "yan2020_cnn", "channels": 16, "groups": 4},
    "yan2020_ode": {
        "kind": "yan2020_ode",
        "channels": 16,
        "groups": 4,
        "time_invariant": False,
        "solver": {"method": "euler", "steps": 10, "gradient": "backprop"},
    },
    "dopri5": {
        "kind": "neural_ode",
        "channels": 16,
        "groups": 4,
        "solver": {
            "method": "dopri5",
            "rtol": 1e-3,
            "atol": 1e-3,
            "max_steps": 1000,
            "control": "batch",
            "gradient": "adjoint",
        },
    },
}
WITHOUT_ENTRY["adaptive"] = copy.deepcopy(WITHOUT_ENTRY["dopri5"])
WITHOUT_ENTRY["adaptive"]["solver"] |= {"method": "tsit5", "control": "sample", "gradient": "backprop"}
KINDS = components.kinds("models")


def from_table(name: str, entry: dict[str, Any]) -> Component:
    kind = entry["kind"]
    arguments = {key: value for key, value in entry.items() if key != "kind"}
    return Component("models", name, kind, parse(components.load("models", kind).Config, arguments, name))


SHIPPED = list(load_params(ROOT / "params.yaml").models.values())
MODELS = SHIPPED + [from_table(name, entry) for name, entry in WITHOUT_ENTRY.items()]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def net_of(model: Component, *, seed: int = 0) -> nn.Module:
    return build(model, in_shape=IN_SHAPE, n_classes=N_CLASSES, seed=seed)


def images(n: int) -> Tensor:
    return torch.rand(n, *IN_SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_is_configured_somewhere(kind: str) -> None:
    assert any(model.kind == kind for model in MODELS), (
        f"no test below builds {kind}: give it an entry under models in params.yaml, "
        "or one in WITHOUT_ENTRY of this file"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_config_is_frozen_and_says_everything(kind: str) -> None:
    config = components.load("models", kind).Config
    assert config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert field.kw_only, field.name
        assert field.default is dataclasses.MISSING, f"{field.name} has a default: params.yaml must say it"
        assert field.default_factory is dataclasses.MISSING, field.name


@every_model
def test_maps_images_to_logits(model: Component) -> None:
    net = net_of(model).eval()
    inputs = images(3)
    before = inputs.clone()
    with torch.no_grad():
        logits = net(inputs)
        assert net(inputs[:1]).shape == (1, N_CLASSES)
    assert logits.shape == (3, N_CLASSES)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert torch.equal(inputs, before)


@every_model
def test_works_in_float64(model: Component) -> None:
    with torch.no_grad():
        logits = net_of(model).double().eval()(images(2).double())
        expected = net_of(model).eval()(images(2))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=1e-3, atol=1e-4)


@every_model
def test_gradients_reach_every_parameter_and_the_inputs(model: Component) -> None:
    net = net_of(model).train()
    inputs = images(4).requires_grad_()
    F.cross_entropy(net(inputs), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    for name, tensor in [("inputs", inputs), *net.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def couples_batch(model: Component) -> bool:
    declares = getattr(components.load("models", model.kind), "couples_batch", None)
    return bool(declares and declares(model.config))


@pytest.mark.parametrize("model", [m for m in MODELS if not couples_batch(m)], ids=lambda model: model.name)
def test_an_image_does_not_depend_on_its_batch(model: Component) -> None:
    net, inputs = net_of(model).eval(), images(17)
    with torch.no_grad():
        whole = net(inputs)
        alone = torch.cat([net(inputs[i : i + 1]) for i in range(len(inputs))])
        brighter = net(torch.cat((inputs[:1], torch.ones(16, *IN_SHAPE))))
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(brighter[0], whole[0], rtol=0, atol=1e-5)


def test_steps_of_the_batch_couple_it() -> None:
    """The test above can fail: batch-controlled steps at a loose tolerance break it."""
    (model,) = (m for m in MODELS if couples_batch(m))
    net = net_of(model).double().eval()
    with torch.no_grad():
        for parameter in net[1].parameters():  # type: ignore[index]
            parameter.mul_(3)  # a field with something to resolve
        inputs = images(17).double()
        whole, alone = net(inputs), torch.cat([net(inputs[i : i + 1]) for i in range(len(inputs))])
    assert (alone - whole).abs().max() > 1e-5


def test_solvers_say_of_each_image_what_they_did() -> None:
    model = next(m for m in MODELS if m.name == "adaptive")
    net = net_of(model).eval()
    with torch.no_grad():
        net(images(5))
    block = net[1]  # type: ignore[index]
    assert block.nfe.shape == block.solver_failed.shape == (5,)
    assert (block.nfe > 0).all()
    assert not block.solver_failed.any()


@every_model
def test_initial_weights_depend_on_the_seed_alone(model: Component) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = net_of(model).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    torch.manual_seed(6)
    again, other = net_of(model).state_dict(), net_of(model, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("model", SHIPPED[1:], ids=lambda model: model.name)
def test_the_default_architectures_start_from_one_stem(model: Component) -> None:
    reference, own = (net_of(m)[0].state_dict() for m in (SHIPPED[0], model))  # type: ignore[index]
    assert reference.keys() == own.keys()
    assert all(torch.equal(reference[name], own[name]) for name in reference)


@every_model
def test_weights_survive_the_disk(model: Component, tmp_path: Path) -> None:
    net, other = net_of(model).eval(), net_of(model, seed=1).eval()
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.no_grad():
        assert torch.equal(net(images(2)), other(images(2)))
