"""Climbing the strengths: what is attacked, what is inherited, what is stored, and what a kill or a bad disk leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pytest
import torch

import pipeline.row_store
from pipeline import schema
from pipeline.climbing import Chunks, climb
from pipeline.evaluate import Examples, Judged
from pipeline.files import atomic_directory, atomic_write, write_json
from pipeline.provenance import ROOT
from pipeline.row_store import RowStore, Unit
from pipeline.store import LockedError, locked

# The strength at which each example falls; example 10 is wrong from the start and never "falls".
FALLS = {10: float("inf"), 11: 0.1, 12: 0.2, 13: 0.25, 14: float("inf"), 15: 0.3}
INDICES = tuple(FALLS)


def examples(indices: Sequence[int] = INDICES) -> Examples:
    n = len(indices)
    inputs = torch.tensor(indices, dtype=torch.float32).div(100).view(n, 1, 1, 1).expand(n, 1, 2, 2).clone()
    return Examples(tuple(indices), inputs, torch.zeros(n, dtype=torch.int64), tuple(f"sha{i}" for i in indices))


class FakeAttack:
    """Judged rows from FALLS, and a record of every call: (strength, indices)."""

    def __init__(self, *, draws: int = 1, field: bool = False) -> None:
        self.draws, self.field = draws, field
        self.calls: list[tuple[float | None, tuple[int, ...]]] = []

    def __call__(self, epsilon: float | None, some: Examples) -> Judged:
        self.calls.append((epsilon, some.indices))
        rows = pd.concat([self._rows(epsilon, some, draw) for draw in range(self.draws)], ignore_index=True)
        field = torch.zeros(len(some), 2, 2, 2) if self.field else None
        return Judged(rows, some.inputs + (epsilon or 0), field)

    def _rows(self, epsilon: float | None, some: Examples, draw: int) -> pd.DataFrame:
        limit = float("inf") if epsilon is None else epsilon
        success = [FALLS[i] <= limit for i in some.indices]
        constant = {"dataset": "set", "split": "test", "label": 0, "target": None, "model": "net", "seed": 0}
        constant |= {"attack": "fake", "norm": "linf", "epsilon": epsilon, "draw": draw, "inherited": False}
        constant |= {"source_model": None, "source_seed": None, "clean_pred": 0, "clean_correct": True}
        sizes = ("size_l2", "size_linf", "size_deformation", "folded_share", "max_gradient")
        constant |= dict.fromkeys(sizes, float("nan")) | {"in_box": True, "clean_margin": 1.0}
        constant |= {"output_shift_l2": 1.0, "n_forwards": 3, "n_backwards": 2, "nfe": 0, "seconds": 0.5}
        constant |= {"status": "ok", "config_hash": "key"}
        varying = {"index": some.indices, "input_sha256": some.sha256, "success": success}
        varying |= {"adv_pred": [int(s) for s in success], "adv_margin": [1.0 - 2 * s for s in success]}
        return schema.validate(pd.DataFrame(constant | varying), source="fake")


def run(
    store: RowStore,
    epsilons: Sequence[float | None],
    *,
    climbs: bool = True,
    attack: FakeAttack | None = None,
    some: Examples | None = None,
) -> tuple[pd.DataFrame, list[tuple[float | None, tuple[int, ...]]]]:
    """Rows, and the calls that it took."""
    attack = attack or FakeAttack()
    rows = climb(0, some or examples(), store, epsilons=epsilons, climbs=climbs, attack=attack)
    return schema.validate(rows, source="climb"), attack.calls


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    return RowStore("key", store=tmp_path)


def fresh(tmp_path: Path, epsilons: Sequence[float | None], **keywords: Any) -> pd.DataFrame:
    return run(RowStore("fresh", store=tmp_path), epsilons, **keywords)[0]


def test_the_fallen_are_not_attacked_again(store: RowStore) -> None:
    rows, calls = run(store, [0.1, 0.2, 0.3])
    assert calls == [(0.1, INDICES), (0.2, (10, 12, 13, 14, 15)), (0.3, (10, 13, 14, 15))]
    assert len(rows) == 3 * len(INDICES)
    assert rows.groupby("epsilon")["success"].sum().tolist() == [1, 2, 4]
    assert set(rows.loc[rows["inherited"], "index"]) == {11, 12}


def test_an_inherited_row_is_the_row_of_the_fall_at_no_cost(store: RowStore) -> None:
    rows, _ = run(store, [0.1, 0.2, 0.3])
    inherited = rows[(rows["index"] == 11) & (rows["epsilon"] == 0.3)].iloc[0]
    assert inherited["inherited"]
    assert inherited["success"]
    assert (inherited["n_forwards"], inherited["n_backwards"], inherited["seconds"]) == (0, 0, 0)
    own = rows[(rows["index"] == 11) & (rows["epsilon"] == 0.1)].iloc[0]
    same = [name for name in schema.COLUMNS if name not in {"epsilon", "inherited", "n_forwards", "n_backwards"}]
    same = [name for name in same if name != "seconds"]
    pd.testing.assert_series_equal(inherited[same], own[same], check_names=False)


def test_every_image_is_attacked_at_every_strength_where_nothing_is_inherited(store: RowStore) -> None:
    rows, calls = run(store, [0.1, 0.2], climbs=False)
    assert calls == [(0.1, INDICES), (0.2, INDICES)]
    assert not rows["inherited"].any()


def test_a_minimal_attack_runs_once(store: RowStore) -> None:
    rows, calls = run(store, [None], climbs=False)
    assert calls == [(None, INDICES)]
    assert rows["epsilon"].isna().all()
    assert run(store, [None], climbs=False)[1] == []


def test_what_is_stored_is_not_attacked_again(store: RowStore) -> None:
    first, _ = run(store, [0.1, 0.2, 0.3])
    again, calls = run(store, [0.1, 0.2, 0.3])
    assert calls == []
    pd.testing.assert_frame_equal(again, first)


@pytest.mark.parametrize(
    ("before", "after", "attacked"),
    [
        ([0.1, 0.3], [0.1, 0.2, 0.3], [(0.2, (10, 12, 13, 14, 15))]),  # a strength between
        ([0.2, 0.3], [0.1, 0.2, 0.3], [(0.1, INDICES)]),  # one below
        ([0.1, 0.2], [0.1, 0.2, 0.3], [(0.3, (10, 13, 14, 15))]),  # one above
        ([0.1, 0.2, 0.3], [0.1, 0.3], [(0.3, (12,))]),  # the strength at which 12 fell is gone
        ([0.1, 0.2, 0.3], [0.3], [(0.3, (11, 12))]),
        ([0.1, 0.2, 0.3], [0.1, 0.2], []),
    ],
    ids=["between", "below", "above", "removed", "two removed", "last removed"],
)
def test_an_edited_curve_costs_only_what_is_new_and_equals_a_fresh_one(
    store: RowStore, tmp_path: Path, before: list[float], after: list[float], attacked: list[Any]
) -> None:
    run(store, before)
    rows, calls = run(store, after)
    assert calls == attacked
    pd.testing.assert_frame_equal(rows, fresh(tmp_path, after))
    assert run(store, after)[1] == []


def test_back_and_forth_ends_where_it_began(store: RowStore, tmp_path: Path) -> None:
    first, _ = run(store, [0.1, 0.2, 0.3])
    run(store, [0.3])
    run(store, [0.05, 0.3])
    again, calls = run(store, [0.1, 0.2, 0.3])
    assert calls == []
    pd.testing.assert_frame_equal(again, first)
    pd.testing.assert_frame_equal(again, fresh(tmp_path, [0.1, 0.2, 0.3]))


def test_more_images_in_the_last_chunk(store: RowStore, tmp_path: Path) -> None:
    run(store, [0.1, 0.3], some=examples(INDICES[:4]))
    rows, calls = run(store, [0.1, 0.3])
    assert calls == [(0.1, (14, 15)), (0.3, (14, 15))]
    pd.testing.assert_frame_equal(rows, fresh(tmp_path, [0.1, 0.3]))
    rows, calls = run(store, [0.1, 0.3], some=examples(INDICES[:4]))
    assert calls == []
    pd.testing.assert_frame_equal(rows, run(RowStore("few", store=tmp_path), [0.1, 0.3], some=examples(INDICES[:4]))[0])


def test_draws_stay_together(store: RowStore) -> None:
    attack = FakeAttack(draws=3)
    rows, _ = run(store, [0.1, 0.2], climbs=False, attack=attack)
    assert len(rows) == 2 * 3 * len(INDICES)
    assert not rows.duplicated(["index", "epsilon", "draw"]).any()
    again, calls = run(store, [0.1, 0.2], climbs=False, attack=FakeAttack(draws=3))
    assert calls == []
    pd.testing.assert_frame_equal(again, rows)


def test_a_killed_run_continues_where_it_was(store: RowStore, tmp_path: Path) -> None:
    class Killed(FakeAttack):
        def __call__(self, epsilon: float | None, some: Examples) -> Judged:
            if epsilon == 0.3:
                raise KeyboardInterrupt
            return super().__call__(epsilon, some)

    with pytest.raises(KeyboardInterrupt):
        run(store, [0.1, 0.2, 0.3], attack=Killed())
    rows, calls = run(store, [0.1, 0.2, 0.3])
    assert calls == [(0.3, (10, 13, 14, 15))]
    pd.testing.assert_frame_equal(rows, fresh(tmp_path, [0.1, 0.2, 0.3]))


# Chunks


def test_chunks_are_fixed_runs_of_examples() -> None:
    chunks = Chunks(examples(), 4)
    assert len(chunks) == 2
    assert [(chunk, part.indices) for chunk, part in map(chunks.__getitem__, range(2))] == [
        (0, INDICES[:4]),
        (1, INDICES[4:]),
    ]
    with pytest.raises(IndexError):
        chunks[2]


# The store


def damage(path: Path, how: str) -> None:
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-50])
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(b"no such format" * 100)
        case "flipped":
            content = bytearray(path.read_bytes())
            content[-200 if path.suffix == ".parquet" else -1] ^= 1  # both would still be readable
            path.write_bytes(content)
        case "missing":
            path.unlink()


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "missing", "flipped"])
def test_a_damaged_file_is_computed_again(store: RowStore, tmp_path: Path, suffix: str, how: str) -> None:
    run(store, [0.1, 0.2, 0.3])
    damage(store.folder / f"000000-0.2-0{suffix}", how)
    rows, calls = run(store, [0.1, 0.2, 0.3])
    assert calls == [(0.2, (10, 12, 13, 14, 15))]
    pd.testing.assert_frame_equal(rows, fresh(tmp_path, [0.1, 0.2, 0.3]))
    assert run(store, [0.1, 0.2, 0.3])[1] == []


def test_rows_of_an_older_schema_are_computed_again(store: RowStore) -> None:
    run(store, [0.1])
    path = store.folder / "000000-0.1-0.parquet"
    pd.read_parquet(path).drop(columns="nfe").to_parquet(path, index=False)
    assert run(store, [0.1])[1] == [(0.1, INDICES)]


def test_one_damaged_part_of_two(store: RowStore, tmp_path: Path) -> None:
    run(store, [0.1, 0.2, 0.3])
    run(store, [0.3])  # adds a second part at 0.3: examples 11 and 12
    damage(store.folder / "000000-0.3-1.parquet", "truncated")
    rows, calls = run(store, [0.3])
    assert calls == [(0.3, (11, 12))]
    pd.testing.assert_frame_equal(rows, fresh(tmp_path, [0.3]))


def test_images_and_fields_come_back_with_their_examples(store: RowStore) -> None:
    run(store, [0.3], climbs=False, attack=FakeAttack(field=True), some=examples((11, 14)))
    run(store, [0.3], climbs=False, attack=FakeAttack(field=True))
    unit = store.load(0, 0.3)
    assert unit is not None
    assert unit.images["index"].tolist() == [11, 14, 10, 12, 13, 15]
    expected = unit.images["index"].float().div(100).add(0.3).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    torch.testing.assert_close(unit.images["adv_inputs"], expected)
    assert unit.images["deformation"].shape == (6, 2, 2, 2)


def test_strengths_and_chunks_do_not_meet(store: RowStore) -> None:
    unit = Unit(FakeAttack()(0.1, examples()).rows, {"index": torch.tensor(INDICES)})
    store.add(0, 0.15, unit)
    assert store.load(0, 0.15) is not None
    for chunk, epsilon in ((0, 0.1), (0, 0.1500000000000001), (0, 1.0), (0, None), (1, 0.15), (10, 0.15)):
        assert store.load(chunk, epsilon) is None


def test_crashed_units_are_tried_again(store: RowStore) -> None:
    run(store, [0.1, 0.2])
    rows = FakeAttack()(0.3, examples()).rows.assign(status="crashed", success=False)
    store.add(0, 0.3, Unit(rows, {"index": torch.tensor(INDICES)}))
    store.forget_crashed()
    assert run(store, [0.1, 0.2, 0.3])[1] == [(0.3, (10, 13, 14, 15))]


@pytest.mark.parametrize("at", ["save_file", "to_parquet"])
def test_an_interrupted_write_is_invisible(store: RowStore, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def half(*arguments: Any, **_: Any) -> NoReturn:
        Path(arguments[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    owner = pipeline.row_store if at == "save_file" else pd.DataFrame
    with monkeypatch.context() as patch:
        patch.setattr(owner, at, half)
        with pytest.raises(KeyboardInterrupt):
            run(store, [0.1])
    assert store.load(0, 0.1) is None
    assert not [path for path in store.folder.iterdir() if path.name.endswith(".tmp")]
    assert run(store, [0.1])[1] == [(0.1, INDICES)]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The process is gone in the middle of the file: no clean-up ran."""
    (tmp_path / "rows").write_text("old", encoding="utf-8")
    code = (
        "import os; from pathlib import Path; from pipeline.files import atomic_write\n"
        "with atomic_write(Path('rows')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert (tmp_path / "rows").read_text(encoding="utf-8") == "old"


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".rows.{gone.pid}.tmp").write_text("half", encoding="utf-8")
    (tmp_path / f".folder.{gone.pid}.tmp").mkdir()
    (tmp_path / f".folder.{gone.pid}.tmp" / "file").touch()
    others = tmp_path / f".rows.{os.getppid()}.tmp"  # its writer is alive
    others.touch()
    with atomic_write(tmp_path / "rows") as temporary:
        temporary.touch()
    with atomic_directory(tmp_path / "folder"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "folder", others.name}


def test_a_failed_write_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), atomic_write(tmp_path / "rows") as temporary:
        temporary.write_text("half" * 10_000 + "\udc80", encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_cell_is_computed_by_one_run_at_a_time(tmp_path: Path) -> None:
    """Another process holds the lock; when it is killed, the lock is free."""
    code = (
        "import time; from pathlib import Path; from pipeline.store import locked\n"
        "with locked('cell', store=Path('.')):\n"
        "    print('locked', flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(LockedError, match=r"^cell: another run"), locked("cell", store=tmp_path):
                pass
        finally:
            other.kill()
    with locked("cell", store=tmp_path):
        pass
