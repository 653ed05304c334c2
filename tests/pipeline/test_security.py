"""Nothing that the benchmark reads is executed, no component is found outside its folder, and servers stay here."""

from __future__ import annotations

import ast
import importlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import components
from pipeline.datasets.base import DataError, Dataset, Split, read_split, write_dataset
from pipeline.errors import UserError
from pipeline.files import sha256, write_json
from pipeline.nets import load_target
from pipeline.provenance import ROOT
from pipeline.row_store import RowStore, read_rows
from pipeline.settings import Component
from pipeline.transferring import read_sources

SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.fixture(params=["pickle", "torch"])
def malicious(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[bytes, Path]:
    """A file's content, and the file that exists if somebody has executed it."""
    executed = tmp_path / "executed"
    if request.param == "pickle":
        return pickle.dumps(Malicious(executed)), executed
    torch.save(Malicious(executed), tmp_path / "saved")
    return (tmp_path / "saved").read_bytes(), executed


def test_the_trap_works(malicious: tuple[bytes, Path], tmp_path: Path) -> None:
    content, executed = malicious
    (tmp_path / "file").write_bytes(content)
    if content.startswith(b"PK"):
        torch.load(tmp_path / "file", weights_only=False)
    else:
        pickle.loads(content)
    assert executed.exists()


def test_a_checkpoint_is_refused(
    malicious: tuple[bytes, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: Split
) -> None:
    content, executed = malicious
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoints/net/seed-0.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    config = components.load("models", "resnet").Config(channels=8, groups=4, blocks=1)
    with pytest.raises(UserError, match=r"seed-0\.safetensors: missing, damaged or of another architecture"):
        load_target(Component("models", "net", "resnet", config), "net", 0, few_digits, 10)
    assert not executed.exists()


def test_data_are_refused_even_with_a_card_that_names_them(
    malicious: tuple[bytes, Path], tmp_path: Path, few_digits: Split
) -> None:
    content, executed = malicious
    dataset = Dataset(dict.fromkeys(("train", "validation", "test"), few_digits), 10, "made up", "none")
    write_dataset(dataset, tmp_path / "splits", kind="made up")
    path = tmp_path / "splits/test.safetensors"
    path.write_bytes(content)
    write_json(path.with_name("card.json"), {"splits": {"test": {"sha256": sha256(path)}}})
    with pytest.raises(DataError, match=r"test\.safetensors: not readable"):
        read_split(tmp_path / "splits", "test")
    assert not executed.exists()


def test_rows_and_images_are_refused(malicious: tuple[bytes, Path], tmp_path: Path) -> None:
    content, executed = malicious
    store = RowStore("key", store=tmp_path)
    store.folder.mkdir(parents=True)
    for name in ("000000-0.1-0.parquet", "000000-0.1-0.safetensors", "rows.parquet", "images.safetensors"):
        (store.folder / name).write_bytes(content)
    assert store.load(0, 0.1) is None
    assert read_rows(store.folder / "rows.parquet") is None
    with pytest.raises(UserError, match="missing or damaged"):
        read_sources(store.folder / "images.safetensors", "net", None, (0,))  # type: ignore[arg-type]
    assert not executed.exists()


OUTSIDE = ["os", "os.path", "../errors", "..errors", ".base", "base.", "base", "__init__", "/etc/passwd", "fgsm;os", ""]
ROOMS: tuple[components.Room, ...] = ("attacks", "datasets", "defences", "models")


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("room", ROOMS)
def test_a_component_name_reaches_no_other_module(
    kind: str, room: components.Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    real = importlib.import_module

    def watched(name: str) -> Any:
        imported.append(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", watched)
    with pytest.raises(components.UnknownComponentError):
        components.load(room, kind)
    assert all(f"{name}.".startswith(f"pipeline.{room}.") for name in imported)


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file with its dotted name."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in nodes]


def test_no_file_is_read_in_a_way_that_executes() -> None:
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "pd.read_pickle", "np.load", "yaml.load", "os.system"}
    found = [f"{path.name}: {name}" for path in SOURCES for name, _ in calls(path) if name in forbidden]
    # workspace.py's is ruamel's round trip loader, which makes no objects of a file's choosing.
    assert found == ["workspace.py: yaml.load"]
    for path in SOURCES:
        for name, call in calls(path):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                assert options.get("weights_only") == "True", path
            if name == "YAML":
                assert options.get("typ") in {"'safe'", None}, path
            assert options.get("shell", "False") == "False", path


def test_servers_listen_on_this_machine_alone() -> None:
    from pipeline.stages import ui

    assert ui.HOST == "127.0.0.1"
    anywhere = {"0.0.0.0", "::"}
    for path in SOURCES:
        constants = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant))
        assert not anywhere & {constant.value for constant in constants if isinstance(constant.value, str)}, path
        for name, call in calls(path):
            if name.endswith(".bind") and call.args and isinstance(call.args[0], ast.Tuple):
                assert ast.unparse(call.args[0].elts[0]) == "HOST", path
