"""Who is judged under which attack, and the key of its rows: the hash of everything that determines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline import provenance
from pipeline.evaluate import FIELD_JUDGE, Cell
from pipeline.files import digest
from pipeline.nets import Target
from pipeline.settings import AttackEntry, EvaluateConfig


def make_cell(
    target: Target,
    attack: AttackEntry,
    judge: EvaluateConfig,
    *,
    dataset: str,
    card: Mapping[str, Any],
    maker: str = "pipeline.evaluate",
    source: tuple[Any, ...] = (),
) -> Cell:
    """The cell with its key.

    Args:
        maker: the module whose code makes the rows.
        source: where the images come from, if the attack was made elsewhere.
    """
    modules = [maker, f"pipeline.attacks.{attack.kind}", f"pipeline.models.{target.model.kind}"]
    modules += [FIELD_JUDGE] if attack.norm == "deformation" else []
    key = digest(
        {
            "weights": target.weights_sha256,
            "model": [target.model.name, target.model.kind, asdict(target.model.config), target.seed],
            "source": source,
            "data": [dataset, card["splits"]["test"]["sha256"]],
            "attack": [attack.name, attack.kind, asdict(attack.config)],
            "judge": [judge.seed, judge.chunk_size],
            "code": provenance.code_hash(modules),
            "environment": provenance.environment(),
        }
    )
    return Cell(
        dataset=dataset,
        split="test",
        model=target.model.name,
        seed=target.seed,
        attack=attack.name,
        kind=attack.kind,
        config=attack.config,
        base_seed=judge.seed,
        config_hash=key,
    )
