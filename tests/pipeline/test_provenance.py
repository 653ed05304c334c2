"""The closure that keys a row is the code that a row ran: no less, or stale rows survive; no more, or good ones die."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import components, provenance

ROOT = provenance.ROOT


def imported_by(module: str) -> set[Path]:
    """Files of this project that a new interpreter has loaded after ``import module``."""
    code = (
        f"import sys, {module}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'pipeline'), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return {Path(line) for line in found.stdout.split("\n") if line}


@pytest.mark.parametrize(
    ("modules", "late"),
    [
        ("pipeline.stages.train", "pytorch_lightning pandas mlflow"),
        ("pipeline.stages.attack", "pytorch_lightning mlflow"),
        ("pipeline.__main__, pipeline.regression", "torch"),
    ],
)
def test_what_loads_for_seconds_is_imported_where_it_is_needed(modules: str, late: str) -> None:
    code = f"import sys, {modules}; print(*(set({late.split()}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize("module", ["pipeline.stages.data", "pipeline.evaluate", "pipeline.models.neural_ode"])
def test_the_closure_is_what_an_import_loads(module: str) -> None:
    assert set(provenance.closure([module])) == imported_by(module)


def test_a_late_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("def f():\n    import pipeline.deform\n    from pipeline.ode import solve\n", encoding="utf-8")
    assert provenance.imports(file) == ("pipeline.deform", "pipeline.ode", "pipeline.ode.solve")


def test_names_that_are_no_modules_are_not_files(tmp_path: Path) -> None:
    file = tmp_path / "names.py"
    file.write_text("from pipeline.deform import warp\nimport torch, pipelines.other\n", encoding="utf-8")
    assert provenance.imports(file) == ("pipeline.deform",)


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pipeline\.attacks\.absent"):
        provenance.closure(["pipeline.attacks.absent"])


@pytest.mark.parametrize("kind", components.kinds("attacks"))
def test_an_attack_stands_apart_from_the_others(kind: str) -> None:
    """Editing one attack must not touch another's rows."""
    names = {path.stem for path in provenance.closure([f"pipeline.attacks.{kind}"]) if path.parent.name == "attacks"}
    assert names & set(components.kinds("attacks")) == {kind}


def test_rows_without_a_field_do_not_depend_on_the_geometry_of_fields() -> None:
    paths = provenance.closure(["pipeline.evaluate", "pipeline.attacks.fgsm", "pipeline.models.cnn"])
    assert ROOT / "pipeline" / "deform.py" not in paths


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, which provenance reads instead."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path / "pipeline"


def code_hash(module: str) -> str:
    provenance.imports.cache_clear()  # a process never edits its own code; a test does
    return provenance.code_hash([module])


ATTACK = "pipeline.attacks.fgsm"


def test_the_hash_does_not_depend_on_where_the_code_lies(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copied.parent == provenance.ROOT
    there = code_hash(ATTACK)
    monkeypatch.setattr(provenance, "ROOT", ROOT)
    assert code_hash(ATTACK) == there


@pytest.mark.parametrize("edited", ["attacks/fgsm.py", "attacks/base.py", "attacks/__init__.py", "seeds.py"])
def test_an_edit_in_the_closure_changes_the_hash(copied: Path, edited: str) -> None:
    before = code_hash(ATTACK)
    path = copied / edited
    original = path.read_text(encoding="utf-8")
    path.write_text(original + "# a comment is an edit, too\n", encoding="utf-8")
    assert code_hash(ATTACK) != before
    path.write_text(original, encoding="utf-8")
    assert code_hash(ATTACK) == before


def test_an_edit_outside_the_closure_does_not(copied: Path) -> None:
    before = code_hash(ATTACK)
    for name in ("attacks/adef.py", "deform.py", "models/cnn.py", "evaluate.py", "stages/attack.py", "py.typed"):
        path = copied / name
        path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    (copied / "attacks" / "brand_new.py").write_text("GOAL = 'budget'\n", encoding="utf-8")
    assert code_hash(ATTACK) == before


def test_a_new_import_joins_the_closure(copied: Path) -> None:
    before = code_hash(ATTACK)
    helper = copied / "attacks" / "helper.py"
    helper.write_text("X = 1\n", encoding="utf-8")
    path = copied / "attacks" / "fgsm.py"
    path.write_text("import pipeline.attacks.helper\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with_helper = code_hash(ATTACK)
    assert with_helper != before
    helper.write_text("X = 2\n", encoding="utf-8")
    assert code_hash(ATTACK) != with_helper


def keyed_modules(stage: str) -> list[str]:
    """What the stage's results are keyed by (``training_key``, ``make_cell``), over all components."""
    rooms: dict[str, tuple[components.Room, ...]] = {
        "data": ("datasets",),
        "train": ("models", "defences", "attacks"),
        "attack": ("models", "attacks"),
        "refine": ("models",),
        "transfer": ("models", "attacks"),
        "probe": ("models",),
        "trajectories": ("models",),
    }
    own = {
        "train": ["pipeline.training"],
        "attack": ["pipeline.evaluate", "pipeline.judge_field"],
        "refine": ["pipeline.stages.refine"],
        "transfer": ["pipeline.stages.transfer", "pipeline.judge_field"],
        "probe": ["pipeline.stages.probe"],
        "trajectories": ["pipeline.stages.trajectories"],
        "theory": ["pipeline.stages.theory"],
        "report": ["pipeline.stages.report"],
        "publish": ["pipeline.stages.publish"],
    }
    kinds = [f"pipeline.{room}.{kind}" for room in rooms.get(stage, ()) for kind in components.kinds(room)]
    return own.get(stage, []) + kinds


STAGES = ["data", "train", "attack", "transfer", "probe", "refine", "trajectories", "theory", "report", "publish"]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_starts_a_cell_when_the_code_of_its_results_is_edited(stage: str) -> None:
    """A file that the key hashes and that DVC does not watch leaves stale results standing."""
    entry = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    watched = {ROOT / dependency for dependency in entry.get("do", entry)["deps"]}
    unwatched = [
        path.relative_to(ROOT).as_posix()
        for path in provenance.closure(keyed_modules(stage))
        if not watched & {path, *path.parents} and path.name != "__init__.py"
    ]
    assert not unwatched, f"dvc.yaml: {stage} lacks the deps {unwatched}"


def test_the_environment_names_the_lock_file_and_what_is_installed() -> None:
    found = provenance.environment()
    assert {"requirements.lock", "torch", "torchdiffeq"} <= set(found)
    assert len(found["requirements.lock"]) == 64
