"""Images of one model on another: judged by the judge, forwards only, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.attacks.pgd import Config as PgdConfig
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.models.neural_ode import Config as NeuralOdeConfig
from pipeline.models.resnet import Config as ResNetConfig
from pipeline.nets import Target
from pipeline.ode import SolverConfig
from pipeline.settings import AttackEntry, Component, EvaluateConfig
from pipeline.transferring import Source, read_sources, resolved, transferred

N, SIDE = 6, 4
PGD = PgdConfig(norm="linf", steps=1, step_size=1.0, restarts=1, random_start=False, loss="margin")
ATTACK = AttackEntry("attacks", "pgd", "pgd", PGD, N, (0.1, 0.3))
JUDGE = EvaluateConfig(seed=0, chunk_size=N, n_examples=N, batch_coupled=())
CARD = {"splits": {"test": {"sha256": "of the test split"}}}


class Threshold(nn.Module):
    """Class 1 above a mean brightness of ``at``, else class 0."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        excess = inputs.flatten(1).mean(1) - self.at
        return torch.stack((-excess, excess), dim=1)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transferring.STORE", tmp_path / ".store")


def target(at: float, name: str = "resnet") -> Target:
    config = ResNetConfig(channels=8, groups=4, blocks=1)
    return Target(Component("models", name, "resnet", config), 0, Threshold(at).eval(), f"weights {at}")


def split() -> Split:
    """Dark images of class 0."""
    return Split(
        torch.full((N, 1, SIDE, SIDE), 51, dtype=torch.uint8), torch.zeros(N, dtype=torch.int64)
    )  # 51/255 = .2


def source(brighter: list[float], epsilons: list[float | None], **more: Any) -> Source:
    """Image k is ``brighter[k]`` brighter than test image k."""
    images = split().inputs[: len(brighter)] + torch.tensor(brighter)[:, None, None, None]
    return Source("cnn", 3, tuple(range(len(brighter))), tuple(epsilons), images, more.get("deformation"), "file")


def judged(at: float, images: Source) -> pd.DataFrame:
    return transferred(target(at), images, ATTACK, JUDGE, split(), dataset="mnist5k", card=CARD)


def test_an_image_fools_where_the_target_says_so() -> None:
    """At a threshold of .35 the first stays dark, the others do not; the last is larger than its strength allows."""
    rows = judged(0.35, source([0.1, 0.2, 0.3, 0.3], [0.1, 0.3, 0.3, 0.1]))
    assert rows["success"].tolist() == [False, True, True, False]
    assert rows["epsilon"].tolist() == [0.1, 0.3, 0.3, 0.1]
    assert rows["size_linf"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3], abs=1e-6)
    assert set(rows["model"]) == {"resnet"}
    assert set(rows["source_model"]) == {"cnn"}
    assert set(rows["source_seed"]) == {3}
    assert (rows[["n_forwards", "n_backwards"]] == 0).all(axis=None)


def test_what_is_wrong_without_an_attack_is_no_success() -> None:
    rows = judged(0.1, source([0.1], [0.3]))
    assert not rows["clean_correct"].any()
    assert not rows["success"].any()


def test_images_outside_the_box_do_not_count() -> None:
    rows = judged(0.35, source([0.9], [None]))
    assert not rows["in_box"].any()
    assert not rows["success"].any()


def test_a_finished_pair_is_not_computed_again() -> None:
    """Another target or other images are."""
    images, net = source([0.2], [0.3]), target(0.35)
    arguments: dict[str, Any] = {"dataset": "mnist5k", "card": CARD}
    first = transferred(net, images, ATTACK, JUDGE, split(), **arguments)
    model = net.net
    assert isinstance(model, Threshold)
    calls = model.calls
    again = transferred(net, images, ATTACK, JUDGE, split(), **arguments)
    assert model.calls == calls > 0
    pd.testing.assert_frame_equal(first, again)
    transferred(target(0.5), images, ATTACK, JUDGE, split(), **arguments)
    other = transferred(net, source([0.1], [0.1]), ATTACK, JUDGE, split(), **arguments)
    assert model.calls > calls
    assert other["config_hash"].iloc[0] != first["config_hash"].iloc[0]


def test_stored_images_are_read_at_the_strengths_of_params(tmp_path: Path) -> None:
    path = tmp_path / "pgd.examples.safetensors"
    tensors = {}
    for epsilon, indices in ((0.1, [0, 1]), (0.2, [1]), (0.3, [2])):  # 0.2 is no strength of params
        tensors[f"seed3/eps{epsilon}/index"] = torch.tensor(indices)
        tensors[f"seed3/eps{epsilon}/adv_inputs"] = torch.full((len(indices), 1, SIDE, SIDE), epsilon)
    save_file(tensors, path)
    found = read_sources(path, "cnn", ATTACK, (3,))[3]
    assert found.indices == (0, 1, 2)
    assert found.epsilons == (0.1, 0.1, 0.3)
    assert found.adv_inputs.amax((1, 2, 3)).tolist() == pytest.approx([0.1, 0.1, 0.3])
    assert found.deformation is None


@pytest.mark.parametrize(
    ("content", "seeds", "words"), [(b"", (3,), "damaged"), (None, (3,), "missing"), ({}, (4,), "no images of seed 4")]
)
def test_images_that_are_not_there_are_one_error(
    tmp_path: Path, content: Any, seeds: tuple[int, ...], words: str
) -> None:
    path = tmp_path / "pgd.examples.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"seed3/eps0.1/index": torch.zeros(1, dtype=torch.int64)}, path)
    with pytest.raises(UserError, match=words) as caught:
        read_sources(path, "cnn", ATTACK, seeds)
    assert "dvc repro --force attack@cnn" in str(caught.value)


def test_only_models_with_a_solver_are_solved_otherwise() -> None:
    own = SolverConfig(method="rk4", steps=4, gradient="backprop")
    euler = SolverConfig(method="euler", steps=2, gradient="backprop")
    ode = Component("models", "ode", "neural_ode", NeuralOdeConfig(channels=8, groups=4, solver=own))
    (found,) = resolved(ode, {"euler": euler})
    assert (found.name, found.config.solver, found.config.channels) == ("ode@euler", euler, 8)
    assert not list(resolved(target(0.5).model, {"euler": euler}))
