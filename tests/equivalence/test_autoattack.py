"""AutoAttack by its authors: what it costs, that it is as strong as by itself; and our Square against theirs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.attacks import autoattack, pgd, square
from pipeline.attacks.base import ExampleRng
from pipeline.config import parse
from pipeline.errors import UserError
from pipeline.evaluate import CountingModel
from tests.equivalence.conftest import Victim

BallNorm = Literal["linf", "l2"]
Member = Literal["apgd_ce", "apgd_t", "fab_t"]
STRENGTH: dict[BallNorm, float] = {"linf": 0.1, "l2": 1.2}
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
needs_library = pytest.mark.skipif(
    importlib.util.find_spec(autoattack.LIBRARY) is None, reason="the extra [autoattack] is not installed"
)


def library(module: str) -> Any:
    return importlib.import_module(f"{autoattack.LIBRARY}.{module}")


def generators(n: int) -> ExampleRng:
    return ExampleRng.for_examples(range(n), seed=0, dataset="digits", attack="autoattack")


def fooled_share(victim: Victim, adv_inputs: Tensor, norm: BallNorm) -> float:
    order = torch.inf if norm == "linf" else 2
    sizes = torch.linalg.vector_norm((adv_inputs - victim.inputs).flatten(1), ord=order, dim=1)
    fooled = (victim.net(adv_inputs).argmax(1) != victim.labels) & (sizes <= STRENGTH[norm] * (1 + 1e-5))
    return fooled.double().mean().item()


def test_without_the_library_params_yaml_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    raw = {"norm": "linf", "member": "fab_t", "iterations": 5, "classes": 2}
    with pytest.raises(UserError, match=r"attacks\.fab\.member: .*pip install '\.\[autoattack\]'"):
        parse(autoattack.Config, raw, "attacks.fab")


@needs_library
@every_norm
@pytest.mark.parametrize(("member", "cost"), [("apgd_ce", (12, 11)), ("apgd_t", (34, 33)), ("fab_t", (67, 30))])
def test_costs_what_it_says(norm: BallNorm, member: Member, cost: tuple[int, int]) -> None:
    """A model that nothing fools: 1 look, and 1 run or 3 runs of 10 iterations."""
    linear = nn.Linear(16, 5)
    with torch.no_grad():
        linear.bias[0] += 100
    model = CountingModel(nn.Sequential(nn.Flatten(), linear)).eval()
    config = autoattack.Config(norm=norm, member=member, iterations=10, classes=3)
    output = autoattack.attack(
        model,
        torch.rand(4, 1, 4, 4),
        torch.zeros(4, dtype=torch.long),
        targets=None,
        epsilon=0.1,
        config=config,
        rng=generators(4),
    )
    assert list(zip(output.n_forwards.tolist(), output.n_backwards.tolist(), strict=True)) == [cost] * 4
    assert (model.n_forwards, model.n_backwards) == (4 * cost[0], 4 * cost[1])
    assert all(parameter.grad is None for parameter in linear.parameters())


@needs_library
@every_norm
def test_fab_finds_the_nearest_point_of_a_linear_model(norm: BallNorm) -> None:
    """At distance margin / ‖w‖_dual; within less it finds nothing, and says so by an image of no success."""
    linear = nn.Linear(16, 2)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    inputs = 0.4 + 0.2 * torch.rand(1, 1, 4, 4)
    weight = (linear.weight[1] - linear.weight[0]).detach()
    with torch.no_grad():
        linear.bias[0] += model(inputs).diff(dim=1).item() + 0.1
    distance = 0.1 / torch.linalg.vector_norm(weight, ord=1 if norm == "linf" else 2).item()
    config = autoattack.Config(norm=norm, member="fab_t", iterations=20, classes=1)
    for share, falls in ((0.98, False), (1.02, True)):
        output = autoattack.attack(
            model,
            inputs,
            torch.zeros(1, dtype=torch.long),
            targets=None,
            epsilon=share * distance,
            config=config,
            rng=generators(1),
        )
        assert (model(output.adv_inputs).argmax(1).item() == 1) == falls


@needs_library
@every_norm
@pytest.mark.parametrize("member", ["apgd_ce", "apgd_t", "fab_t"])
def test_is_as_strong_as_the_library_by_itself(victim: Victim, norm: BallNorm, member: Member) -> None:
    """Other random starts, the same algorithm: no more than a few images apart."""
    epsilon = STRENGTH[norm]
    settings: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "n_iter": 20, "eps": epsilon, "seed": 0}
    with torch.random.fork_rng(devices=[]):
        if member == "apgd_ce":
            theirs = library("autopgd_base").APGDAttack(victim.net, loss="ce", **settings)
        elif member == "apgd_t":
            theirs = library("autopgd_base").APGDAttack_targeted(victim.net, n_target_classes=3, **settings)
        else:
            theirs = library("fab_pt").FABAttack_PT(victim.net, targeted=True, n_target_classes=3, **settings)
        peer = fooled_share(victim, theirs.perturb(victim.inputs, victim.labels), norm)
    config = autoattack.Config(norm=norm, member=member, iterations=20, classes=3)
    output = autoattack.attack(*victim, targets=None, epsilon=epsilon, config=config, rng=generators(100))
    assert 0.1 < peer < 0.99
    assert fooled_share(victim, output.adv_inputs, norm) == pytest.approx(peer, abs=0.03)


@needs_library
@every_norm
def test_our_pgd_is_no_weaker_than_apgd_at_equal_cost(victim: Victim, norm: BallNorm) -> None:
    theirs = autoattack.Config(norm=norm, member="apgd_ce", iterations=20, classes=1)
    ours = pgd.Config(norm=norm, steps=20, step_size=2.0, restarts=1, random_start=True, loss="both")
    epsilon = STRENGTH[norm]
    peer = autoattack.attack(*victim, targets=None, epsilon=epsilon, config=theirs, rng=generators(100))
    output = pgd.attack(*victim, targets=None, epsilon=epsilon, config=ours, rng=generators(100))
    assert fooled_share(victim, output.adv_inputs, norm) >= fooled_share(victim, peer.adv_inputs, norm) - 0.01


@needs_library
@every_norm
@pytest.mark.parametrize("queries", [100, 400])
def test_our_square_is_as_strong_as_theirs(victim: Victim, norm: BallNorm, queries: int) -> None:
    epsilon = 1.5 * STRENGTH[norm]
    with torch.random.fork_rng(devices=[]):
        theirs = library("square").SquareAttack(
            victim.net, norm={"linf": "Linf", "l2": "L2"}[norm], n_queries=queries, eps=epsilon, p_init=0.8, seed=0
        )
        peer = (victim.net(theirs.perturb(victim.inputs, victim.labels)).argmax(1) != victim.labels).double().mean()
    config = square.Config(norm=norm, queries=queries, p_init=0.8)
    output = square.attack(*victim, targets=None, epsilon=epsilon, config=config, rng=generators(100))
    ours = (victim.net(output.adv_inputs).argmax(1) != victim.labels).double().mean()
    print(f"{norm} {queries}: ours {ours:.2f}, theirs {peer:.2f}")
    assert ours >= peer - 0.05
