"""``python -m pipeline compare`` on stored runs: one like the last, others degraded, slower, changed, damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from benchmarks import timed
from pipeline.config import load_params
from pipeline.folders import RESULTS
from pipeline.provenance import ROOT
from pipeline.report.inputs import read_benchmark
from pipeline.report.summary import configurations
from pipeline.stages import report
from tests.pipeline.synthetic import write_benchmark

POINT = ["model", "attack", "epsilon"]


def report_on(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with a time of a hundred reference loops."""
    root = tmp_path_factory.mktemp("regression") / "last"
    write_benchmark(root, models=["cnn", "neural_ode"], attacks=["fgsm", "pgd"], seeds=[0, 1, 2], n_images=30)
    report_on(root)
    clock(root, 100)
    return root


@pytest.fixture
def this(last: Path, tmp_path: Path) -> Path:
    """Another run of the same on a machine half as fast."""
    shutil.copytree(last, tmp_path / "this")
    (tmp_path / "this/timing.json").write_text(json.dumps({"seconds": 200, "reference": 2}), encoding="utf-8")
    return tmp_path / "this"


def clock(root: Path, seconds: float) -> None:
    (root / "timing.json").write_text(json.dumps({"seconds": seconds, "reference": 1}), encoding="utf-8")


def compared(last: Path, this: Path) -> tuple[int, str]:
    """Exit status and what is said."""
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline", "compare", last, this], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stdout + finished.stderr


def edit_params(root: Path, change: Any) -> None:
    yaml = YAML()
    params = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    change(params)
    yaml.dump(params, root / "params.yaml")


def degrade(root: Path, share: float) -> None:
    """PGD fools this share of the images of the CNN at every strength, as if a change had made the net weaker."""
    path = root / RESULTS / "cnn/pgd.parquet"
    rows = pd.read_parquet(path)
    hit = (rows["index"] < share * rows["index"].nunique()) & rows["clean_correct"]
    # A row that succeeds has to have been fooled within the strength.
    rows.loc[hit, "success"] = True
    rows.loc[hit, ["size_linf", "size_l2"]] = 1e-3
    rows.to_parquet(path, index=False)
    report_on(root)


def test_the_same_run_passes_on_a_slower_machine(last: Path, this: Path) -> None:
    status, said = compared(last, this)
    assert status == 0
    points = len(pd.read_csv(this / "reports/curves.csv"))
    assert f"{points} points of unchanged configurations: none outside" in said
    assert "+0 %, allowed" in said
    assert "Not compared" not in said


def test_a_degraded_run_fails_with_a_table(last: Path, this: Path) -> None:
    degrade(this, 0.9)
    status, said = compared(last, this)
    assert status == 1
    table = [line for line in said.splitlines() if line.startswith("| cnn | pgd | ")]
    assert table
    assert not [line for line in said.splitlines() if line.startswith("| neural_ode | pgd ")]
    assert "| cnn | worst_case_linf | " in said
    then, now = (
        pd.read_csv(root / "reports/curves.csv").set_index(POINT).xs(("cnn", "pgd", 0.1)) for root in (last, this)
    )
    row = f"| cnn | pgd | 0.1 | {then.robust_accuracy:.3f} [{then.low:.3f}, {then.high:.3f}] | "
    assert row + f"{now.robust_accuracy:.3f} |" in table


def test_one_that_is_suddenly_more_robust_fails_too(last: Path, this: Path) -> None:
    """A weaker attack is the worst bug."""
    path = this / "reports/curves.csv"
    curves = pd.read_csv(path)
    curves.loc[(curves["attack"] == "pgd") & (curves["epsilon"] > 0), "robust_accuracy"] = 1.0
    curves.to_csv(path, index=False)
    status, said = compared(last, this)
    assert status == 1
    assert "| pgd | " in said


def test_what_stays_within_the_interval_passes(last: Path, this: Path) -> None:
    path = this / "reports/curves.csv"
    curves = pd.read_csv(path)
    curves["robust_accuracy"] = curves["low"]
    curves.to_csv(path, index=False)
    assert compared(last, this)[0] == 0


@pytest.mark.parametrize(
    ("seconds", "status", "words"), [(124, 0, "+24 %, allowed"), (126, 1, "+26 %, more than the 25 %")]
)
def test_a_slower_run_fails(last: Path, this: Path, seconds: float, status: int, words: str) -> None:
    clock(this, seconds)
    found, said = compared(last, this)
    assert found == status
    assert words in said


def test_without_times_there_is_no_judgement_on_them(last: Path, this: Path) -> None:
    (this / "timing.json").unlink()
    status, said = compared(last, this)
    assert status == 0
    assert "Time: not compared" in said


def test_a_changed_configuration_is_listed_and_not_judged(last: Path, this: Path) -> None:
    edit_params(this, lambda params: params["attacks"]["pgd"].update(steps=99))
    degrade(this, 0.9)
    status, said = compared(last, this)
    assert status == 0
    assert "because changed: " in said
    for curve in ("cnn pgd", "neural_ode pgd", "cnn worst_case_linf"):
        assert curve in said
    assert "cnn fgsm" not in said


def test_curves_that_come_and_go_are_listed(last: Path, this: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_benchmark(other, models=["cnn"], attacks=["fgsm"], seeds=[0, 1, 2], n_images=30)
    report_on(other)
    status, said = compared(last, other)
    assert status == 0
    assert "because gone: " in said
    assert "because new: " in compared(other, this)[1]


def test_compute_is_no_part_of_a_configuration(last: Path, this: Path) -> None:
    edit_params(this, lambda params: params["compute"].update(devices=8))
    report_on(this)
    assert (this / "reports/configurations.json").read_text() == (last / "reports/configurations.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda params: params["train"].update(epochs=11),
        lambda params: params["seeds"].append(3),
        lambda params: params["models"]["cnn"].update(blocks=3),
        lambda params: params["evaluate"].update(chunk_size=50),
    ],
)
def test_what_moves_a_number_is_part_of_it(last: Path, this: Path, change: Any) -> None:
    before = json.loads((last / "reports/configurations.json").read_text())
    benchmark = read_benchmark(load_params(this / "params.yaml"), this)
    edit_params(this, change)
    after = configurations(replace(benchmark, params=load_params(this / "params.yaml")))
    assert all(after["cnn"][attack] != before["cnn"][attack] for attack in before["cnn"])


def test_a_first_run_has_nothing_to_compare_with(this: Path, tmp_path: Path) -> None:
    status, said = compared(tmp_path / "nothing", this)
    assert status == 0
    assert "A first run?" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reports/curves.csv", "model,attack\n"),
        ("reports/curves.csv", None),
        ("reports/configurations.json", "{"),
        ("reports/configurations.json", "{}"),
        ("timing.json", '{"seconds": 1, "reference": 0}'),
        ("timing.json", "[]"),
    ],
)
def test_a_damaged_run_is_one_clear_error(last: Path, this: Path, name: str, content: str | None) -> None:
    (this / name).unlink()
    if content is not None:
        (this / name).write_text(content, encoding="utf-8")
    status, said = compared(last, this)
    assert status == 1
    assert said.startswith(f"error: {this / name}: ")
    assert said.count("\n") == 1


def test_a_run_is_timed_with_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "PASSES", 1)
    monkeypatch.setattr(sys, "argv", ["timed", str(tmp_path / "t.json"), "--", sys.executable, "-c", "pass"])
    timed.main()
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert found["seconds"] > 0 < found["reference"]


def test_a_run_that_fails_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "PASSES", 1)
    monkeypatch.setattr(sys, "argv", ["timed", str(tmp_path / "t.json"), "--", sys.executable, "-c", "exit(3)"])
    with pytest.raises(SystemExit, match="3"):
        timed.main()
    assert not (tmp_path / "t.json").exists()
