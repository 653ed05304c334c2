"""Everything the report is made of, enumerated from params.yaml (files of removed entries are never looked at)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline import components, statistics
from pipeline.config import Params
from pipeline.datasets.base import read_card, read_split
from pipeline.errors import UserError
from pipeline.folders import CHECKPOINTS, DATA, PROBES, REFINEMENT, RESULTS, THEORY, TRAJECTORIES, TRANSFER
from pipeline.masking import Alarm, alarms, leaks
from pipeline.probe import Probe
from pipeline.refinement import Refinement
from pipeline.schema import validate
from pipeline.settings import AttackEntry
from pipeline.statistics import Estimate, Outcomes
from pipeline.theory import claims
from pipeline.theory.claims import Theory
from pipeline.trajectory import Trajectory, from_json
from pipeline.worst_case import THREATS, Evidence, gather

Images = dict[str, npt.NDArray[Any]]


class ReportError(UserError):
    """One line for the user: the file that is missing or does not fit, and what to run."""


@dataclass(frozen=True)
class Result:
    """One attack on all seeds of one architecture: its rows, and the images kept beside them."""

    model: str
    attack: AttackEntry
    rows: pd.DataFrame
    outcomes: Outcomes
    images: Images

    @cached_property
    def curve(self) -> pd.DataFrame:
        return statistics.curve(self.outcomes)

    @cached_property
    def area(self) -> Estimate:
        return statistics.area(self.outcomes)

    @cached_property
    def median_size(self) -> Estimate:
        return statistics.median_size(self.outcomes)

    @property
    def minimal(self) -> bool:
        """Whether the attack sought the smallest perturbation, so that sizes are not those of a grid."""
        return is_minimal(self.attack)


@dataclass(frozen=True)
class Benchmark:
    """All inputs.

    Attributes:
        training: model to the training report of each seed; variants have none.
        refinements: tied model to its refinements for each seed (``pipeline.refinement``).
        transfers: attack to the rows of its images on other models.
        probes: model or variant to its probe for each seed (``pipeline.probe``).
        leak: the alarm on the splits.
        trajectories: model with steps between stem and head to each seed's (``pipeline.trajectory``).
        theory: the toys (``pipeline.theory``).
        results: model or variant to attack to its result.
        images: (N, C, H, W), the test images that adversarial examples are kept of, in [0, 1].
        card: the data card.
    """

    params: Params
    training: dict[str, list[dict[str, Any]]]
    refinements: dict[str, list[list[Refinement]]]
    transfers: dict[str, pd.DataFrame]
    probes: dict[str, list[Probe]]
    leak: Alarm
    trajectories: dict[str, list[Trajectory]]
    theory: Theory
    results: dict[str, dict[str, Result]]
    images: npt.NDArray[np.float32]
    card: dict[str, Any]

    def of_attack(self, attack: str) -> list[Result]:
        """The results of one attack on all architectures."""
        return [results[attack] for results in self.results.values()]

    @cached_property
    def evidence(self) -> dict[str, dict[str, Evidence]]:
        """Threat to model to everything found under it; threats that no attack seeks are left out."""
        found: dict[str, dict[str, Evidence]] = {}
        unfolded = any(getattr(attack.config, "fold_free", False) for attack in self.params.attacks.values())
        for threat in (threat for threat in THREATS if unfolded or not threat.fold_free):
            for model, results in self.results.items():
                attacks = {name: (result.rows, result.attack.epsilons) for name, result in results.items()}
                transferred = [rows[rows["model"] == model] for rows in self.transfers.values()]
                gathered = gather(threat, attacks, transferred)
                if gathered:
                    found.setdefault(threat.name, {})[model] = gathered
        return found

    @cached_property
    def alarms(self) -> list[Alarm]:
        """All alarms, raised or not, model by model; the one on the splits last."""
        by_model = [
            alarms(model, probes, {threat: found[model] for threat, found in self.evidence.items() if model in found})
            for model, probes in self.probes.items()
        ]
        return [alarm for of_model in by_model for alarm in of_model] + [self.leak]

    def all(self) -> list[Result]:
        """All results, architecture by architecture."""
        return [result for results in self.results.values() for result in results.values()]


def is_minimal(attack: AttackEntry) -> bool:
    """Whether the attack seeks the smallest perturbation instead of spending a budget."""
    return bool(components.load("attacks", attack.kind).GOAL == "minimal")


def read_benchmark(params: Params, root: Path = Path()) -> Benchmark:
    """Read and check all inputs under ``root``.

    Raises:
        UserError: a file is missing, damaged, or not what params.yaml asks for.
    """
    test = read_split(root / DATA, "test")
    probed = _read_json(root / PROBES / "probes.json")
    trajectories = _read_json(root / TRAJECTORIES / "trajectories.json")
    return Benchmark(
        params=params,
        training={
            model: [_read_json(root / CHECKPOINTS / model / f"seed-{seed}.json") for seed in params.seeds]
            for model in params.models
        },
        refinements={
            model: [[Refinement(**one) for one in seed] for seed in seeds]
            for model, seeds in _read_json(root / REFINEMENT / "refinement.json").items()
            if model in params.models
        },
        transfers={
            name: _read_transfer(root / TRANSFER / f"{name}.parquet", params) for name in params.transfer.attacks
        },
        probes=_probes(probed["models"], params, root / PROBES / "probes.json"),
        leak=leaks(probed["leaked"], probed["tested"]),
        trajectories={
            model: [from_json(seed) for seed in trajectories[model]] for model in params.models if model in trajectories
        },
        theory=claims.from_json(
            {name: _read_json(root / THEORY / f"{name}.json") for name in ("annuli", "expansion", "ordering")}
        ),
        results={
            model: {
                attack.name: _read_result(params, model, attack, root / RESULTS / model, len(test.labels))
                for attack in params.attacks.values()
            }
            for model in params.attacked
        },
        images=test.inputs[: params.evaluate.n_examples].numpy(),
        card=read_card(root / DATA),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error
    return report


def _read_result(params: Params, model: str, attack: AttackEntry, folder: Path, n_test: int) -> Result:
    path = folder / f"{attack.name}.parquet"
    try:
        rows = validate(pd.read_parquet(path), source=str(path))
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _missing(path, error) from error
    try:
        rows = _wanted(rows, params, attack, min(attack.n_images, n_test))
        outcomes = statistics.outcomes(rows, attack.epsilons)
    except ValueError as error:
        raise ReportError(f"{path}: not what params.yaml asks for: {error}; run `dvc repro`") from error
    return Result(model, attack, rows, outcomes, _read_images(path.with_suffix(".examples.safetensors")))


def _read_transfer(path: Path, params: Params) -> pd.DataFrame:
    """Rows whose target, source and strength params.yaml still names."""
    try:
        rows = validate(pd.read_parquet(path), source=str(path))
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error
    epsilons, attacked = params.attacks[path.stem].epsilons, list(params.attacked)
    known = rows["model"].str.partition("@")[0].isin(attacked) & rows["source_model"].isin(attacked)
    known &= rows["seed"].isin(params.seeds) & rows["source_seed"].isin(params.seeds)
    return rows[known & (rows["epsilon"].isna() | rows["epsilon"].isin(epsilons))]


def _probes(raw: dict[str, dict[str, Any]], params: Params, path: Path) -> dict[str, list[Probe]]:
    try:
        return {name: [Probe(**raw[name][str(seed)]) for seed in params.seeds] for name in params.attacked}
    except (KeyError, TypeError) as error:
        raise ReportError(f"{path}: not what params.yaml asks for: {error}; run `dvc repro`") from error


def _wanted(rows: pd.DataFrame, params: Params, attack: AttackEntry, n_images: int) -> pd.DataFrame:
    """The rows of the seeds and images of params.yaml; all of them must be there."""
    rows = rows[rows["seed"].isin(params.seeds) & (rows["index"] < n_images)]
    missing = set(params.seeds) - set(rows["seed"])
    if missing:
        raise ValueError(f"no rows of seed {', '.join(map(str, sorted(missing)))}")
    if rows["index"].nunique() != n_images:
        raise ValueError(f"{rows['index'].nunique()} images, not {n_images}")
    if not is_minimal(attack):
        rows = rows[rows["epsilon"].isin(attack.epsilons)]
    return rows


def _read_images(path: Path) -> Images:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: Exception) -> ReportError:
    if isinstance(error, FileNotFoundError):
        return ReportError(f"{path}: missing; run `dvc repro`")
    return ReportError(f"{path}: not readable ({' '.join(str(error).split())[:200]}); run `dvc repro --force`")
