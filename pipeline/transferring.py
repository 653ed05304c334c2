"""Adversarial images of one model tried on others (Papernot et al. 2016): forwards only, judged as if made there.

What falls to a stranger's images and withstood its own attack shows that the attack was weak, not that the model is
robust: a masked gradient hides nothing from an image that was found elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.attacks.base import AttackOutput, Status
from pipeline.cells import make_cell
from pipeline.datasets.base import Split
from pipeline.errors import UserError
from pipeline.evaluate import Cell, Examples, evaluate_transferred, predict
from pipeline.examples import first_examples
from pipeline.files import sha256
from pipeline.folders import examples_prefix
from pipeline.nets import Target
from pipeline.ode import SolverConfig
from pipeline.row_store import read_rows, write_rows
from pipeline.settings import AttackEntry, Component, EvaluateConfig
from pipeline.store import STORE

BATCH = 250  # images of a forward pass


@dataclass(frozen=True)
class Source:
    """The stored images of one attack on one trained model, at the strengths at which they were made.

    Attributes:
        indices: of the test examples, ascending within a strength.
        epsilons: one an image; None of a minimal attack.
        adv_inputs: (N, C, H, W).
        deformation: (N, H, W, 2) or None.
        sha256: of the file that they come from.
    """

    model: str
    seed: int
    indices: tuple[int, ...]
    epsilons: tuple[float | None, ...]
    adv_inputs: Tensor
    deformation: Tensor | None
    sha256: str


def read_sources(path: Path, model: str, attack: AttackEntry, seeds: tuple[int, ...]) -> dict[int, Source]:
    """Seed to its images, from ``<attack>.examples.safetensors``; strengths that params no longer names are left out.

    Raises:
        UserError: the file is missing or damaged, or lacks a seed.
    """
    try:
        tensors, content = load_file(path), sha256(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); run `dvc repro --force attack@{model}`") from error
    return {seed: _source(tensors, content, path, model, attack, seed) for seed in seeds}


def _source(
    tensors: Mapping[str, Tensor], content: str, path: Path, model: str, attack: AttackEntry, seed: int
) -> Source:
    strengths: list[float | None] = [None, *attack.epsilons]
    names = {epsilon: examples_prefix(seed, epsilon) for epsilon in strengths}
    found = {epsilon: name for epsilon, name in names.items() if f"{name}/index" in tensors}
    if not found:
        raise UserError(f"{path}: no images of seed {seed}; run `dvc repro --force attack@{model}`")
    indices = {epsilon: tensors[f"{name}/index"].tolist() for epsilon, name in found.items()}
    fields = [tensors[f"{name}/deformation"] for name in found.values() if f"{name}/deformation" in tensors]
    return Source(
        model=model,
        seed=seed,
        indices=tuple(index for of_strength in indices.values() for index in of_strength),
        epsilons=tuple(epsilon for epsilon, of_strength in indices.items() for _ in of_strength),
        adv_inputs=torch.cat([tensors[f"{name}/adv_inputs"] for name in found.values()]),
        deformation=torch.cat(fields) if fields else None,
        sha256=content,
    )


def resolved(model: Component, solvers: Mapping[str, SolverConfig]) -> Iterator[Component]:
    """The model under each of the solvers, called ``<model>@<solver>``; nothing if it has none of its own."""
    if hasattr(model.config, "solver"):
        for name, solver in solvers.items():
            yield replace(model, name=f"{model.name}@{name}", config=replace(model.config, solver=solver))


def transferred(
    target: Target,
    source: Source,
    attack: AttackEntry,
    judge: EvaluateConfig,
    split: Split,
    *,
    dataset: str,
    card: Mapping[str, Any],
) -> pd.DataFrame:
    """Rows of the source's images on the target, one an image at the strength it was made at; from the store if there.

    An image within one strength is within every larger: what falls at a strength has fallen at all above it.
    """
    made = (source.model, source.seed, source.sha256, source.epsilons)
    cell = make_cell(target, attack, judge, dataset=dataset, card=card, maker=__name__, source=made)
    path = STORE / "transfer" / f"{cell.config_hash}.parquet"
    stored = read_rows(path)
    if stored is not None:
        return stored
    rows = pd.concat(list(_judged(target, source, cell, split)), ignore_index=True)
    write_rows(path, rows)
    return rows


def _judged(target: Target, source: Source, cell: Cell, split: Split) -> Iterator[pd.DataFrame]:
    device = next(target.net.parameters()).device
    clean = first_examples(split, max(source.indices) + 1)
    # An image is there at several strengths and predicted once.
    clean_logits = torch.cat([predict(target.net, part.to(device)) for part in _parts(clean)])
    for start in range(0, len(source.indices), BATCH):
        some = slice(start, start + BATCH)
        examples = clean.subset(source.indices[some]).to(device)
        none = torch.zeros_like(examples.labels)
        field = None if source.deformation is None else source.deformation[some].to(device)
        adv_inputs = source.adv_inputs[some].to(device)
        output = AttackOutput(adv_inputs, field, none, none, torch.full_like(none, int(Status.OK)))
        yield evaluate_transferred(
            target.net,
            examples,
            output,
            cell,
            epsilons=source.epsilons[some],
            source=(source.model, source.seed),
            clean_logits=clean_logits[list(source.indices[some])],
        )


def _parts(examples: Examples) -> Iterator[Examples]:
    for start in range(0, len(examples), BATCH):
        yield examples.subset(range(start, min(start + BATCH, len(examples))))
