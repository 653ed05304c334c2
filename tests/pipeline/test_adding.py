"""docs/adding.md, followed to the letter in a copy of the sources: each component is found, sound and runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.provenance import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs/adding.md"
SOURCES = (
    "pipeline",
    "tests",
    "benchmarks",
    "params.yaml",
    "dvc.yaml",
    "requirements.lock",
    "pyproject.toml",
    "profiles",
)


@dataclass(frozen=True)
class Step:
    """A block of the page: what is to be done with it, where, and its text."""

    what: str
    where: str
    text: str


def steps() -> list[Step]:
    blocks = re.findall(r"<!-- (\w+):? ?([^ ]*) -->\n```\w+\n(.*?)```\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [Step(*block) for block in blocks]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adding")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def call(folder: Path, command: str) -> str:
    words = command.split()
    assert words[:2] == ["python", "-m"]
    finished = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def edit(folder: Path, change: Any) -> None:
    yaml, path = YAML(), folder / "params.yaml"
    params = yaml.load(path.read_text(encoding="utf-8"))
    change(params)
    yaml.dump(params, path)


def follow(folder: Path, step: Step) -> None:
    entry = YAML(typ="safe", pure=True).load(step.text) if step.what in ("entry", "section") else None
    if step.what == "file":
        assert not (folder / step.where).exists()
        (folder / step.where).write_text(step.text, encoding="utf-8")
    elif step.what == "entry":
        edit(folder, lambda params: params[step.where].update(entry))
    elif step.what == "section":
        edit(folder, lambda params: params.update({step.where: entry}))
    else:
        assert step.what == "run"
        for command in step.text.strip().splitlines():
            output = call(folder, command)
            assert "no tests ran" not in output


def test_the_page_is_followed_and_what_it_adds_runs(copy: Path) -> None:
    found = steps()
    assert [step.what for step in found] == ["file", "entry", "run"] * 2 + ["file", "section", "run"]
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * len(found), "every block is a step"
    for step in found:
        follow(copy, step)
    card = json.loads((copy / "data/splits/card.json").read_text(encoding="utf-8"))
    assert card["splits"]["test"]["shape"] == [397, 1, 24, 24]

    def shorten(params: Any) -> None:
        params["train"]["epochs"] = 1
        params["seeds"] = [0]
        params["claims"] = {}
        params["models"] = {"pointwise": params["models"]["pointwise"]}
        params["attacks"] = {"random_sign": params["attacks"]["random_sign"] | {"n_images": 20}}
        params["transfer"]["attacks"] = ["random_sign"]
        params["compute"]["live"] = False

    edit(copy, shorten)
    for stage in ("train", "attack"):
        call(copy, f"python -m pipeline.stages.{stage} pointwise")
    rows = pd.read_parquet(copy / "results/pointwise/random_sign.parquet")
    assert len(rows) == 20 * 3
    assert (rows["status"] == "ok").all()
    assert rows["size_linf"].max() == pytest.approx(0.3, abs=1e-6)


def test_the_page_obeys_the_house_rules(copy: Path) -> None:
    paths = [step.where for step in steps() if step.what == "file"]
    for path, step in zip(paths, [step for step in steps() if step.what == "file"], strict=True):
        (copy / path).write_text(step.text, encoding="utf-8")
    checks = ("ruff check", "ruff format --check", "mypy")
    said = [call(copy, f"python -m {check} {' '.join(paths)}") for check in checks]
    assert f"{len(paths)} files already formatted" in said[1]
    assert f"no issues found in {len(paths)} source files" in said[2]
