"""The worst case against minima taken by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.statistics import curve, outcomes
from pipeline.worst_case import Evidence, Threat, gather
from tests.analytic.test_statistics import budget_rows, minimal_rows

LINF, FIELDS, UNFOLDED = Threat("linf"), Threat("deformation"), Threat("deformation", fold_free=True)


def found(threat: Threat, attacks: dict[str, tuple[pd.DataFrame, list[float]]], *transferred: pd.DataFrame) -> Evidence:
    evidence = gather(threat, attacks, transferred)
    assert evidence is not None
    return evidence


def transferred(sizes: list[list[list[float]]]) -> pd.DataFrame:
    """Rows of images from elsewhere; ``sizes`` is (seeds, images, sources), inf where the image fools nobody."""
    rows = [
        {"seed": seed, "index": index, "source_seed": source, "epsilon": 0.1 if math.isinf(size) else size}
        | {"success": math.isfinite(size)}
        for seed, of_seed in enumerate(sizes)
        for index, of_image in enumerate(of_seed)
        for source, size in enumerate(of_image)
    ]
    rest: dict[str, Any] = {
        "norm": "linf",
        "clean_correct": True,
        "status": "ok",
        "size_linf": 1.0,
        "folded_share": math.nan,
    }
    return pd.DataFrame(rows).assign(**rest)


def test_the_smallest_of_all_attacks_counts_image_by_image() -> None:
    """Strengths .1 and .2 of one attack, .15 and .3 of another; neither alone is the worst case."""
    one = budget_rows([[[1, 1], [0, 1], [0, 0], [0, 0]]], [0.1, 0.2])
    other = budget_rows([[[0, 0], [1, 1], [0, 1], [0, 0]]], [0.15, 0.3])
    worst = found(LINF, {"one": (one, [0.1, 0.2]), "other": (other, [0.15, 0.3])}).worst
    assert worst.sizes.tolist() == [[0.1, 0.15, 0.3, math.inf]]
    points = curve(worst)
    assert list(points["epsilon"]) == [0, 0.1, 0.15, 0.2, 0.3]
    assert list(points["robust_accuracy"]) == [1, 0.75, 0.5, 0.5, 0.25]


def test_it_is_never_above_any_of_its_attacks() -> None:
    rng = np.random.default_rng(0)
    strengths = [1.0, 2.0, 3.0, 4.0]
    fallen = {f"a{k}": (rng.random((3, 20, 4)) < 0.2).tolist() for k in range(3)}
    attacks = {name: (budget_rows(of_attack, strengths), strengths) for name, of_attack in fallen.items()}
    worst = found(LINF, attacks).worst
    for rows, epsilons in attacks.values():
        assert (worst.robust <= outcomes(rows, epsilons).robust).all()


def test_images_that_one_attack_was_spared_do_not_count() -> None:
    """Or the curve would be half that of a weaker set of attacks."""
    few, many = budget_rows([[[0]] * 2], [0.1]), budget_rows([[[1]] * 5], [0.1])
    evidence = found(LINF, {"few": (few, [0.1]), "many": (many, [0.1])})
    assert evidence.worst.sizes.shape == (1, 2)


def test_wrong_clean_predictions_are_not_robust_and_not_fooled() -> None:
    rows = budget_rows([[[0], [0]]], [0.1])
    rows["clean_correct"] = rows["index"] == 0
    worst = found(LINF, {"a": (rows, [0.1])}).worst
    assert np.isnan(worst.sizes[0, 1])
    assert worst.robust[0].tolist() == [[1, 1], [0, 0]]


def test_the_fold_free_threat_forgets_what_folded() -> None:
    """All fields include the fold-free ones; a size that needed a fold is none without."""
    folding = minimal_rows([[0.5, 0.7]], norm="deformation").assign(folded_share=[0.1, 0.0])
    smooth = minimal_rows([[1.0, 2.0]], norm="deformation").assign(folded_share=0.0)
    attacks = {"adef": (folding, [1.0, 3.0]), "unfolded": (smooth, [1.0, 3.0])}
    assert found(FIELDS, attacks).worst.sizes.tolist() == [[0.5, 0.7]]
    assert found(UNFOLDED, attacks).worst.sizes.tolist() == [[1.0, 0.7]]


def test_evidence_is_sorted_by_what_the_attacker_saw() -> None:
    white = budget_rows([[[0], [1]]], [0.1])
    black = budget_rows([[[1], [0]]], [0.1]).assign(n_backwards=0)
    evidence = found(
        LINF, {"white": (white, [0.1]), "black": (black, [0.1])}, transferred([[[math.inf, 0.05], [0.2, math.inf]]])
    )
    assert {access: sizes.tolist() for access, sizes in evidence.sizes.items()} == {
        "white box": [[math.inf, 0.1]],
        "black box": [[0.1, math.inf]],
        "transfer": [[0.05, 0.2]],
    }
    assert evidence.worst.sizes.tolist() == [[0.05, 0.1]]


def test_a_failed_transfer_is_no_success() -> None:
    rows = transferred([[[0.1]]]).assign(status="non_finite")
    evidence = found(LINF, {"white": (budget_rows([[[0]]], [0.1]), [0.1])}, rows)
    assert evidence.sizes["transfer"].tolist() == [[math.inf]]


@pytest.mark.parametrize("threat", [LINF, UNFOLDED])
def test_a_threat_without_attacks_has_no_evidence(threat: Threat) -> None:
    assert gather(threat, {"a": (budget_rows([[[0]]], [1.0], norm="l2"), [1.0])}) is None
