"""What is remembered is computed once."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("old", "new"), [("12", "13"), ("12]", ""), ("[", "")], ids=["flipped", "truncated", "broken"])
@pytest.mark.parametrize("sealed", [True, False])
def test_what_a_bad_disk_changed_is_computed_again(tmp_path: Path, old: str, new: str, sealed: bool) -> None:
    remembered("kind", "one", lambda: [12], store=tmp_path)
    path = tmp_path / "kind" / "one.json"
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "").replace(" ", "").replace(old, new))
    if not sealed:  # a store of before there were seals
        path.with_suffix(".sha256").unlink()
    found = remembered("kind", "one", lambda: [14], store=tmp_path)
    assert found == ([13] if not sealed and new == "13" else [14])


def test_kept_images_are_named_by_seed_and_strength() -> None:
    assert examples_prefix(3, 0.1) == "seed3/eps0.1"
    assert examples_prefix(3, None) == "seed3/epsminimal"
