"""Splits, cards and files of the data sets; nothing here touches a network."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from pipeline import components
from pipeline.datasets import mnist5k
from pipeline.datasets import torchvision as torchvision_sets
from pipeline.datasets.base import (
    SPLITS,
    DataError,
    Dataset,
    Split,
    input_sha256,
    read_card,
    read_split,
    stratified_split,
    write_dataset,
)
from pipeline.provenance import ROOT

CONFIG = mnist5k.Config(split_seed=0, train=3500, validation=500, test=1000)


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return mnist5k.load(CONFIG)


def tiny() -> Dataset:
    """Three splits of 4, 2 and 2 images of 3 × 3 pixels, two classes."""
    images = torch.arange(8 * 9).view(8, 1, 3, 3).to(torch.uint8)
    parts = {"train": slice(0, 4), "validation": slice(4, 6), "test": slice(6, 8)}
    labels = torch.arange(8) % 2
    return Dataset({name: Split(images[part], labels[part]) for name, part in parts.items()}, 2, "made up", "none")


def hashes(split: Split) -> list[str]:
    return [input_sha256(image) for image in split.images]


# mnist5k


def test_sizes_shapes_and_types(embedded: Dataset) -> None:
    assert set(embedded.splits) == set(SPLITS)
    for name, size in (("train", 3500), ("validation", 500), ("test", 1000)):
        split = embedded.splits[name]
        assert split.images.shape == (size, 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.in_shape == (1, 28, 28)
        assert split.inputs.dtype == torch.float32
        assert 0 <= split.inputs.min() < split.inputs.max() <= 1


def test_splits_are_stratified_and_so_are_their_beginnings(embedded: Dataset) -> None:
    """Attacks take the first n test images: those must be balanced, too."""
    for name, per_class in (("train", 350), ("validation", 50), ("test", 100)):
        assert torch.bincount(embedded.splits[name].labels).tolist() == [per_class] * 10
    for n in (50, 100, 200):
        assert torch.bincount(embedded.splits["test"].labels[:n]).tolist() == [n // 10] * 10


def test_splits_are_disjoint_and_hold_the_embedded_images(embedded: Dataset, digits: Split) -> None:
    found = sorted(image for split in embedded.splits.values() for image in hashes(split))
    assert found == sorted(hashes(digits))  # all 5,000, each once


def test_labels_stay_with_their_images(embedded: Dataset, digits: Split) -> None:
    label = dict(zip(hashes(digits), digits.labels.tolist(), strict=True))
    test = embedded.splits["test"]
    assert [label[image] for image in hashes(test)] == test.labels.tolist()


def test_the_seed_decides_and_nothing_else() -> None:
    labels = torch.arange(10).repeat_interleave(20)
    sizes = {"train": 100, "test": 50}
    first = stratified_split(labels, sizes, 0)
    torch.manual_seed(123)
    again, other = stratified_split(labels, sizes, 0), stratified_split(labels, sizes, 1)
    assert all(torch.equal(first[name], again[name]) for name in sizes)
    assert not torch.equal(first["train"], other["train"])


def test_uneven_sizes_are_as_even_as_can_be() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    part = stratified_split(labels, {"train": 31, "test": 10}, 0)["train"]
    assert torch.bincount(labels[part]).tolist() in ([11, 10, 10], [10, 11, 10], [10, 10, 11])


def test_more_images_than_there_are() -> None:
    with pytest.raises(DataError, match=r"5001 exceeds the 5000 images"):
        mnist5k.load(mnist5k.Config(split_seed=0, train=3501, validation=500, test=1000))


@pytest.mark.parametrize("kind", components.kinds("datasets"))
def test_config_is_frozen_and_says_everything(kind: str) -> None:
    config = components.load("datasets", kind).Config
    assert config.__dataclass_params__.frozen
    assert all(field.kw_only for field in config.__dataclass_fields__.values())
    with pytest.raises(TypeError):
        config()


# On disk


def test_what_is_written_is_read(tmp_path: Path) -> None:
    dataset = tiny()
    write_dataset(dataset, tmp_path / "splits", kind="tiny")
    for name in SPLITS:
        split = read_split(tmp_path / "splits", name)
        assert torch.equal(split.images, dataset.splits[name].images)
        assert torch.equal(split.labels, dataset.splits[name].labels)
    card = read_card(tmp_path / "splits")
    assert {key: card[key] for key in ("kind", "source", "licence", "n_classes")} == {
        "kind": "tiny",
        "source": "made up",
        "licence": "none",
        "n_classes": 2,
    }
    assert card["splits"]["test"] | {"sha256": ""} == {
        "sha256": "",
        "shape": [2, 1, 3, 3],
        "range": [54, 71],
        "per_class": [1, 1],
    }


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tiny(), tmp_path / name, kind="tiny")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_byte_is_an_error_that_names_the_file(tmp_path: Path, position: int) -> None:
    write_dataset(tiny(), tmp_path, kind="tiny")
    path = tmp_path / "test.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    read_split(tmp_path, "train")
    with pytest.raises(DataError, match=r"test\.safetensors: missing or damaged.*run `dvc repro"):
        read_split(tmp_path, "test")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"card\.json: missing; run `dvc repro data`"):
        read_split(tmp_path, "test")
    write_dataset(tiny(), tmp_path, kind="tiny")
    (tmp_path / "train.safetensors").unlink()
    with pytest.raises(DataError, match=r"train\.safetensors: missing"):
        read_split(tmp_path, "train")


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    write_dataset(tiny(), tmp_path, kind="tiny")
    card = tmp_path / "card.json"
    card.write_text(card.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(DataError, match=r"card\.json: not readable"):
        read_card(tmp_path)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException], before: bool
) -> None:
    folder = tmp_path / "splits"
    if before:
        write_dataset(tiny(), folder, kind="earlier")

    def fail(*_: Any) -> NoReturn:
        raise interruption

    monkeypatch.setattr("pipeline.datasets.base.write_json", fail)  # the splits are written by then
    with pytest.raises(interruption):
        write_dataset(tiny(), folder, kind="tiny")
    assert [path.name for path in tmp_path.iterdir()] == (["splits"] if before else [])
    assert not before or read_card(folder)["kind"] == "earlier"


def test_a_killed_write_leaves_nothing_that_a_reader_sees(tmp_path: Path) -> None:
    """The process is gone between two files: no clean-up ran."""
    code = (
        "import os; from pathlib import Path; from pipeline.files import atomic_directory\n"
        "with atomic_directory(Path('splits')) as folder:\n"
        "    (folder / 'train.safetensors').write_text('half')\n"
        "    os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == 9
    assert not (tmp_path / "splits").exists()
    assert all(path.suffix == ".tmp" for path in tmp_path.iterdir())  # which git ignores


# torchvision, offline: IDX files made of the embedded images


def write_idx(path: Path, values: Tensor) -> None:
    """The format of yann.lecun.com: 0, 0, type 8 (uint8), number of dimensions, sizes, bytes; gzipped or not."""
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    content = header + values.to(torch.uint8).numpy().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_set(folder: Path, train: Split, test: Split) -> None:
    for prefix, split in (("train", train), ("t10k", test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", split.images.squeeze(1))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", split.labels)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to open an address fails and is noted."""
    attempts: list[str] = []

    def refuse(request: Any, *_: Any, **__: Any) -> NoReturn:
        attempts.append(getattr(request, "full_url", str(request)))
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return attempts


def config_of(name: Any, folder: Path, *, validation: int = 50) -> torchvision_sets.Config:
    return torchvision_sets.Config(name=name, folder=str(folder), split_seed=0, validation=validation)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_official_sets_are_read_from_idx_files(name: str, tmp_path: Path, digits: Split, no_network: list[str]) -> None:
    train = Split(digits.images[::5], digits.labels[::5])
    test = Split(digits.images[1::25], digits.labels[1::25])
    write_idx_set(tmp_path / name / "raw", train, test)
    splits = torchvision_sets.load(config_of(name, tmp_path)).splits
    assert {key: tuple(split.images.shape) for key, split in splits.items()} == {
        "train": (950, 1, 28, 28),
        "validation": (50, 1, 28, 28),
        "test": (200, 1, 28, 28),
    }
    assert torch.equal(splits["test"].images, test.images)  # the official order
    assert torch.equal(splits["test"].labels, test.labels)
    assert sorted(hashes(splits["train"]) + hashes(splits["validation"])) == sorted(hashes(train))
    assert torch.bincount(splits["validation"].labels).tolist() == [5] * 10
    write_dataset(torchvision_sets.load(config_of(name, tmp_path)), tmp_path / "splits", kind="torchvision")
    assert not no_network


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_without_files_and_network_the_error_says_what_to_do(name: str, tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        torchvision_sets.load(config_of(name, tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, str(tmp_path / name / "raw"), "IDX files", "internet", "mnist5k"):
        assert part in message
    assert no_network, "the download was tried, and refused"


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path, no_network: list[str]) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(DataError, match="MNIST is not complete"):
        torchvision_sets.load(config_of("MNIST", tmp_path / "file"))
    assert not no_network


def test_a_damaged_idx_file_is_a_data_error(tmp_path: Path, digits: Split, no_network: list[str]) -> None:
    few = Split(digits.images[::50], digits.labels[::50])
    write_idx_set(tmp_path / "MNIST" / "raw", few, few)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"MNIST.*raw"):
        torchvision_sets.load(config_of("MNIST", tmp_path))
    assert not no_network


def test_validation_must_leave_something_to_train_on(tmp_path: Path, digits: Split) -> None:
    few = Split(digits.images[::50], digits.labels[::50])
    write_idx_set(tmp_path / "MNIST" / "raw", few, few)
    with pytest.raises(DataError, match=r"^dataset\.validation: 100 leaves nothing of the 100"):
        torchvision_sets.load(config_of("MNIST", tmp_path, validation=100))


def test_the_card_is_json_that_any_program_reads(tmp_path: Path) -> None:
    write_dataset(tiny(), tmp_path, kind="tiny")
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == read_card(tmp_path)
