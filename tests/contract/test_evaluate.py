"""The judge trusts nobody: attacks that lie, break or cheat end in a status and never in a success or a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.deform import warp
from pipeline.evaluate import Cell, CountingModel, Examples, Judged, evaluate, predict
from pipeline.schema import COLUMNS

N, SIDE = 4, 6
EPSILON = 0.25


@dataclass(frozen=True, kw_only=True)
class Config:
    norm: str
    draws: int = 1
    fold_free: bool = False
    budget: int | None = None


class Brightness(nn.Module):
    """Class 1 above a mean brightness of one half, else class 0: easy to attack and to reason about."""

    def forward(self, inputs: Tensor) -> Tensor:
        excess = inputs.flatten(1).mean(1) - 0.5
        return torch.stack((-excess, excess), dim=1)


def examples(n: int = N) -> Examples:
    """Images of brightness 0.4, all of class 0, with a vertical slope for deformations to act on; mean kept."""
    slope = torch.linspace(-0.05, 0.05, SIDE)[:, None].expand(SIDE, SIDE)
    inputs = (0.4 + slope).expand(n, 1, SIDE, SIDE).clone()
    return Examples(tuple(range(10, 10 + n)), inputs, torch.zeros(n, dtype=torch.int64), ("sha",) * n)


def make_cell(norm: str = "linf", **config: Any) -> Cell:
    return Cell("set", "test", "net", 0, "entry", "fake", Config(norm=norm, **config), 7, "key")


def honest(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None,  # noqa: ARG001
    epsilon: float | None,
    config: Config,
    rng: ExampleRng,  # noqa: ARG001
) -> AttackOutput:
    """Brightens by the whole strength after one forward and one backward; a deformation does nothing at all."""
    with torch.enable_grad():
        start = inputs.detach().requires_grad_()
        torch.autograd.grad(model(start).sum(), start)
    counts = torch.ones_like(labels)
    step = 0.0 if config.norm == "deformation" else (epsilon or EPSILON)
    field = inputs.new_zeros(len(inputs), SIDE, SIDE, 2) if config.norm == "deformation" else None
    adv_inputs = inputs + step if config.norm in ("linf", "sigma") else inputs
    return AttackOutput(adv_inputs, field, counts, counts.clone(), torch.zeros_like(labels))


Attack = Callable[..., AttackOutput]
Judge = Callable[..., Judged]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Run the judge on a fake attack."""

    def run(
        attack: Attack,
        *,
        norm: str = "linf",
        epsilon: float | None = EPSILON,
        model: nn.Module | None = None,
        batch: Examples | None = None,
        **config: Any,
    ) -> Judged:
        monkeypatch.setattr(components, "load", lambda *_: SimpleNamespace(attack=attack))
        model, batch = model or Brightness(), examples() if batch is None else batch
        cell = make_cell(norm, **config)
        return evaluate(model, batch, cell, epsilon=epsilon, clean_logits=predict(model, batch))

    return run


def changed(change: Callable[[AttackOutput], AttackOutput]) -> Attack:
    """The honest attack with a lie in its output."""
    return lambda *arguments, **keywords: change(honest(*arguments, **keywords))


def check_no_success(rows: pd.DataFrame, status: Status | None) -> None:
    assert len(rows) == N
    assert not rows["success"].any()
    if status is not None:
        assert set(rows["status"]) == {status.name.lower()}


# An honest attack, so that the lies below are caught for what they are


def test_an_honest_attack_succeeds(judged: Judge) -> None:
    rows = judged(honest).rows
    assert list(rows.columns) == list(COLUMNS)
    assert rows["success"].all()
    assert set(rows["status"]) == {"ok"}
    assert rows["index"].tolist() == [10, 11, 12, 13]
    assert rows["adv_pred"].tolist() == [1] * N
    assert rows["size_linf"].tolist() == pytest.approx([EPSILON] * N, abs=1e-6)
    assert rows["size_l2"].tolist() == pytest.approx([EPSILON * SIDE] * N, abs=1e-6)
    assert rows["clean_margin"].tolist() == pytest.approx([0.2] * N, abs=1e-6)
    assert rows["adv_margin"].tolist() == pytest.approx([-0.3] * N, abs=1e-6)
    assert rows["output_shift_l2"].tolist() == pytest.approx([EPSILON * 2**0.5] * N, abs=1e-6)
    assert rows["n_forwards"].tolist() == rows["n_backwards"].tolist() == [1] * N


def test_too_weak_a_strength_is_no_success(judged: Judge) -> None:
    rows = judged(honest, epsilon=0.05).rows
    check_no_success(rows, Status.OK)
    assert rows["clean_correct"].all()


def test_what_was_wrong_already_is_no_success(judged: Judge) -> None:
    batch = replace(examples(), labels=torch.ones(N, dtype=torch.int64))
    rows = judged(changed(lambda output: replace(output, adv_inputs=output.adv_inputs - 0.3)), batch=batch).rows
    assert not rows["clean_correct"].any()
    check_no_success(rows, None)


def test_a_minimal_attack_has_no_size_test_but_its_size_is_measured(judged: Judge) -> None:
    rows = judged(honest, epsilon=None).rows
    assert rows["success"].all()
    assert rows["epsilon"].isna().all()


# Lies about the image


def test_out_of_the_box(judged: Judge) -> None:
    def below_zero(output: AttackOutput) -> AttackOutput:
        adv_inputs = output.adv_inputs.clone()
        adv_inputs[:, :, 0, 0] = -1e-3  # one pixel of an image that fools
        return replace(output, adv_inputs=adv_inputs)

    rows = judged(changed(below_zero), epsilon=0.5).rows
    assert not rows["in_box"].any()
    check_no_success(rows, None)


@pytest.mark.parametrize(("norm", "excess"), [("linf", 1e-4), ("l2", 0.1)])
def test_too_large(judged: Judge, norm: str, excess: float) -> None:
    def larger(output: AttackOutput) -> AttackOutput:
        return replace(output, adv_inputs=examples().inputs + EPSILON + excess)

    rows = judged(changed(larger), norm=norm).rows
    assert (rows["adv_pred"] == 1).all()
    check_no_success(rows, Status.OK)


def test_rounding_is_no_lie(judged: Judge) -> None:
    def rounded(output: AttackOutput) -> AttackOutput:
        return replace(output, adv_inputs=torch.nextafter(examples().inputs + EPSILON, torch.tensor(1.0)))

    assert judged(changed(rounded)).rows["success"].all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_not_finite(judged: Judge, value: float) -> None:
    def broken(output: AttackOutput) -> AttackOutput:
        adv_inputs = output.adv_inputs.clone()
        adv_inputs[1, 0, 2, 2] = value
        return replace(output, adv_inputs=adv_inputs)

    rows = judged(changed(broken)).rows
    assert rows["status"].tolist() == ["ok", "non_finite", "ok", "ok"]
    assert rows["success"].tolist() == [True, False, True, True]


def test_logits_that_are_not_finite(judged: Judge) -> None:
    class Breaks(Brightness):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs)
            return torch.where(inputs.flatten(1).mean(1, keepdim=True) > 0.6, torch.nan, logits)

    rows = judged(honest, model=Breaks()).rows
    check_no_success(rows, Status.NON_FINITE)
    assert rows["clean_correct"].all()  # it is the attacked image that breaks the net


def test_a_solver_that_gives_up_is_no_robustness(judged: Judge) -> None:
    class GivesUp(Brightness):
        def forward(self, inputs: Tensor) -> Tensor:
            self.nfe = torch.arange(len(inputs))
            self.solver_failed = self.nfe == 2
            return super().forward(inputs)

    rows = judged(honest, model=GivesUp()).rows
    assert rows["status"].tolist() == ["ok", "ok", "solver_failed", "ok"]
    assert rows["success"].tolist() == [True, True, False, True]
    assert rows["nfe"].tolist() == [0, 1, 2, 3]


# Lies about the rest


@pytest.mark.parametrize(
    "lie",
    [
        {"n_forwards": torch.zeros(N, dtype=torch.int64)},
        {"n_backwards": torch.full((N,), 2)},
        {"n_forwards": torch.tensor([1, 1, 1, 2])},
        {"n_forwards": torch.ones(N - 1, dtype=torch.int64)},
        {"n_backwards": torch.tensor(N)},
        {"n_forwards": torch.tensor([1.5, 0.5, 1.0, 1.0])},
        {"status": torch.zeros(N, 1, dtype=torch.int64)},
        {"status": torch.full((N,), 99)},
        {"status": torch.full((N,), -1)},
        {"adv_inputs": torch.ones(N, 1, SIDE, SIDE - 1)},
        {"adv_inputs": torch.ones(N - 1, 1, SIDE, SIDE)},
        {"adv_inputs": torch.full((N, 1, SIDE, SIDE), 0.6, dtype=torch.float64)},
        {"adv_inputs": torch.ones(N, 1, SIDE, SIDE, dtype=torch.int64)},
        {"adv_inputs": None},
        {"status": None},
        {"deformation": torch.zeros(N, 2, SIDE, SIDE)},
    ],
    ids=lambda lie: "-".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in lie.items()),
)
def test_an_output_that_cannot_be_believed(judged: Judge, lie: dict[str, Any]) -> None:
    rows = judged(changed(lambda output: replace(output, **lie))).rows
    check_no_success(rows, None)
    assert set(rows["status"]) <= {"bad_output", "crashed"}


@pytest.mark.parametrize(("budget", "status"), [(1, {"bad_output"}), (2, {"ok"})])
def test_a_budget_that_is_overspent(judged: Judge, budget: int, status: set[str]) -> None:
    rows = judged(honest, budget=budget).rows
    assert set(rows["status"]) == status
    assert rows["success"].all() == (status == {"ok"})


def test_claimed_failures_stay_failures(judged: Judge) -> None:
    lie = {"status": torch.tensor([Status.NON_FINITE, Status.SOLVER_FAILED, Status.CRASHED, Status.STOPPED])}
    rows = judged(changed(lambda output: replace(output, **lie))).rows
    assert rows["status"].tolist() == ["non_finite", "solver_failed", "crashed", "stopped"]
    assert rows["success"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError, KeyError, ZeroDivisionError])
def test_an_attack_that_raises(judged: Judge, error: type[Exception]) -> None:
    def raises(model: nn.Module, inputs: Tensor, *_: Any, **__: Any) -> AttackOutput:
        model(inputs)
        raise error("on purpose")

    rows = judged(raises).rows
    check_no_success(rows, Status.CRASHED)
    assert rows["n_forwards"].sum() == N  # what it cost is known all the same
    assert rows["size_linf"].tolist() == [0.0] * N


def test_out_of_memory_is_the_machines_fault(judged: Judge) -> None:
    def greedy(*_: Any, **__: Any) -> AttackOutput:
        raise torch.OutOfMemoryError("on purpose")

    with pytest.raises(torch.OutOfMemoryError):
        judged(greedy)


def test_writing_into_the_inputs_deceives_nobody(judged: Judge) -> None:
    def mutating(model: nn.Module, inputs: Tensor, labels: Tensor, **keywords: Any) -> AttackOutput:
        output = honest(model, inputs, labels, **keywords)
        inputs += 0.5
        labels.fill_(1)
        return replace(output, adv_inputs=inputs)

    batch = examples()
    rows = judged(mutating, batch=batch).rows
    assert torch.equal(batch.inputs, examples().inputs)
    assert torch.equal(batch.labels, examples().labels)
    assert rows["size_linf"].tolist() == pytest.approx([0.5] * N)
    check_no_success(rows, None)


def test_leaving_the_model_in_training_mode_deceives_nobody(judged: Judge) -> None:
    class Moody(Brightness):
        def forward(self, inputs: Tensor) -> Tensor:
            return -super().forward(inputs) if self.training else super().forward(inputs)

    def training(model: nn.Module, *arguments: Any, **keywords: Any) -> AttackOutput:
        output = honest(model, *arguments, **keywords)
        model.train()
        return replace(output, adv_inputs=examples().inputs)

    rows = judged(training, model=Moody().eval()).rows
    assert rows["clean_correct"].all()
    check_no_success(rows, Status.OK)


def test_an_output_attached_to_a_graph_is_judged_and_stored_detached(judged: Judge) -> None:
    def attached(output: AttackOutput) -> AttackOutput:
        return replace(output, adv_inputs=output.adv_inputs.clone().requires_grad_() * 1)

    assert judged(changed(attached)).rows["success"].all()


# Deformations


def shift(output: AttackOutput, pixels: float) -> AttackOutput:
    """The field that moves everything down the slope, and the image it makes."""
    field = torch.zeros(N, SIDE, SIDE, 2)
    field[..., 1] = pixels
    return replace(output, deformation=field, adv_inputs=warp(examples().inputs, field))


def test_a_field_that_makes_its_image_is_measured(judged: Judge) -> None:
    rows = judged(changed(lambda output: shift(output, 0.75)), norm="deformation", epsilon=1.0).rows
    assert set(rows["status"]) == {"ok"}
    assert rows["size_deformation"].tolist() == pytest.approx([0.75] * N, abs=1e-6)
    assert rows["folded_share"].tolist() == [0.0] * N


def brighter(output: AttackOutput) -> AttackOutput:
    return replace(output, adv_inputs=output.adv_inputs + 0.3)


def test_a_field_that_does_not_make_its_image(judged: Judge) -> None:
    rows = judged(changed(brighter), norm="deformation", epsilon=1.0).rows
    assert (rows["adv_pred"] == 1).all()
    check_no_success(rows, Status.BAD_OUTPUT)


@pytest.mark.parametrize("shape", [None, (N, SIDE, SIDE), (N, 2, SIDE, SIDE), (1, SIDE, SIDE, 2)])
def test_a_field_that_is_missing_or_misshapen(judged: Judge, shape: tuple[int, ...] | None) -> None:
    field = None if shape is None else torch.zeros(shape)
    lie = changed(lambda output: replace(brighter(output), deformation=field))
    rows = judged(lie, norm="deformation", epsilon=1.0).rows
    assert (rows["adv_pred"] == 0).all()  # of the image itself: the brighter one, which fools, is not looked at
    check_no_success(rows, Status.BAD_OUTPUT)


class Corner(nn.Module):
    """Class 1 if the top left pixel is bright."""

    def forward(self, inputs: Tensor) -> Tensor:
        excess = inputs[:, 0, 0, 0] - 0.38
        return torch.stack((-excess, excess), dim=1)


def fold(output: AttackOutput) -> AttackOutput:
    """Row 0 is read at row 2, row 1 where it is: the plane folds, and the corner brightens."""
    field = torch.zeros(N, SIDE, SIDE, 2)
    field[:, 0, :, 1] = 2.0
    return replace(output, deformation=field, adv_inputs=warp(examples().inputs, field))


@pytest.mark.parametrize("fold_free", [False, True])
def test_a_folded_field_is_no_success_where_folds_are_forbidden(judged: Judge, fold_free: bool) -> None:
    rows = judged(changed(fold), norm="deformation", epsilon=3.0, model=Corner(), fold_free=fold_free).rows
    assert (rows["adv_pred"] == 1).all()
    assert (rows["folded_share"] > 0).all()
    assert rows["success"].tolist() == [not fold_free] * N


def test_a_field_that_is_too_long(judged: Judge) -> None:
    rows = judged(changed(fold), norm="deformation", epsilon=1.9, model=Corner()).rows
    assert (rows["adv_pred"] == 1).all()
    check_no_success(rows, Status.OK)


def test_a_field_that_is_not_finite(judged: Judge) -> None:
    field = torch.full((N, SIDE, SIDE, 2), torch.nan)
    rows = judged(changed(lambda output: replace(output, deformation=field)), norm="deformation", epsilon=1.0).rows
    check_no_success(rows, None)
    assert set(rows["status"]) <= {"bad_output", "non_finite"}


# Draws, identities, counting


def noise(_: nn.Module, inputs: Tensor, labels: Tensor, **keywords: Any) -> AttackOutput:
    drawn = keywords["rng"].normal(inputs.shape[1:], like=inputs)
    counts = torch.zeros_like(labels)
    adv_inputs = (inputs + keywords["epsilon"] * drawn).clamp(0, 1)
    return AttackOutput(adv_inputs, None, counts, counts.clone(), counts.clone())


def test_draws_are_rows_of_their_own_with_fresh_noise(judged: Judge) -> None:
    result = judged(noise, norm="sigma", draws=3)
    rows = result.rows
    assert rows["draw"].tolist() == [0] * N + [1] * N + [2] * N
    assert rows["index"].tolist() == [10, 11, 12, 13] * 3
    assert rows["size_l2"].nunique() == 3 * N
    assert result.adv_inputs.shape == (N, 1, SIDE, SIDE)
    single = judged(noise, norm="sigma", draws=1).rows
    columns = [name for name in COLUMNS if name != "seconds"]
    pd.testing.assert_frame_equal(rows.loc[: N - 1, columns], single[columns])


def test_noise_belongs_to_the_example(judged: Judge) -> None:
    whole = judged(noise, norm="sigma", draws=2).rows
    part = judged(noise, norm="sigma", draws=2, batch=examples().subset([2])).rows
    expected = whole.loc[whole["index"] == 12, "size_l2"].tolist()
    assert part["size_l2"].tolist() == expected


def test_noise_has_no_size_test(judged: Judge) -> None:
    rows = judged(honest, norm="sigma", epsilon=0.2).rows
    assert rows["success"].all()


def test_the_counter_counts_rows_and_every_backward() -> None:
    model = CountingModel(Brightness())
    inputs = examples().inputs.requires_grad_()
    logits = model(inputs)
    torch.autograd.grad(logits[:, 0].sum(), inputs, retain_graph=True)
    torch.autograd.grad(logits[0, 1], inputs)
    with torch.no_grad():
        model(inputs[:1])
    assert (model.n_forwards, model.n_backwards) == (N + 1, 2 * N)


def test_no_examples(judged: Judge) -> None:
    assert len(judged(noise, norm="sigma", batch=examples(0)).rows) == 0
