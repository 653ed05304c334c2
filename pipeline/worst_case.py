"""The worst case: for each image the smallest perturbation that any attack of a threat model found.

An attack that fails proves nothing; a curve is only as high as the strongest of all attacks on each image leaves it
(Carlini et al. 2019). All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.statistics import Array, Outcomes, is_failed, outcomes

Access = Literal["white box", "black box", "transfer"]  # what the attacker saw of the model: gradients, logits, nothing


@dataclass(frozen=True)
class Threat:
    """What an attacker may do: change pixels within a norm, or move them, with or without folds.

    Attributes:
        norm: ``linf``, ``l2`` or ``deformation``.
        fold_free: only fields with det(I + ∇τ) > 0 everywhere. They are fields, too: what falls to them has fallen to
            "all fields".
    """

    norm: str
    fold_free: bool = False

    @property
    def name(self) -> str:
        return f"{self.norm}_fold_free" if self.fold_free else self.norm


THREATS = (Threat("linf"), Threat("l2"), Threat("deformation"), Threat("deformation", fold_free=True))


@dataclass(frozen=True)
class Evidence:
    """All that is known of one model under one threat.

    Attributes:
        norm: of the strengths.
        epsilons: strengths at which any of the attacks is read off, ascending.
        sizes: who attacked to (S, I): the smallest strength or size that fooled each seed's image; inf if none did, NaN
            if its clean prediction is wrong.
        attacks: names of the attacks.
    """

    norm: str
    epsilons: tuple[float, ...]
    sizes: Mapping[Access, Array]
    attacks: tuple[str, ...]

    @cached_property
    def worst(self) -> Outcomes:
        """Outcomes of the strongest attack on each image."""
        sizes = np.minimum.reduce(list(self.sizes.values()))
        strengths = np.array([0.0, *self.epsilons])
        robust = ~np.isnan(sizes)[..., None] & ~(sizes[..., None] <= strengths)
        return Outcomes(epsilons=strengths, robust=robust.astype(np.float64), sizes=sizes)


def gather(
    threat: Threat,
    attacks: Mapping[str, tuple[pd.DataFrame, Sequence[float]]],
    transferred: Iterable[pd.DataFrame] = (),
) -> Evidence | None:
    """What the attacks of a threat found on the images that all of them attacked; None if no attack is of that threat.

    Args:
        attacks: name to rows of one model, all seeds, and the strengths they are read off at.
        transferred: rows of one model whose images were made on others.
    """
    chosen = {name: it for name, it in attacks.items() if it[0]["norm"].iloc[0] == threat.norm}
    if not chosen:
        return None
    found: dict[Access, list[Array]] = {}
    for rows, epsilons in chosen.values():
        access: Access = "white box" if rows["n_backwards"].sum() > 0 else "black box"
        found.setdefault(access, []).append(outcomes(_counted(rows, threat), epsilons).sizes)
    for rows in transferred:
        if len(rows) and rows["norm"].iloc[0] == threat.norm:
            found.setdefault("transfer", []).append(_transferred_sizes(_counted(rows, threat)))
    n_images = min(sizes.shape[1] for group in found.values() for sizes in group)
    return Evidence(
        norm=threat.norm,
        epsilons=tuple(sorted({epsilon for _, epsilons in chosen.values() for epsilon in epsilons})),
        sizes={access: np.minimum.reduce([sizes[:, :n_images] for sizes in group]) for access, group in found.items()},
        attacks=tuple(chosen),
    )


def _counted(rows: pd.DataFrame, threat: Threat) -> pd.DataFrame:
    """The rows with folding fields counted as failures where they are not allowed."""
    return rows.assign(success=rows["success"] & (rows["folded_share"] == 0)) if threat.fold_free else rows


def _transferred_sizes(rows: pd.DataFrame) -> Array:
    """(S, I): the smallest strength (minimal attacks: size) of an image from elsewhere that fooled the model."""
    strength = rows["epsilon"].fillna(rows[f"size_{rows['norm'].iloc[0]}"])
    sizes = strength.where(rows["success"] & ~is_failed(rows), np.inf).where(rows["clean_correct"])
    smallest = sizes.groupby([rows["seed"], rows["index"]]).min()  # NaN only where all of them are
    grid: Array = smallest.unstack("index").to_numpy(np.float64)
    return grid
