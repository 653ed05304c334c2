"""What ``dvc plots`` and ``dvc metrics`` show is what the report says, and docs/architecture.md draws the stages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.provenance import ROOT
from pipeline.stages import report
from tests.pipeline.synthetic import write_benchmark

CURVES, METRICS = "reports/curves.csv", "reports/metrics.json"
POINT = ["rev", "model", "attack", "epsilon"]


def call(*command: str, root: Path) -> str:
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def dvc(*arguments: str, root: Path) -> Any:
    return json.loads(call(sys.executable, "-m", "dvc", *arguments, "--json", root=root))


def drawn(answer: Any) -> pd.DataFrame:
    """The points of the one picture, with numbers again."""
    (picture,) = answer["data"][CURVES]
    points = pd.DataFrame(picture["content"]["data"]["values"])
    return points.astype({"epsilon": float, "robust_accuracy": float, "low": float, "high": float})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a report that is committed, and another in its working tree."""
    root = tmp_path_factory.mktemp("dvc")
    write_benchmark(root, models=["cnn", "neural_ode"], attacks=["fgsm", "adef"], seeds=[0, 1], n_images=20)
    shutil.copy(ROOT / "dvc.yaml", root)
    template = Path("pipeline/report/curves.vega.json")
    for path in (Path(".dvc/config"), template):
        (root / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, root / path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()
    call("git", "init", "-q", root=root)
    call("git", "add", "dvc.yaml", "params.yaml", ".dvc", "pipeline", CURVES, METRICS, root=root)
    call("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "a report", root=root)
    shutil.copy(root / CURVES, root / "committed.csv")
    curves = pd.read_csv(root / CURVES)
    curves.assign(robust_accuracy=curves["robust_accuracy"] / 2).to_csv(root / CURVES, index=False)
    numbers = json.loads((root / METRICS).read_text(encoding="utf-8"))
    numbers["cnn"]["fgsm"]["area"] = 0.125
    (root / METRICS).write_text(json.dumps(numbers), encoding="utf-8")
    return root


def test_plots_are_the_curves(root: Path) -> None:
    answer = dvc("plots", "show", root=root)
    expected = pd.read_csv(root / CURVES).assign(rev="workspace")
    pd.testing.assert_frame_equal(drawn(answer)[[*POINT, "robust_accuracy"]], expected[[*POINT, "robust_accuracy"]])
    encoding = answer["data"][CURVES][0]["content"]["spec"]["encoding"]
    assert {channel: encoding[channel]["field"] for channel in ("x", "y", "color", "strokeDash")} == {
        "x": "epsilon",
        "y": "robust_accuracy",
        "color": "model",
        "strokeDash": "rev",
    }


def test_plots_of_two_revisions_are_both_curves(root: Path) -> None:
    found = drawn(dvc("plots", "diff", "HEAD", root=root))
    now, then = (
        pd.read_csv(root / CURVES).assign(rev="workspace"),
        pd.read_csv(root / "committed.csv").assign(rev="HEAD"),
    )
    expected = pd.concat([now, then]).sort_values(POINT)[[*POINT, "robust_accuracy"]].reset_index(drop=True)
    found = found.sort_values(POINT)[[*POINT, "robust_accuracy"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)


def test_metrics_differ_where_the_report_does(root: Path) -> None:
    found = dvc("metrics", "diff", root=root)[METRICS]
    assert list(found) == ["cnn.fgsm.area"]
    assert found["cnn.fgsm.area"]["new"] == 0.125


def reachable(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The transitive closure: a picture need not draw an arrow where a way leads along others."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def dvc_edges() -> set[tuple[str, str]]:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    bodies = {name: stage.get("do", stage) for name, stage in stages.items()}

    def folders(name: str, *sections: str) -> set[str]:
        """What it reads or writes: the files of a folder are one, and so are the cells of a matrix."""
        listed = [entry for section in sections for entry in bodies[name].get(section, [])]
        paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in listed]
        return {path.split("/$")[0] if path.startswith(("checkpoints", "results")) else path for path in paths}

    written = {name: folders(name, "outs", "metrics", "plots") for name in bodies}
    return {(a, b) for b in bodies for a in bodies if written[a] & folders(b, "deps")}


def test_the_picture_of_the_flow_is_dvcs() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    drawn_edges = set(re.findall(r"^ *(\w+)(?:\[[^]]*\])? --> (\w+)", picture, re.MULTILINE))
    assert reachable(drawn_edges) == reachable(dvc_edges())
