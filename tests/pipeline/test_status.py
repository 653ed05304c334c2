"""``python -m pipeline status`` from nothing to done, on a tiny benchmark in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import workspace
from pipeline.config import load_params
from pipeline.provenance import ROOT
from pipeline.stages import attack, data, train
from pipeline.status import status
from pipeline.store import locked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with one tiny net, two seeds and two attacks."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    workspace.apply_profile(params, ROOT / "profiles/tiny.yaml")
    change: dict[str, Any] = {
        "models": {"resnet": params["models"]["resnet"] | {"blocks": 1}},
        "seeds": [0, 1],
        "claims": {},
        "compute": params["compute"] | {"live": False},
    }
    params |= change
    params["train"]["epochs"] = 2
    yaml.dump(params, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "resnet"])
    return tmp_path


def shown() -> dict[str, str]:
    """First word of each line to the rest of it."""
    lines = [line.split(maxsplit=1) for line in status(load_params()).splitlines() if line]
    return {words[0]: words[1] if len(words) > 1 else "" for words in lines[1:]}


def test_a_benchmark_from_nothing_to_done(folder: Path) -> None:
    assert shown() == {
        "training": "–",
        "fgsm": "–",
        "pgd": "–",
        "running": "nothing",
        "time": "left  at least 0.0 s for training and attacks, as they took before on this machine",
    }
    data.main()
    assert shown()["training"] == "–"

    train.main()
    weights = next((folder / ".store/checkpoints").glob("*.safetensors"))
    hidden = weights.with_suffix(".hidden")
    weights.rename(hidden)
    training = next((folder / ".store/training").glob(f"{weights.stem}/last.ckpt"))
    assert shown()["training"] == "83 %", "of two seeds one, and of the other both epochs but no weights"
    training.unlink()
    assert shown()["training"] == "50 %"
    hidden.rename(weights)
    with locked("attack-resnet"):
        found = shown()
        assert found["training"] == "done"
        assert found["running"] == "attack-resnet (logs/attack-resnet.log)"
        assert found["pgd"] == "–"

    attack.main()
    finished = shown()
    assert (finished["fgsm"], finished["pgd"], finished["running"]) == ("done", "done", "nothing")
    assert finished["time"].startswith("left  none")

    lost = sorted((folder / ".store/rows").glob("*/000001-0.3-0.parquet"))[0]
    lost.unlink()  # of 2 seeds × 3 chunks × 2 strengths
    assert sorted((shown()["fgsm"], shown()["pgd"])) == ["92 %", "done"]
    assert " s for training and attacks" in shown()["time"]


def test_looking_changes_nothing(folder: Path) -> None:
    data.main()
    before = sorted(folder.rglob("*"))
    shown()
    assert sorted(folder.rglob("*")) == before
