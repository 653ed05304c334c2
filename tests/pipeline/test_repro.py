"""The whole pipeline by ``dvc repro`` in a workspace of its own: what runs again, and what never does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.pipeline.workspaces import Workspace, same_rows, wait_for_end

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.make(tmp_path_factory.mktemp("repro"))
    ran = made.repro()
    cells = {f"{stage}@{model}" for stage in ("train", "attack") for model in ("resnet", "neural_ode")}
    single = {"data", "transfer", "probe", "refine", "trajectories", "theory", "report", "publish"}
    assert ran == single | cells
    return made


def test_every_output_is_there(workspace: Workspace) -> None:
    for name in ("index.html", "summary.md", "curves.csv", "metrics.json"):
        assert (workspace.folder / "reports" / name).stat().st_size > 0
    curves = pd.read_csv(workspace.folder / "reports/curves.csv")
    assert set(curves["model"]) == {"resnet", "neural_ode"}
    assert set(curves["attack"]) == {"worst_case_linf", "fgsm", "pgd"}
    transferred = pd.read_parquet(workspace.folder / "transfer/pgd.parquet")
    assert {"resnet", "neural_ode", "neural_ode@euler"} <= set(transferred["model"])
    assert (workspace.folder / "mlflow.db").is_file()


def test_second_run_does_nothing(workspace: Workspace) -> None:
    assert workspace.repro() == set()


def test_changed_line_of_pgd_recomputes_pgd_only(workspace: Workspace) -> None:
    before = {name: workspace.rows("resnet", name) for name in ("fgsm", "pgd")}
    source = workspace.folder / "pipeline/attacks/pgd.py"
    source.write_text(source.read_text(encoding="utf-8") + "# a changed line\n", encoding="utf-8")
    weights = {path: path.stat().st_mtime_ns for path in workspace.folder.glob(".store/checkpoints/*")}
    assert workspace.repro() >= {"attack@resnet", "attack@neural_ode"}
    # Training cells look again, as one could train against PGD; none trains.
    assert weights == {path: path.stat().st_mtime_ns for path in workspace.folder.glob(".store/checkpoints/*")}
    after = {name: workspace.rows("resnet", name) for name in ("fgsm", "pgd")}
    pd.testing.assert_frame_equal(before["fgsm"], after["fgsm"])  # seconds, too: nothing was run again
    assert set(before["pgd"]["config_hash"]).isdisjoint(after["pgd"]["config_hash"])
    same_rows(before["pgd"].drop(columns="config_hash"), after["pgd"].drop(columns="config_hash"))


def test_added_architecture_runs_only_its_cells(workspace: Workspace) -> None:
    def add(params: Any) -> None:
        params["models"]["euler_net"] = {"kind": "euler_net", "channels": 8, "groups": 4, "blocks": 2}

    workspace.edit_params(add)
    about_all = {"transfer", "probe", "refine", "trajectories", "report", "publish"}
    assert workspace.repro() == {"train@euler_net", "attack@euler_net"} | about_all


def test_added_variant_is_attacked_and_not_trained(workspace: Workspace) -> None:
    def add(params: Any) -> None:
        solver = {"method": "tsit5", "rtol": 1e-2, "atol": 1e-2, "max_steps": 99, "control": "sample"}
        params["variants"] = {"adaptive": {"of": "neural_ode", "solver": solver | {"gradient": "backprop"}}}

    workspace.edit_params(add)
    ran = workspace.repro()
    assert "attack_variant@adaptive" in ran
    assert not any(name.startswith("train@") for name in ran)
    rows, base = (workspace.rows(name, "fgsm") for name in ("adaptive", "neural_ode"))
    assert set(rows["config_hash"]).isdisjoint(base["config_hash"])
    assert (rows["nfe"] > 0).all()


def test_added_and_removed_strength(workspace: Workspace) -> None:
    def epsilons(values: list[float]) -> None:
        workspace.edit_params(lambda params: params["attacks"]["pgd"].update(epsilons=values))
        workspace.repro()

    before = workspace.rows("resnet", "pgd")
    epsilons([0.1, 0.2, 0.3])
    after = workspace.rows("resnet", "pgd")
    # What was attacked before has its old seconds: it was not attacked again.
    attacked = before[(before["epsilon"] == 0.1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(attacked, after[after["epsilon"] == 0.1].reset_index(drop=True))
    epsilons([0.1, 0.3])
    pd.testing.assert_frame_equal(workspace.rows("resnet", "pgd"), before)
    curves = pd.read_csv(workspace.folder / "reports/curves.csv")
    assert set(curves.loc[curves["attack"] == "pgd", "epsilon"]) == {0, 0.1, 0.3}


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM], ids=lambda kill: kill.name)
def test_killed_run_resumes_to_the_same_rows(workspace: Workspace, tmp_path: Path, kill: signal.Signals) -> None:
    other = Workspace.make(tmp_path / "killed")
    other.repro("train@resnet")
    process = other.start("dvc", "repro", "attack@resnet")
    deadline = time.monotonic() + 300
    while not list(other.folder.glob(".store/rows/*/*.parquet")):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, kill)
    process.wait(timeout=60)
    wait_for_end(process.pid)
    finished = {path: path.stat().st_mtime_ns for path in other.folder.glob(".store/rows/*/*.parquet")}
    assert not (other.folder / "results/resnet").exists()
    other.repro("attack@resnet")
    for path, modified in finished.items():
        assert path.stat().st_mtime_ns == modified
    for name in ("fgsm", "pgd"):
        same_rows(
            workspace.rows("resnet", name).drop(columns="config_hash"),
            other.rows("resnet", name).drop(columns="config_hash"),
        )


def test_wrong_parameter_is_one_line(workspace: Workspace) -> None:
    text = (workspace.folder / "params.yaml").read_text(encoding="utf-8")
    workspace.edit_params(lambda params: params["train"].update(epochz=3))
    status, output = workspace.run()
    (workspace.folder / "params.yaml").write_text(text, encoding="utf-8")
    assert status != 0
    assert "unknown key 'epochz'; did you mean 'epochs'?" in output
    assert "Traceback" not in output
