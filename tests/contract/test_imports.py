"""The house's floor plan: imports go down only, components never meet, and each big dependency has one door."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline import components, provenance

ROOT = provenance.ROOT
# Names of pipeline.<name>, from the ground up; a room stands for everything in it.
LEVELS = (
    {
        "allocation",
        "components",
        "config",
        "deform",
        "errors",
        "fields",
        "files",
        "folders",
        "judge_field",
        "matching",
        "ode",
        "probe",
        "progress",
        "provenance",
        "row_store",
        "schema",
    }
    | {"seeds", "settings", "store"},
    {"attacks", "datasets", "models", "theory"},
    {"defences", "statistics"},
    {"comparison", "worst_case"},
    {"masking"},
    {"verdict"},
    {
        "attacker",
        "attacking",
        "catalogue",
        "cells",
        "classifier",
        "climbing",
        "evaluate",
        "evaluator",
        "fitting",
        "live",
        "probing",
        "examples",
        "nets",
        "parts",
        "plan",
        "records",
        "refinement",
        "refining",
        "registry",
        "regression",
        "report",
        "status",
        "tracing",
        "tracking",
    }
    | {"trainer", "training", "trajectory", "transferring"},
    {"stages", "workspace", "__main__"},
)
ROOMS: tuple[components.Room, ...] = ("attacks", "datasets", "defences", "models")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package is called as it is imported."""
    found = {}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def level(module: str) -> int:
    parts = module.split(".")
    if len(parts) == 1:  # the package itself holds nothing
        return 0
    found = [number for number, names in enumerate(LEVELS) if parts[1] in names]
    assert found, f"{module} is on no level: put {parts[1]!r} into LEVELS in {Path(__file__).name}"
    return found[0]


def third_party(path: Path) -> set[str]:
    """Top-level names of what a file imports anywhere in it, apart from this project and the standard library."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - {"pipeline"} - set(sys.stdlib_module_names)


def is_component(module: str) -> bool:
    room, _, kind = module.removeprefix("pipeline.").partition(".")
    return room in ROOMS and kind in components.kinds(room)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    upward = [name for name in provenance.imports(MODULES[module]) if level(name) > level(module)]
    assert not upward, f"{module} is below {upward}"


def test_no_circle() -> None:
    graph = {name: set(provenance.imports(path)) - {name, "pipeline"} for name, path in MODULES.items()}
    order = tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_no_relative_imports(module: str) -> None:
    """The closure that keys a stored row is read from absolute imports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("module", MODULES)
def test_components_are_found_by_name_and_never_imported(module: str) -> None:
    named = [name for name in provenance.imports(MODULES[module]) if is_component(name)]
    assert not named, f"{module} imports the components {named}: adding or removing one must touch no other file"


@pytest.mark.parametrize("room", [room for room in ROOMS if room in LEVELS[1]])
def test_rooms_have_no_doors_between_them(room: str) -> None:
    for module in (name for name in MODULES if name.startswith(f"pipeline.{room}.")):
        others = [
            name for name in provenance.imports(MODULES[module]) if level(name) == 1 and name.split(".")[1] != room
        ]
        assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("kind", components.kinds("attacks"))
def test_an_attack_knows_no_framework(kind: str) -> None:
    """Neither itself nor what it imports: attacks are usable wherever torch is."""
    known = set().union(*(third_party(path) for path in provenance.closure([f"pipeline.attacks.{kind}"])))
    assert known <= {"torch"}


def test_only_tracking_and_its_registry_import_mlflow() -> None:
    importers = {name for name, path in MODULES.items() if "mlflow" in third_party(path)}
    assert {".".join(name.split(".")[:2]) for name in importers} <= {"pipeline.registry", "pipeline.tracking"}


def test_nothing_depends_on_tests_or_benchmarks() -> None:
    assert not [name for name, path in MODULES.items() if {"tests", "benchmarks", "pytest"} & third_party(path)]


def test_the_check_sees_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "deform.py"
    file.write_text("def late():\n    from pipeline.evaluate import judge\n    return judge\n", encoding="utf-8")
    assert [name for name in provenance.imports(file) if level(name) > level("pipeline.deform")] == [
        "pipeline.evaluate"
    ]
