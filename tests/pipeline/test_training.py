"""Training: stops where it must, goes on where it was, chooses on validation, and serves every rank its share."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import components
from pipeline.classifier import Classifier, GlobalBatches, TrainingDivergedError
from pipeline.config import load_params, parse
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.fitting import Batches, _resumable
from pipeline.provenance import ROOT
from pipeline.settings import Architecture, ComputeConfig
from pipeline.training import train

COMPUTE = ComputeConfig(
    accelerator="cpu", devices=1, num_nodes=1, strategy="auto", batch_size="auto", launcher=None, live=False
)
CARD = {"n_classes": 10, "splits": {"train": {"sha256": "a"}, "validation": {"sha256": "b"}}}


@pytest.fixture(scope="module")
def splits(digits: Split) -> dict[str, Split]:
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:300], "validation": order[300:400]}
    return {name: Split(digits.images[rows], digits.labels[rows]) for name, rows in parts.items()}


def small(**changes: Any) -> Architecture:
    config = parse(components.load("models", "resnet").Config, {"channels": 8, "groups": 4, "blocks": 1}, "model")
    base = load_params(ROOT / "params.yaml").train
    return Architecture(
        "models", "small", "resnet", config, dataclasses.replace(base, epochs=3, batch_size=50, **changes)
    )


def run(model: Architecture, splits: dict[str, Split], store: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return train(model, 0, splits, CARD, COMPUTE, store=store)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_loss_that_is_not_finite_stops_with_one_clear_error(splits: dict[str, Split], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingDivergedError, match=r"loss is (nan|inf) at epoch \d+, step \d+; lower train\.learning_r"
    ):
        run(small(learning_rate=1e20, gradient_clip=1e20), splits, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_finished_net_is_not_trained_again(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, report = run(small(), splits, tmp_path)
    monkeypatch.setattr(Classifier, "training_step", lambda *_: pytest.fail("trained again"))
    again, stored = run(small(), splits, tmp_path)
    assert equal(weights, again)
    assert report == stored


def test_an_interrupted_training_goes_on_to_the_same_weights(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, report = run(small(), splits, tmp_path / "undisturbed")
    step = Classifier.training_step
    steps = 0

    def breaks(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 10:  # of six in each of three epochs: in the middle of the second
            raise RuntimeError("the machine goes down")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", breaks)
        with pytest.raises(RuntimeError, match="goes down"):
            run(small(), splits, tmp_path / "disturbed")
    monkeypatch.setattr(Classifier, "training_step", breaks)  # breaks no more, but counts
    resumed, resumed_report = run(small(), splits, tmp_path / "disturbed")
    assert steps == 10 + 12, "did not go on at the second epoch"
    assert equal(undisturbed, resumed)
    assert [e["train_loss"] for e in resumed_report["history"]] == [e["train_loss"] for e in report["history"]]


@pytest.mark.parametrize("how", ["flipped", "truncated", "unsealed and truncated", "no report"])
def test_damaged_weights_are_trained_again(splits: dict[str, Split], tmp_path: Path, how: str) -> None:
    weights, _ = run(small(), splits, tmp_path)
    (path,) = tmp_path.glob("checkpoints/*.safetensors")
    content = bytearray(path.read_bytes())
    match how:
        case "flipped":
            content[-1] ^= 1
            path.write_bytes(content)
        case "no report":
            path.with_suffix(".json").unlink()
        case _:
            path.write_bytes(content[:-100])
    if how.startswith("unsealed"):
        path.with_suffix(".sha256").unlink()
    again, _ = run(small(), splits, tmp_path)
    assert equal(weights, again)


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "pickle", "pickle in a checkpoint"])
def test_a_checkpoint_that_cannot_be_believed_is_not_gone_on_from(tmp_path: Path, name: str, how: str) -> None:
    for one in ("last.ckpt", "best.ckpt"):
        torch.save({"state_dict": {"weight": torch.rand(100)}}, tmp_path / one)
    assert _resumable(tmp_path) == tmp_path / "last.ckpt"
    path, executed = tmp_path / name, tmp_path / "executed"
    content = bytearray(path.read_bytes())
    match how:
        case "flipped":
            content[content.index(torch.load(path)["state_dict"]["weight"].numpy().tobytes()) + 50] ^= 1
            path.write_bytes(content)
            assert torch.load(path), "torch does not see it"
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "missing":
            path.unlink()
        case "pickle":
            path.write_bytes(pickle.dumps(Malicious(executed)))
        case _:
            torch.save({"state_dict": Malicious(executed)}, path)
    assert _resumable(tmp_path) is None
    assert not executed.exists()
    if how.startswith("pickle"):  # or the test would prove nothing
        pickle.loads(pickle.dumps(Malicious(executed)))
        assert executed.exists()


def test_a_killed_training_with_a_damaged_checkpoint_starts_anew_and_says_so(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, _ = run(small(), splits, tmp_path / "undisturbed")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training._keep", fail)
        with pytest.raises(KeyboardInterrupt):
            run(small(), splits, tmp_path / "disturbed")
    (last,) = tmp_path.glob("disturbed/training/*/last.ckpt")
    last.write_bytes(last.read_bytes()[:-1000])
    weights, report = run(small(), splits, tmp_path / "disturbed")
    assert equal(weights, undisturbed)
    assert len(report["history"]) == 3
    assert "training starts anew" in caplog.text


def test_a_batch_that_the_processes_cannot_share_is_refused(splits: dict[str, Split]) -> None:
    loaders = Batches(splits, 51, 0)
    loaders.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"train\.batch_size is 51, which the 2 processes"):
        loaders.train_dataloader()
    loaders.val_dataloader()


def test_the_weights_are_those_of_the_least_validation_loss(
    splits: dict[str, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a validation loss that is least after the first epoch, training for one epoch would have done."""
    ends: list[dict[str, Tensor]] = []

    def end(self: Classifier) -> None:
        ends.append({name: tensor.clone() for name, tensor in self.net.state_dict().items()})
        self.log("validation_loss", float(len(ends)))
        self.log("validation_accuracy", 0.5)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", end)
    weights, _ = run(small(), splits, tmp_path)
    assert equal(weights, ends[0])
    assert not equal(weights, ends[2])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_every_batch_of_the_job(world_size: int, shuffle: bool) -> None:
    n, batch_size = 103, 10

    def batches(rank: int, of: int) -> list[list[int]]:
        sampler = GlobalBatches(n, batch_size, seed=0, shuffle=shuffle, rank=rank, world_size=of)
        sampler.set_epoch(4)
        return list(sampler)

    whole = batches(0, 1)
    shares = [batches(rank, world_size) for rank in range(world_size)]
    for i, batch in enumerate(whole):
        assert sorted(index for share in shares for index in share[i]) == sorted(batch)
    seen = [index for batch in whole for index in batch]
    assert len(seen) == len(set(seen)) == (100 if shuffle else 103)
