"""What is remembered is computed once."""

from __future__ import annotations

from pathlib import Path

from pipeline.folders import examples_prefix
from pipeline.store import remembered


def test_what_is_remembered_is_computed_once_for_each_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, list[int]]:
        calls.append(len(calls))
        return {"calls": calls}

    first = remembered("kind", "one", compute, store=tmp_path)
    assert remembered("kind", "one", compute, store=tmp_path) == first == {"calls": [0]}
    assert remembered("kind", "other", compute, store=tmp_path) == {"calls": [0, 1]}
    assert remembered("other", "one", lambda: None, store=tmp_path) is None


def test_kept_images_are_named_by_seed_and_strength() -> None:
    assert examples_prefix(3, 0.1) == "seed3/eps0.1"
    assert examples_prefix(3, None) == "seed3/epsminimal"
