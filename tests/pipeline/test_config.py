"""Whatever is wrong with params.yaml ends in one line that names the key, before anything runs."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import components, workspace
from pipeline.config import Claim, Params, ParamsError, _parse_params, load_params
from pipeline.errors import UserError
from pipeline.fields import Range
from pipeline.models.neural_ode import Config as NeuralOdeConfig
from pipeline.provenance import ROOT
from pipeline.worst_case import THREATS

PARAMS = ROOT / "params.yaml"
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))

BASE: dict[str, Any] = {
    "dataset": {"kind": "mnist5k", "split_seed": 0, "train": 300, "validation": 50, "test": 100},
    "models": {
        "resnet": {"kind": "resnet", "channels": 16, "groups": 4, "blocks": 2},
        "neural_ode": {
            "kind": "neural_ode",
            "channels": 16,
            "groups": 4,
            "solver": {
                "method": "rk4",
                "steps": 4,
                "gradient": "backprop",
            },
        },
    },
    "variants": {},
    "train": {
        "epochs": 1,
        "batch_size": 50,
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "defence": None,
        "precision": "32-true",
    },
    "seeds": [0, 1],
    "attacks": {"fgsm": {"kind": "fgsm", "norm": "linf", "n_images": 20, "epsilons": [0.1, 0.2]}},
    "evaluate": {"seed": 0, "chunk_size": 10, "n_examples": 2, "batch_coupled": []},
    "transfer": {"attacks": ["fgsm"], "solvers": {"euler": {"method": "euler", "steps": 4, "gradient": "backprop"}}},
    "probe": {"n_images": 10, "most_steps": 50},
    "claims": {"c": {"more_robust": "neural_ode", "than": "resnet", "threat": "linf", "at": None}},
    "published": {
        "p": {
            "model": "resnet",
            "attack": "fgsm",
            "measure": "success",
            "at": 0.1,
            "value": 0.5,
            "mark": "seen",
            "source": "somebody",
            "differences": "everything",
        }
    },
    "compute": {
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "batch_size": "auto",
        "launcher": None,
        "live": False,
    },
}


COUPLED = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "max_steps": 99, "control": "batch", "gradient": "backprop"}


def parsed(raw: Any) -> Params:
    return _parse_params(raw, Path("params.yaml"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """BASE with one value replaced or added; ``path`` is dotted."""
    raw = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    entry = raw
    for name in parents:
        entry = entry[name]
    entry[last] = value
    return raw


def without(path: str) -> dict[str, Any]:
    raw = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    entry = raw
    for name in parents:
        entry = entry[name]
    del entry[last]
    return raw


def message(raw: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        parsed(raw)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("params.yaml")
    return text


def message_of_text(text: str, folder: Path) -> str:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dumped(raw: Any) -> str:
    stream = io.StringIO()
    YAML().dump(raw, stream)
    return stream.getvalue()


def test_the_base_of_these_tests_is_valid(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(dumped(BASE), encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    assert params == parsed(BASE)
    assert params.seeds == (0, 1)
    assert params.attacks["fgsm"].epsilons == (0.1, 0.2)
    assert params.attacks["fgsm"].norm == "linf"
    assert params.models["neural_ode"].config.solver.steps == 4
    assert isinstance(params.models["neural_ode"].config, NeuralOdeConfig)


def test_the_shipped_params_are_valid(shipped: Params) -> None:
    assert shipped.dataset.kind == "mnist5k", "the default needs no network"
    assert len(shipped.seeds) >= 3


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_the_shipped_profiles_are_valid(profile: Path, tmp_path: Path) -> None:
    raw = YAML().load(PARAMS.read_text(encoding="utf-8"))
    workspace.apply_profile(raw, profile)
    (tmp_path / "params.yaml").write_text(dumped(raw), encoding="utf-8")
    assert load_params(tmp_path / "params.yaml").models


def test_the_threats_of_claims_are_those_of_the_worst_case() -> None:
    hint = get_args(get_type_hints(Claim)["threat"])[0]
    assert set(get_args(hint)) == {threat.name for threat in THREATS}


def test_the_shipped_claims_name_the_talks_two(shipped: Params) -> None:
    found = {(claim.more_robust, claim.than, claim.threat) for claim in shipped.claims.values()}
    assert {("neural_ode", "cnn", "linf"), ("neural_ode", "cnn", "deformation_fold_free")} <= found


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ({"models": ["cnn", "neural_ode"], "attacks": ["pgd"]}, ["perturbations"]),
        ({"models": ["neural_ode"]}, []),
        ({"attacks": ["adef", "deform_pgd"], "models": ["cnn", "neural_ode"]}, ["adef"]),
        ({"attacks": ["deform_pgd_fold_free"], "models": ["resnet", "neural_ode"]}, ["deformations_resnet"]),
    ],
)
def test_a_profile_keeps_the_claims_that_it_can_test(only: dict[str, list[str]], left: list[str]) -> None:
    raw = YAML().load(PARAMS.read_text(encoding="utf-8"))
    workspace._apply(raw, {"only": only}, "profile")
    assert list(raw["claims"]) == left


def profile_of(tmp_path: Path, **texts: str) -> dict[str, Any]:
    """params.yaml as the last of these profiles changes it."""
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    raw: dict[str, Any] = YAML().load(PARAMS.read_text(encoding="utf-8"))
    workspace.apply_profile(raw, tmp_path / f"{list(texts)[-1]}.yaml")
    return raw


def test_a_profile_of_another_changes_what_that_one_made(tmp_path: Path) -> None:
    small = "only: {attacks: [fgsm]}\nset: {seeds: [7], train: {epochs: 2}}"
    raw = profile_of(tmp_path, small=small, longer="of: small\nset: {train: {epochs: 9}}")
    assert (list(raw["attacks"]), raw["seeds"], raw["train"]["epochs"]) == (["fgsm"], [7], 9)


def test_a_component_of_another_kind_takes_the_place_of_the_old(tmp_path: Path) -> None:
    raw = profile_of(
        tmp_path, other="set: {dataset: {kind: torchvision, name: MNIST}, models: {cnn: {kind: cnn, blocks: 1}}}"
    )
    assert raw["dataset"] == {"kind": "torchvision", "name": "MNIST"}
    assert raw["models"]["cnn"]["channels"] == 32


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"a": "of: b"}, "b.yaml: no such profile"),
        ({"a": "set: {}", "b": "of: a", "c": "of: b"}, "c.yaml: of: 'b' is itself a change of another profile"),
        ({"a": "off: b"}, "a.yaml: must have the keys 'only'"),
    ],
)
def test_a_profile_of_nothing_is_one_clear_error(tmp_path: Path, texts: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        profile_of(tmp_path, **texts)


# One thing wrong at a time: (what, what the message must contain)

MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "transfer of an unknown attack": (changed("transfer.attacks", ["pgd"]), ["transfer.attacks: 'pgd' is no attack"]),
    "transfer without images": (changed("evaluate.n_examples", 0), ["transfer.attacks", "evaluate.n_examples", "is 0"]),
    "unknown section": (changed("atacks", {}), ["unknown key 'atacks'", "did you mean 'attacks'?"]),
    "missing section": (without("seeds"), ["missing key seeds"]),
    "unknown key": (changed("train.epoch", 3), ["train: unknown key 'epoch'", "did you mean 'epochs'?"]),
    "missing key": (without("train.epochs"), ["train: missing key epochs"]),
    "missing keys": (
        changed("evaluate", {"seed": 0}),
        ["evaluate: missing keys batch_coupled, chunk_size, n_examples"],
    ),
    "missing kind": (without("models.resnet.kind"), ["models.resnet: missing key 'kind'", "resnet"]),
    "missing n_images": (without("attacks.fgsm.n_images"), ["attacks.fgsm", "n_images"]),
    "missing component key": (without("models.resnet.blocks"), ["models.resnet: missing key blocks"]),
    "unknown component key": (
        changed("models.resnet.block", 2),
        ["models.resnet: unknown key 'block'", "did you mean 'blocks'?"],
    ),
    "unknown architecture": (
        changed("models.resnet.kind", "resnet50"),
        ["models.resnet.kind: unknown kind 'resnet50'", "did you mean 'resnet'?", "known: "],
    ),
    "unknown attack": (
        changed("attacks.fgsm.kind", "fgms"),
        ["attacks.fgsm.kind: unknown kind 'fgms'", "did you mean 'fgsm'?"],
    ),
    "unknown data set": (
        changed("dataset.kind", "mnist5"),
        ["dataset.kind: unknown kind 'mnist5'", "did you mean 'mnist5k'?"],
    ),
    "kind that is a path": (changed("attacks.fgsm.kind", "../models/cnn"), ["attacks.fgsm.kind: unknown kind"]),
    "kind with a dot": (changed("attacks.fgsm.kind", "fgsm.Config"), ["attacks.fgsm.kind: unknown kind"]),
    "kind that is a helper": (changed("attacks.fgsm.kind", "base"), ["attacks.fgsm.kind: unknown kind 'base'"]),
    "kind that is a number": (changed("models.resnet.kind", 50), ["models.resnet.kind: must be a text", "50"]),
    "number as a string": (
        changed("train.learning_rate", "3e-3"),
        ["train.learning_rate: must be a number", "'3e-3'", "remove the quotes"],
    ),
    "whole number as a string": (changed("train.epochs", "10"), ["train.epochs", "remove the quotes"]),
    "number in a list as a string": (
        changed("attacks.fgsm.epsilons", [0.1, "0.2"]),
        ["attacks.fgsm.epsilons[1]: must be a number", "remove the quotes"],
    ),
    "text for a number": (changed("train.epochs", "many"), ["train.epochs: must be a whole number", "'many'"]),
    "fraction for a whole number": (changed("train.epochs", 1.5), ["train.epochs: must be a whole number", "1.5"]),
    "bool for a whole number": (changed("train.epochs", True), ["train.epochs: must be a whole number", "True"]),
    "bool for a number": (changed("train.learning_rate", True), ["train.learning_rate: must be a number"]),
    "number for a text": (changed("compute.accelerator", 1), ["compute.accelerator: must be a text"]),
    "list for a number": (changed("train.epochs", [1]), ["train.epochs: must be a whole number, not a list"]),
    "number for a list": (changed("seeds", 3), ["seeds: must be a list, not the number 3"]),
    "list for a mapping": (changed("train", [1]), ["train: must be a mapping", "a list"]),
    "nothing for a mapping": (changed("train", None), ["train: must be a mapping", "empty"]),
    "nothing for a number": (changed("train.epochs", None), ["train.epochs: must be a whole number, not empty"]),
    "zero": (changed("train.epochs", 0), ["train.epochs: must be at least 1, not 0"]),
    "negative": (changed("train.weight_decay", -0.1), ["train.weight_decay: must be at least 0, not -0.1"]),
    "open bound": (changed("train.learning_rate", 0.0), ["train.learning_rate: must be greater than 0"]),
    "above one": (
        changed("train.defence", {"kind": "gaussian", "std": 0.3, "share": 1.5}),
        ["train.defence.share: must be at most 1"],
    ),
    "NaN": (changed("train.learning_rate", math.nan), ["train.learning_rate", "NaN"]),
    "NaN strength": (changed("attacks.fgsm.epsilons", [math.nan]), ["attacks.fgsm.epsilons[0]", "NaN"]),
    "infinity": (changed("train.gradient_clip", math.inf), ["train.gradient_clip: must be a finite number"]),
    "huge whole number": (changed("train.learning_rate", 10**400), ["train.learning_rate"]),
    "whole number beyond 64 bits": (changed("train.epochs", 2**63), ["train.epochs", "64 bits"]),
    "whole number beyond any float": (changed("train.epochs", 10**400), ["train.epochs", "64 bits"]),
    "negative number beyond any float": (changed("train.epochs", -(10**400)), ["train.epochs", "64 bits"]),
    "unknown choice": (
        changed("train.precision", "16"),
        ["train.precision: must be one of 32-true, bf16-mixed, 16-mixed, not '16'"],
    ),
    "norm that the attack has not": (changed("attacks.fgsm.norm", "l2"), ["attacks.fgsm.norm", "linf", "'l2'"]),
    "strengths that descend": (changed("attacks.fgsm.epsilons", [0.2, 0.1]), ["attacks.fgsm.epsilons", "ascending"]),
    "strength twice": (changed("attacks.fgsm.epsilons", [0.1, 0.1]), ["attacks.fgsm.epsilons", "repeats"]),
    "no strengths": (changed("attacks.fgsm.epsilons", []), ["attacks.fgsm.epsilons", "non-empty"]),
    "strength zero": (changed("attacks.fgsm.epsilons", [0, 0.1]), ["attacks.fgsm.epsilons[0]", "greater than 0"]),
    "no seeds": (changed("seeds", []), ["seeds: must be a non-empty list"]),
    "seed twice": (changed("seeds", [0, 0]), ["seeds", "repeats"]),
    "negative seed": (changed("seeds", [0, -1]), ["seeds[1]: must be at least 0"]),
    "seed that is a truth value": (changed("seeds", [False]), ["seeds[0]: must be a whole number"]),
    "no models": (changed("models", {}), ["models: is empty"]),
    "no attacks": (changed("attacks", {}), ["attacks: is empty"]),
    "name with a space": (changed("models.my net", BASE["models"]["resnet"]), ["models: 'my net' is no name"]),
    "name that is a number": (changed("models", {50: BASE["models"]["resnet"]}), ["models: 50 is no name"]),
    "name that climbs": (changed("models", {"../x": BASE["models"]["resnet"]}), ["models: '../x' is no name"]),
    "groups that do not divide": (changed("models.resnet.groups", 5), ["models.resnet.groups", "divide channels (16)"]),
    "solver that couples the batch": (
        changed("models.neural_ode.solver", COUPLED),
        ["models.neural_ode: an image's prediction depends on the others", "evaluate.batch_coupled"],
    ),
    "coupling of a model that is not there": (
        changed("evaluate.batch_coupled", ["neural_od"]),
        ["evaluate.batch_coupled: 'neural_od' is no model; did you mean 'neural_ode'?"],
    ),
    "variant that couples the batch": (
        changed("variants", {"v": {"of": "neural_ode", "solver": COUPLED}}),
        ["variants.v: an image's prediction depends on the others"],
    ),
    "variant of nothing": (changed("variants", {"v": {"solver": COUPLED}}), ["variants.v: missing key 'of'"]),
    "variant of an unknown model": (
        changed("variants", {"v": {"of": "neural_od"}}),
        ["variants.v.of: 'neural_od' is no model; did you mean 'neural_ode'?"],
    ),
    "variant with the name of a model": (
        changed("variants", {"resnet": {"of": "neural_ode"}}),
        ["variants.resnet: is the name of a model"],
    ),
    "variant with an unknown key": (
        changed("variants", {"v": {"of": "resnet", "block": 3}}),
        ["variants.v: unknown key 'block'; did you mean 'blocks'?"],
    ),
    "variant with an unknown kind": (
        changed("variants", {"v": {"of": "resnet", "kind": "resnt"}}),
        ["variants.v.kind: unknown kind 'resnt'; did you mean 'resnet'?"],
    ),
    "variant that is trained": (
        changed("variants", {"v": {"of": "resnet", "train": {"epochs": 3}}}),
        ["variants.v: unknown key 'train'"],
    ),
    "solver without steps": (
        changed("models.neural_ode.solver.steps", None),
        ["models.neural_ode.solver.steps: needed by rk4"],
    ),
    "solver with tolerances": (
        changed("models.neural_ode.solver.rtol", 1e-3),
        ["models.neural_ode.solver.rtol: must be null for rk4"],
    ),
    "solver with an unknown key": (
        changed("models.neural_ode.solver.step", 1),
        ["models.neural_ode.solver: unknown key 'step'", "did you mean 'steps'?"],
    ),
    "unknown method": (
        changed("models.neural_ode.solver.method", "rk45"),
        ["models.neural_ode.solver.method: must be one of", "dopri5", "'rk45'"],
    ),
    "claim about an unknown model": (
        changed("claims.c.more_robust", "neural_od"),
        ["claims.c.more_robust: 'neural_od' is no model; did you mean 'neural_ode'?"],
    ),
    "claim about a model that is not there": (changed("claims.c.than", "cnn"), ["claims.c.than: 'cnn' is no model"]),
    "claim about one model": (changed("claims.c.than", "neural_ode"), ["claims.c.than: 'neural_ode' is compared"]),
    "claim about an unknown threat": (
        changed("claims.c.threat", "l1"),
        ["claims.c.threat: must be one of linf, l2, deformation, deformation_fold_free, not 'l1'"],
    ),
    "claim about a threat that no attack seeks": (
        changed("claims.c.threat", "l2"),
        ["claims.c.threat: no attack seeks l2"],
    ),
    "claim about fields without folds that no attack seeks": (
        changed("claims.c.threat", "deformation_fold_free"),
        ["claims.c.threat: no attack seeks deformation_fold_free"],
    ),
    "claim about a threat and an attack": (
        changed("claims.c.attack", "fgsm"),
        ["claims.c.threat: name either a threat or an attack"],
    ),
    "claim about neither": (changed("claims.c.threat", None), ["claims.c.threat: name either"]),
    "claim about an unknown attack": (
        changed("claims.c", {"more_robust": "neural_ode", "than": "resnet", "attack": "fgms", "at": None}),
        ["claims.c.attack: 'fgms' is no attack; did you mean 'fgsm'?"],
    ),
    "claim at a strength that is not measured": (
        changed("claims.c.at", 0.15),
        ["claims.c.at: must be null or one of 0.1, 0.2, not 0.15"],
    ),
    "figure of a model that is not there": (
        changed("published.p.model", "cnn"),
        ["published.p.model: 'cnn' is no mod"],
    ),
    "figure of an attack that is not there": (
        changed("published.p.attack", "fgms"),
        ["published.p.attack: 'fgms' is no attack; did you mean 'fgsm'?"],
    ),
    "figure at a strength that was not measured": (
        changed("published.p.at", 0.15),
        ["published.p.at: must be one of 0, 0.1, 0.2, not 0.15"],
    ),
    "claim without a strength": (without("claims.c.at"), ["claims.c: missing key at"]),
    "whole file a list": ([], ["must be a mapping"]),  # type: ignore[dict-item]
    "whole file empty": (None, ["must be a mapping"]),  # type: ignore[dict-item]
}


def test_a_solver_that_couples_the_batch_can_be_declared() -> None:
    raw = changed("models.neural_ode.solver", COUPLED)
    raw["evaluate"] = raw["evaluate"] | {"batch_coupled": ["neural_ode"]}
    assert parsed(raw).evaluate.batch_coupled == ("neural_ode",)


def test_a_variant_is_its_model_with_some_keys_replaced() -> None:
    raw = changed(
        "models.tied", {"kind": "euler_net", "channels": 16, "groups": 4, "blocks": 6, "train": {"epochs": 2}}
    )
    solver = {"method": "rk4", "steps": 2, "gradient": "backprop"}
    raw["variants"] = {
        "finer": {"of": "tied", "blocks": 12},
        "flow": {"of": "tied", "kind": "neural_ode", "solver": solver},
        "coarse": {"of": "neural_ode", "solver": solver},
    }
    params = parsed(raw)
    finer, flow, coarse = params.variants.values()
    assert (finer.kind, finer.config.channels, finer.config.blocks) == ("euler_net", 16, 12)
    assert (flow.kind, flow.config.channels, flow.config.solver.steps) == ("neural_ode", 16, 2)
    assert coarse.config.solver.steps == 2
    assert list(params.attacked) == ["resnet", "neural_ode", "tied", "finer", "flow", "coarse"]
    assert params.trained("flow") is params.models["tied"]
    assert params.trained("tied").train.epochs == 2


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str) -> None:
    raw, parts = MISTAKES[mistake]
    text = message(raw)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda text: text + "seeds: [3]\n", ["not valid YAML", "duplicate key", "seeds"]),
        (lambda text: text.replace("epochs: 1", "epochs: 1\n  epochs: 2"), ["not valid YAML", "duplicate key"]),
        (lambda text: text.replace("train:", "train: ["), ["not valid YAML"]),
        (lambda text: text.replace("train:", "\ttrain:"), ["not valid YAML"]),
        (lambda text: text.replace("32-true", "!!python/object:os.system 1"), ["not valid YAML"]),
        (lambda text: text.replace("epochs: 1", "epochs: .nan"), ["train.epochs"]),
        (lambda text: text.replace("epochs: 1", "epochs: 2001-99-99"), ["params.yaml"]),
        (lambda text: text.replace("epochs: 1", "epochs: " + "9" * 5000), ["params.yaml"]),
        (lambda text: text.replace("epochs: 1", "epochs: 2001-01-01"), ["train.epochs"]),
        (lambda text: text.replace("epochs: 1", "epochs: 0b"), ["train.epochs"]),
        (lambda text: text + "---\n" + text, ["not valid YAML"]),
        (lambda _: "", ["must be a mapping"]),
        (lambda text: text.replace("epochs: 1", "epochs: \x00"), ["not valid YAML"]),
    ],
)
def test_bad_yaml_is_an_error_of_one_line(edit: Callable[[str], str], parts: list[str], tmp_path: Path) -> None:
    text = message_of_text(edit(dumped(BASE)), tmp_path)
    for part in ["params.yaml", *parts]:
        assert part in text


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 parsers read 1e-3 as a text; DVC and this project read YAML 1.2."""
    path = tmp_path / "params.yaml"
    path.write_text(dumped(BASE).replace("learning_rate: 0.003", "learning_rate: 3e-3"), encoding="utf-8")
    assert "3e-3" in path.read_text(encoding="utf-8")
    assert load_params(path).train.learning_rate == 3e-3


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"absent\.yaml: no such file; run from the repository's root"):
        load_params(tmp_path / "absent.yaml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="not readable: Is a directory"):
        load_params(tmp_path)


def test_endless_nesting(tmp_path: Path) -> None:
    assert message_of_text("seeds: " + "[" * 3000 + "]" * 3000, tmp_path).endswith("nested too deeply")
    assert message_of_text("seeds: &s [*s]", tmp_path)
    assert message_of_text(dumped(without("models")) + "models: &m {net: *m}", tmp_path)


def test_whole_numbers_are_numbers() -> None:
    assert parsed(changed("train.gradient_clip", 2)).train.gradient_clip == 2.0


def test_devices_are_a_number_or_a_text() -> None:
    assert parsed(changed("compute.devices", "auto")).compute.devices == "auto"
    assert "compute.devices" in message(changed("compute.devices", 1.5))


@pytest.mark.parametrize("room", ["models", "attacks", "datasets"])
def test_a_component_is_a_file(room: components.Room) -> None:
    for kind in components.kinds(room):
        assert (ROOT / "pipeline" / room / f"{kind}.py").is_file()
    assert "base" not in components.kinds(room)


def test_ranges() -> None:
    assert Range(ge=1).violation(1) is None
    assert Range(gt=0).violation(0) == "must be greater than 0"
    assert Range(lt=1).violation(1) == "must be less than 1"
    assert Range().violation(math.inf) == "must be a finite number"
    assert Range(infinite=True).violation(math.inf) is None
    assert Range(infinite=True).violation(math.nan) is not None


# Any edit at all


@dataclass(frozen=True)
class Edit:
    """Replace, remove, rename or repeat the value at a place of the tree (all places, numbered)."""

    place: int
    what: str
    value: Any


def places(raw: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in the tree."""
    keys = list(raw) if isinstance(raw, dict) else list(range(len(raw))) if isinstance(raw, list) else []
    return [(raw, key) for key in keys] + [place for key in keys for place in places(raw[key])]


def apply(raw: Any, edit: Edit) -> None:
    found = places(raw)
    if not found:
        return
    container, key = found[edit.place % len(found)]
    if edit.what == "replace":
        container[key] = edit.value
    elif edit.what == "remove":
        del container[key]
    elif isinstance(container, list):
        container.append(edit.value)
    elif edit.what == "rename":
        container[edit.value if isinstance(edit.value, str | int | bool) else "other"] = container.pop(key)
    else:
        container[key] = copy.deepcopy(container)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 10**400, "auto", "fgsm", "cnn", "1", "nan", "rk4", "dopri5", "l2"])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
edits = st.builds(Edit, st.integers(0, 200), st.sampled_from(["replace", "remove", "rename", "nest"]), values)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(edits, min_size=1, max_size=3))
def test_any_edit_is_valid_or_a_params_error(changes: list[Edit]) -> None:
    raw = copy.deepcopy(BASE)
    for edit in changes:
        apply(raw, edit)
    try:
        params = parsed(raw)
    except ParamsError:
        return
    assert isinstance(params, Params)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.text(max_size=6), st.integers(0, 20))
def test_any_damage_to_the_text_is_valid_or_a_params_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, inserted: str, removed: int
) -> None:
    text = dumped(BASE)
    at = position % len(text)
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(text[:at] + inserted + text[at + removed :], encoding="utf-8", errors="surrogateescape")
    with suppress(ParamsError):
        assert load_params(path)


DAMAGES = [
    "seeds: [",
    "seeds: " + "[" * 3000,
    dumped(changed("train.epochs", -(10**400))),
    dumped(changed("train.learning_rate", math.nan)),
    dumped(changed("attacks.fgsm.epsilons", [math.inf])),
    dumped(changed("attacks.fgsm.kind", "os.path")),
    dumped(changed("models", {"../../x": BASE["models"]["resnet"]})),
    dumped(changed("dataset", [BASE["dataset"]])),
    dumped(without("compute")),
    dumped(BASE),
]


@pytest.mark.slow
@pytest.mark.parametrize("text", DAMAGES, ids=range(len(DAMAGES)))
def test_the_command_line_says_what_is_wrong_and_writes_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "check"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if text == dumped(BASE):
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("params.yaml is valid: 2 models")
    else:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: params.yaml")
        assert len(ended.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == text
