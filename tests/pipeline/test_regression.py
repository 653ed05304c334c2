"""``python -m pipeline compare`` on stored runs: one like the last, others degraded, slower, changed, damaged."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from benchmarks import timed
from pipeline.__main__ import main
from pipeline.config import load_params
from pipeline.files import digest, sha256
from pipeline.folders import RESULTS
from pipeline.provenance import ROOT
from pipeline.report.inputs import read_benchmark
from pipeline.report.summary import configurations
from pipeline.stages import report
from tests.pipeline.synthetic import write_benchmark, write_params

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
    clock(tmp_path / "this", 200, 2)
    return tmp_path / "this"


def clock(root: Path, seconds: Any, reference: Any = 1) -> None:
    params = digest(asdict(load_params(root / "params.yaml")))
    curves = sha256(root / "reports/curves.csv")
    timing = {"seconds": seconds, "reference": reference, "curves": curves, "params": params}
    (root / "timing.json").write_text(json.dumps(timing), encoding="utf-8")


def edit_curves(root: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Another curves.csv, timed as it was."""
    path = root / "reports/curves.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    clock(root, 200, 2)


def compared(last: Path, this: Path) -> tuple[int, str]:
    """Exit status and what is said, as ``test_the_command_line_says_the_same`` has it of another process."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys, "argv", ["pipeline", "compare", str(last), str(this)])
        try:
            main()
        except SystemExit as end:
            return (end.code, said.getvalue()) if isinstance(end.code, int) else (1, f"{said.getvalue()}{end.code}\n")
    return 0, said.getvalue()


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
    clock(root, 200, 2)


def test_the_same_run_passes_on_a_slower_machine(last: Path, this: Path) -> None:
    status, said = compared(last, this)
    assert status == 0
    points = len(pd.read_csv(this / "reports/curves.csv"))
    assert f"{points} points of unchanged configurations: none outside" in said
    assert "+0 %, allowed" in said
    assert "Not compared" not in said


@pytest.mark.parametrize("name", ["last", "no run"])
def test_the_command_line_says_the_same(last: Path, this: Path, name: str) -> None:
    other = this if name == "last" else this / name
    command = [sys.executable, "-m", "pipeline", "compare", str(last), str(other)]
    finished = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout + finished.stderr) == compared(last, other)
    assert finished.returncode == (name != "last")


def test_a_degraded_run_fails_with_a_table(last: Path, this: Path) -> None:
    degrade(this, 0.9)
    status, said = compared(last, this)
    assert status == 1
    table = [line for line in said.splitlines() if line.startswith("| cnn | pgd | ")]
    assert table
    untouched = [line for line in said.splitlines() if line.startswith("| neural_ode | pgd ")]
    assert [line.split(" | ")[2:4] for line in untouched] == [["6", "0"]]  # in the table of all curves, none outside
    assert "| cnn | worst_case_linf | " in said
    then, now = (
        pd.read_csv(root / "reports/curves.csv").set_index(POINT).xs(("cnn", "pgd", 0.1)) for root in (last, this)
    )
    row = f"| cnn | pgd | 0.1 | {then.robust_accuracy:.3f} [{then.low:.3f}, {then.high:.3f}] | "
    assert row + f"{now.robust_accuracy:.3f} |" in table


def test_one_that_is_suddenly_more_robust_fails_too(last: Path, this: Path) -> None:
    """A weaker attack is the worst bug."""

    def harmless_pgd(curves: pd.DataFrame) -> pd.DataFrame:
        return curves.assign(
            robust_accuracy=curves["robust_accuracy"].mask((curves["attack"] == "pgd") & (curves["epsilon"] > 0), 1.0)
        )

    edit_curves(this, harmless_pgd)
    status, said = compared(last, this)
    assert status == 1
    assert "| pgd | " in said


def test_what_stays_within_the_interval_passes(last: Path, this: Path) -> None:
    edit_curves(this, lambda curves: curves.assign(robust_accuracy=curves["low"]))
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
    clock(other, 1)
    status, said = compared(last, other)
    assert status == 0
    assert "because gone: " in said
    status, said = compared(other, this)  # a hundred times as long, for twice the models and attacks
    assert status == 0
    assert "because new: " in said
    assert "Time: not compared, params.yaml says something else" in said


def test_a_passing_run_shows_every_curve(last: Path, this: Path) -> None:
    said = compared(last, this)[1]
    curves = pd.read_csv(this / "reports/curves.csv")
    for (model, attack), points in curves.groupby(["model", "attack"]):
        assert f"| {model} | {attack} | {len(points)} | 0 | " in said


@pytest.mark.parametrize(("short", "name"), [(0, "last"), (1, "this")])
def test_a_point_that_one_run_lacks_fails(last: Path, this: Path, tmp_path: Path, short: int, name: str) -> None:
    """As in a curves.csv that was cut short: the rest of it looks healthy."""
    shutil.copytree(last, tmp_path / "first")
    runs = [tmp_path / "first", this]
    edit_curves(runs[short], lambda curves: curves[:-1])
    lost = pd.read_csv(last / "reports/curves.csv").iloc[-1]
    status, said = compared(*runs)
    assert status == 1
    assert f"missing from {name} run's curves.csv: {lost.model} {lost.attack} at {lost.epsilon:g}." in said


def test_a_lost_curve_is_an_error(last: Path, this: Path) -> None:
    edit_curves(this, lambda curves: curves[(curves["model"] != "cnn") | (curves["attack"] != "pgd")])
    status, said = compared(last, this)
    assert status == 1
    assert said.startswith(f"error: {this / 'reports/curves.csv'}: ")
    assert "no row of cnn pgd" in said


def test_a_curve_of_no_known_configuration_is_an_error(last: Path, this: Path) -> None:
    (this / "reports/configurations.json").write_text("{}", encoding="utf-8")
    status, said = compared(last, this)
    assert status == 1
    assert said.startswith(f"error: {this / 'reports/curves.csv'}: ")
    assert "configurations.json does not know cnn fgsm, cnn pgd" in said


def test_a_point_twice_is_an_error(last: Path, this: Path) -> None:
    edit_curves(this, lambda curves: pd.concat([curves, curves[:1]]))
    assert "a point has two rows" in compared(last, this)[1]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, 0, "x", None])
def test_a_time_that_is_none_is_an_error(last: Path, this: Path, seconds: Any) -> None:
    for arguments in ((seconds, 1), (1, seconds)):
        clock(this, *arguments)
        status, said = compared(last, this)
        assert status == 1
        assert said.startswith(f"error: {this / 'timing.json'}: ")


def test_a_time_of_other_curves_is_an_error(last: Path, this: Path) -> None:
    path = this / "reports/curves.csv"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    status, said = compared(last, this)
    assert status == 1
    assert said.startswith(f"error: {this / 'timing.json'}: ")
    assert "another curves.csv" in said


def test_compute_is_no_part_of_a_configuration(last: Path, this: Path) -> None:
    edit_params(this, lambda params: params["compute"].update(devices=8))
    report_on(this)
    assert (this / "reports/configurations.json").read_text() == (last / "reports/configurations.json").read_text()
    clock(this, 1000)
    status, said = compared(last, this)  # eight devices are no measure of one
    assert status == 0
    assert "Time: not compared, params.yaml" in said


def test_images_of_other_models_are_part_of_a_worst_case(this: Path) -> None:
    params = load_params(this / "params.yaml")
    benchmark = read_benchmark(params, this)
    alone = replace(params.transfer, attacks=())
    for transfer, moves in ((replace(alone, attacks=("pgd",)), True), (alone, False)):
        before = configurations(replace(benchmark, params=replace(params, transfer=transfer)))
        wider = replace(params.models["cnn"], config=replace(params.models["cnn"].config, blocks=3))
        models = params.models | {"cnn": wider}
        after = configurations(replace(benchmark, params=replace(params, transfer=transfer, models=models)))
        then, now = before["neural_ode"], after["neural_ode"]
        assert now["pgd"] == then["pgd"]
        assert (now["worst_case_linf"] != then["worst_case_linf"]) is moves


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
        ("reports/configurations.json", "[]"),
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
    command = "from pathlib import Path; Path('reports').mkdir(); Path('reports/curves.csv').write_text('as made')"
    write_params(tmp_path, models=["cnn"], attacks=["fgsm"], seeds=[0], n_images=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["timed", ".", "--", sys.executable, "-c", command])
    timed.main()
    found = json.loads((tmp_path / "timing.json").read_text(encoding="utf-8"))
    assert found["seconds"] > 0 < found["reference"]
    assert found["curves"] == hashlib.sha256(b"as made").hexdigest()


def test_a_run_that_fails_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "PASSES", 1)
    monkeypatch.setattr(sys, "argv", ["timed", str(tmp_path), "--", sys.executable, "-c", "exit(3)"])
    with pytest.raises(SystemExit, match="3"):
        timed.main()
    assert not (tmp_path / "timing.json").exists()
