"""Memory that runs out halves the part and loses nothing; the rows are those of a machine that holds all."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.attacker import attack
from pipeline.attacking import AttackRun
from pipeline.attacks import pgd
from pipeline.cells import make_cell
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.evaluate import Examples, is_out_of_memory
from pipeline.nets import Target
from pipeline.parts import Parts
from pipeline.row_store import RowStore
from pipeline.settings import AttackEntry, Component, ComputeConfig, EvaluateConfig
from tests.pipeline.workspaces import same_rows

N = 23


def examples(n: int = N) -> Examples:
    return Examples(tuple(range(n)), torch.rand(n, 1, 2, 2), torch.zeros(n, dtype=torch.int64), ("",) * n)


@dataclass
class Device:
    """Holds so many images at once."""

    holds: int
    error: Exception
    seen: list[int]

    def __call__(self, part: Examples) -> tuple[int, ...]:
        self.seen.append(len(part))
        if len(part) > self.holds:
            raise self.error
        return part.indices


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def test_without_need_nothing_is_parted() -> None:
    device = Device(100, OUT_OF_MEMORY, [])
    assert Parts("auto").each(device, examples()) == [tuple(range(N))]


def test_what_does_not_fit_is_halved_and_the_size_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    parts, device = Parts("auto"), Device(6, OUT_OF_MEMORY, [])
    with caplog.at_level(logging.WARNING):
        found = parts.each(device, examples())
    assert [index for part in found for index in part] == list(range(N))
    assert device.seen == [23, 11, 5, 5, 5, 5, 3]
    assert [record.message.split("; ")[0] for record in caplog.records] == [
        "out of memory with 23 images at once",
        "out of memory with 11 images at once",
    ]
    device.seen.clear()
    parts.each(device, examples(7))
    assert device.seen == [5, 2]


def test_what_was_done_before_memory_ran_out_is_kept() -> None:
    """The third part of four is one too many: only it is done again."""
    calls: list[tuple[int, ...]] = []

    def function(part: Examples) -> None:
        calls.append(part.indices)
        if len(calls) == 3:
            raise OUT_OF_MEMORY

    parts = Parts("auto")
    parts.size = 6
    parts.each(function, examples())
    assert calls[3][0] == calls[2][0]
    assert [i for call in calls[:2] + calls[3:] for i in call] == list(range(N))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_a_number_is_the_largest_part(batch_size: int) -> None:
    device = Device(100, OUT_OF_MEMORY, [])
    Parts(batch_size).each(device, examples())
    assert max(device.seen) == min(batch_size, N)
    assert sum(device.seen) == N


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (Parts(8), "compute.batch_size to auto or less"),
        (Parts("auto", whole=True), "lower evaluate.chunk_size"),
        (Parts(8, whole=True), "lower evaluate.chunk_size"),
        (Parts("auto"), "on 1 images"),
    ],
)
def test_what_cannot_be_halved_is_one_clear_error(parts: Parts, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        parts.each(Device(0, OUT_OF_MEMORY, []), examples())


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        Parts("auto").each(Device(0, RuntimeError("shape"), []), examples())


def test_memory_of_the_host_counts() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Narrow(nn.Module):
    """A linear classifier on a device that holds ``holds`` images."""

    def __init__(self, holds: float) -> None:
        super().__init__()
        self.holds = holds
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.Parameter(torch.randn(16, 3, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.holds:
            raise OUT_OF_MEMORY
        return inputs.flatten(1) @ self.weights


def attacked(holds: float, folder: Path, **compute: Any) -> list[pd.DataFrame]:
    """The stored rows of PGD on 23 images in chunks of 12."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (N, 1, 4, 4), generator=generator, dtype=torch.uint8)
    net = Narrow(holds)
    split = Split(images, Narrow(torch.inf)(images.float() / 255).argmax(1))
    model = Component("models", "net", "cnn", CONFIG)
    entry = AttackEntry("attacks", "pgd", "pgd", CONFIG, n_images=N, epsilons=(0.05, 0.1))
    judge = EvaluateConfig(seed=0, chunk_size=12, n_examples=0, batch_coupled=())
    card = {"splits": {"test": {"sha256": "0"}}}
    cell = make_cell(Target(model, 0, net, "weights"), entry, judge, dataset="set", card=card)
    run = AttackRun(Target(model, 0, net, "weights"), entry, judge, cell, split)
    run.store = store = RowStore("key", store=folder)
    computing = ComputeConfig(
        accelerator="cpu",
        devices=1,
        num_nodes=1,
        strategy="auto",
        launcher=None,
        live=False,
        **{"batch_size": "auto"} | compute,
    )
    attack(run, computing)
    units = [store.load(chunk, epsilon) for chunk in (0, 1) for epsilon in entry.epsilons]
    return [unit.rows for unit in units if unit is not None]


CONFIG = pgd.Config(norm="linf", steps=5, step_size=2.0, restarts=2, random_start=True, loss="both")


@pytest.mark.parametrize("holds", [12, 7, 1])
def test_a_narrow_device_comes_to_the_rows_of_a_wide_one(tmp_path: Path, holds: int) -> None:
    wide = attacked(torch.inf, tmp_path / "wide")
    narrow = attacked(holds, tmp_path / "narrow")
    assert len(wide) == len(narrow) == 4
    for left, right in zip(wide, narrow, strict=True):
        same_rows(left, right)
        assert (left["status"] != "crashed").all()


def test_a_given_batch_size_comes_to_the_same_rows(tmp_path: Path) -> None:
    for left, right in zip(attacked(12, tmp_path / "a"), attacked(5, tmp_path / "b", batch_size=5), strict=True):
        assert len(left)
        same_rows(left, right)
