"""The command line: what a user asks it, and what it answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline import catalogue, components, schema
from pipeline.__main__ import main
from pipeline.components import Room
from pipeline.config import Params, load_params
from pipeline.errors import UserError
from pipeline.plan import Costs, plan, read_costs
from pipeline.provenance import ROOT

ALL = [(room, kind) for room in catalogue.TITLES for kind in components.kinds(room)]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    main()
    return capsys.readouterr().out


@pytest.mark.parametrize(("room", "kind"), ALL)
def test_every_parameter_is_explained(room: Room, kind: str) -> None:
    found = catalogue.parameters(components.load(room, kind).Config)
    assert not [parameter.name for parameter in found if not parameter.meaning or not parameter.values]


@pytest.mark.parametrize(("room", "kind"), ALL)
def test_every_component_has_a_line_with_its_parameters(room: Room, kind: str) -> None:
    (section,) = (part for part in catalogue.catalogue().split("\n\n") if f"(pipeline/{room}/)" in part)
    (line,) = (line for line in section.splitlines() if line.split()[0] == kind)
    listed = line.partition("Parameters: ")[2].rstrip(".").split(", ")
    assert [name.rstrip("?") for name in listed] == [
        parameter.name for parameter in catalogue.parameters(components.load(room, kind).Config)
    ]


def test_explain_prints_formula_units_source_and_cost(shipped: Params) -> None:
    text = catalogue.explain("adef", shipped)
    for part in (
        "τ_k = −f G(Gα) / Σ|Gα|²",
        "ICLR 2019",
        "sigma (number ≥ 0): width of the Gaussian filter in pixels",
        "budget (whole number ≥ 1 | null, may be left out)",
        "2n + 1 forwards",
        "In params.yaml: adef.",
        "docs/attacks.md, section adef",
    ):
        assert part in text, part


def test_explain_shows_a_solvers_own_keys_and_what_two_fields_share(shipped: Params) -> None:
    lines = catalogue.explain("neural_ode", shipped).splitlines()
    assert any(line.startswith("    method (euler | midpoint | rk4 | ") for line in lines)
    assert "    atol (number > 0 | null, may be left out): error tolerances of an adaptive one." in lines


def test_explain_knows_names_of_params_and_every_room_of_a_kind(shipped: Params) -> None:
    assert catalogue.explain("deform_pgd_fold_free", shipped).startswith("deform_pgd: one of the attacks")
    both = catalogue.explain("pgd", shipped)
    assert "pgd: one of the attacks" in both
    assert "pgd: one of the defences" in both
    with pytest.raises(UserError, match="did you mean 'adef'"):
        catalogue.explain("adeff", None)


def test_explain_works_without_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Goodfellow" in run(monkeypatch, capsys, "explain", "fgsm")
    with pytest.raises(SystemExit, match=r"params\.yaml: no such file"):
        run(monkeypatch, capsys, "check")


def test_help_names_the_commands() -> None:
    said = subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0
    assert all(f"    {command} " in said.stdout for command in ("check", "status", "list", "explain"))


def test_check_says_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    text = run(monkeypatch, capsys, "check")
    assert text.startswith("params.yaml is valid: 4 models and 0 variants × 3 seeds, 10 attacks\n")
    assert "training unknown, attacks unknown, together unknown" in text


def store_cell(store: Path, key: str, model: str, attack: str, seconds: float) -> None:
    """Rows of two images at two strengths, ``seconds`` each."""
    rows = pd.DataFrame({"model": model, "attack": attack, "index": [0, 1, 0, 1], "seconds": seconds})
    (store / "rows" / key).mkdir(parents=True)
    rows.to_parquet(store / "rows" / key / "000000-0.1-0.parquet")
    assert set(rows) < set(schema.COLUMNS)


def test_the_estimate_is_what_the_store_measured(tmp_path: Path, shipped: Params) -> None:
    store_cell(tmp_path, "old", "cnn", "pgd", 9.0)
    store_cell(tmp_path, "new", "cnn", "pgd", 0.25)
    store_cell(tmp_path, "other", "net_of_another_profile", "pgd", 9.0)
    for name in ("000000-0.2-0", "000000-0.05-0"):
        (tmp_path / "rows" / "new" / f"{name}.parquet").write_bytes(b"half a file")
    os.utime(tmp_path / "rows" / "old", (0, 0))
    (tmp_path / "checkpoints").mkdir()
    report = {"model": "cnn", "seconds": 8.0, "history": [{}] * 4}
    (tmp_path / "checkpoints" / "key.json").write_text(json.dumps(report))
    costs = read_costs(shipped, tmp_path)
    assert costs == Costs({"cnn": 2.0}, {("cnn", "pgd"): 0.5})

    cnn, pgd = shipped.models["cnn"], shipped.attacks["pgd"]
    params = replace(shipped, models={"cnn": cnn}, attacks={"pgd": pgd}, claims={})
    # 3 seeds × 10 epochs × 2 s; 3 seeds × 200 images × 0.5 s
    assert "training 1 min 0 s, attacks 5 min 0 s, together 6 min 0 s\n" in plan(params, costs)
    params = replace(params, attacks={"pgd": pgd, "fgsm": shipped.attacks["fgsm"]})
    text = plan(params, costs)
    assert "attacks unknown, together at least 6 min 0 s\n" in text
    assert "so unknown: fgsm." in text


def test_profiles_have_a_plan() -> None:
    """Every shipped architecture, attack and data set can be written down."""
    assert "neural_ode" in plan(load_params(ROOT / "params.yaml"), Costs({}, {}))
