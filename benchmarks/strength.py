"""``python -m benchmarks.strength``: how strong the attacks are against their peers, on the checkpoints of a run.

Success is judged here and not by the attacks: predictions are computed anew, and the sizes and folds of deformations
from the field, which has to make the image that came with it. A failure has infinite size.
"""

from __future__ import annotations

import argparse
import warnings
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from foolbox.attacks import L2FMNAttack, LInfFMNAttack, LinfPGD
from torch import Tensor, nn

from benchmarks.peers import PGD_STEP, SCIPY_ITERATIONS, SCIPY_TOLERANCE, foolbox_peer, scipy_peer
from benchmarks.targets import Target
from pipeline import components
from pipeline.attacks import fmn
from pipeline.attacks.base import AttackOutput, ExampleRng
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.errors import UserError
from pipeline.folders import CHECKPOINTS, DATA
from pipeline.judge_field import examine
from pipeline.nets import load_target
from pipeline.settings import AttackEntry, Component
from pipeline.stages.common import run

IMAGES, SCIPY_IMAGES = 100, 60
FMN_STEPS = 50
WITHIN = 3.0  # pixels
SLACK = 1e-6  # relative and absolute: float32 rounding of inputs + perturbation

SMALLER_DEFORMATION = Target("≤", 0.7)  # mean size in units of ADef's
RARELY_LARGER = Target("≤", 0.02)  # share of the images
WITHIN_PIXELS = {False: Target("≥", 0.99), True: Target("≥", 0.97)}  # by fold_free
NO_LARGER_THAN_SCIPY = Target("≤", 1.02)  # mean size in units of SciPy's
NO_LARGER_THAN_FOOLBOX = Target("≤", 1.0)  # median size in units of Foolbox's


@dataclass(frozen=True)
class Victim:
    """A trained net and the first test images (B, C, H, W) that it gets right, with their indices."""

    name: str
    net: nn.Module
    indices: tuple[int, ...]
    inputs: Tensor
    labels: Tensor

    def first(self, n: int) -> Victim:
        return replace(self, indices=self.indices[:n], inputs=self.inputs[:n], labels=self.labels[:n])


@dataclass(frozen=True)
class Comparison:
    """Sizes against a peer's, image by image, where both fooled the model; NaN if that is nowhere.

    Attributes:
        both: number of images that both fooled.
        ours, theirs: mean sizes.
        share_larger: of the images on which ours is larger.
    """

    both: int
    ours: float
    theirs: float
    share_larger: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def compare(ours: Tensor, theirs: Tensor) -> Comparison:
    """Two attacks by their sizes (B,), which are infinite where an attack failed."""
    both = ours.isfinite() & theirs.isfinite()
    ours, theirs = ours[both].double(), theirs[both].double()
    return Comparison(int(both.sum()), float(ours.mean()), float(theirs.mean()), float((ours > theirs).double().mean()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strength", description="Strength against peers.")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the checkpoints (default: 0)")
    seed: int = parser.parse_args().seed
    warnings.filterwarnings("ignore")
    params = load_params()
    victims = load_victims(params, seed)
    print(
        f"seed {seed}, {len(victims[0].labels)} images each that the model gets right; means over images that both fool"
    )
    for fold_free in (False, True):
        _deformations(params, victims, fold_free=fold_free)
    _against_scipy(params, [victim.first(SCIPY_IMAGES) for victim in victims])
    _against_fmn(victims, "l2")
    _against_fmn(victims, "linf")
    _against_pgd(params, victims)


def load_victims(params: Params, seed: int) -> list[Victim]:
    """Every architecture of params.yaml.

    Raises:
        UserError: a checkpoint of this seed is missing.
    """
    for name in params.models:
        path = CHECKPOINTS / name / f"seed-{seed}.safetensors"
        if not path.is_file():
            raise UserError(f"{path}: missing; run `make repro` first")
    split, n_classes = read_split(DATA, "test"), read_card(DATA)["n_classes"]
    return [_victim(model, seed, split, n_classes) for model in params.models.values()]


def _victim(model: Component, seed: int, split: Split, n_classes: int) -> Victim:
    net = load_target(model, model.name, seed, split, n_classes).net.requires_grad_(False)
    right = (net(split.inputs).argmax(1) == split.labels).nonzero().flatten()[:IMAGES]
    return Victim(model.name, net, tuple(right.tolist()), split.inputs[right], split.labels[right])


def _deformations(params: Params, victims: list[Victim], *, fold_free: bool) -> None:
    """ADef against the smallest deformation."""
    adef, smallest = _entry(params, "adef"), _entry(params, "deform_min")
    smallest = replace(smallest, config=replace(smallest.config, fold_free=fold_free))
    _heading(
        f"ADef against deform_min, {'fold-free' if fold_free else 'all fields'}; sizes in pixels",
        *(
            "ADef within 3 px",
            "deform_min within 3 px",
            "both fool",
            "ADef",
            "deform_min",
            "ratio",
            "ratio where ADef is within 3 px",
            "deform_min larger",
        ),
    )
    for victim in victims:
        theirs = deformation_sizes(victim, _attack(adef, victim), fold_free=False)
        ours = deformation_sizes(victim, _attack(smallest, victim), fold_free=fold_free)
        result = compare(ours, theirs)
        # The mean of ADef's sizes is that of a few fields which grew beyond all deformations.
        near = compare(ours, theirs.where(theirs <= WITHIN, torch.inf))
        _row(
            victim.name,
            f"{_share(theirs <= WITHIN):.2f}",
            WITHIN_PIXELS[fold_free].verdict(_share(ours <= WITHIN)),
            f"{result.both}",
            f"{result.theirs:.3f}",
            f"{result.ours:.3f}",
            SMALLER_DEFORMATION.verdict(result.ratio),
            SMALLER_DEFORMATION.verdict(near.ratio),
            RARELY_LARGER.verdict(result.share_larger),
        )


def _against_scipy(params: Params, victims: list[Victim]) -> None:
    """L-BFGS in float32 as it is run, SciPy in float64; each is judged in the precision in which it ran."""
    entry = _entry(params, "lbfgs")
    peer = scipy_peer(entry.config, iterations=SCIPY_ITERATIONS, tolerance=SCIPY_TOLERANCE)
    _heading(
        f"lbfgs against SciPy's L-BFGS-B; ℓ2, {SCIPY_IMAGES} images",
        *("SciPy fools", "lbfgs fools", "both fool", "SciPy", "lbfgs", "ratio"),
    )
    for victim in victims:
        precise = replace(victim, net=deepcopy(victim.net).double(), inputs=victim.inputs.double())
        theirs = sizes(precise, peer(precise.net, precise.inputs, precise.labels), "l2")
        ours = sizes(victim, _attack(entry, victim).adv_inputs, "l2")
        result = compare(ours, theirs)
        _row(
            victim.name,
            f"{_share(theirs.isfinite()):.2f}",
            f"{_share(ours.isfinite()):.2f}",
            f"{result.both}",
            f"{result.theirs:.3f}",
            f"{result.ours:.3f}",
            NO_LARGER_THAN_SCIPY.verdict(result.ratio),
        )


def _against_fmn(victims: list[Victim], norm: Literal["l2", "linf"]) -> None:
    """FMN against Foolbox's; a median over all images counts failures as infinite."""
    config = fmn.Config(norm=norm, steps=FMN_STEPS, step_size=1.0, gamma=0.3, loss="both")
    peer = foolbox_peer({"l2": L2FMNAttack, "linf": LInfFMNAttack}[norm](steps=FMN_STEPS), None)
    _heading(
        f"fmn against Foolbox's; {norm}, {FMN_STEPS} gradients each",
        *("Foolbox fools", "fmn fools", "Foolbox, median", "fmn, median", "ratio"),
    )
    for victim in victims:
        theirs = sizes(victim, peer(victim.net, victim.inputs, victim.labels), norm)
        ours = sizes(victim, _run("fmn", config, None, victim).adv_inputs, norm)
        _row(
            victim.name,
            f"{_share(theirs.isfinite()):.2f}",
            f"{_share(ours.isfinite()):.2f}",
            f"{theirs.median():.3f}",
            f"{ours.median():.3f}",
            NO_LARGER_THAN_FOOLBOX.verdict(float(ours.median() / theirs.median())),
        )


def _against_pgd(params: Params, victims: list[Victim]) -> None:
    """PGD against Foolbox's at every strength."""
    entry = _entry(params, "pgd")
    attack = LinfPGD(rel_stepsize=PGD_STEP, steps=entry.config.steps)
    _heading(
        f"robust accuracy under pgd / Foolbox's PGD; linf, {entry.config.steps} steps each (target: pgd's no higher)",
        *(f"{epsilon:g}" for epsilon in entry.epsilons),
        "target",
    )
    for victim in victims:
        cells, met = [], True
        for epsilon in entry.epsilons:
            torch.manual_seed(0)  # Foolbox starts at random
            peer = foolbox_peer(attack, epsilon)
            theirs = sizes(victim, peer(victim.net, victim.inputs, victim.labels), "linf")
            ours = sizes(victim, _run(entry.kind, entry.config, epsilon, victim).adv_inputs, "linf")
            robust, peer_robust = (_share(found > epsilon * (1 + SLACK) + SLACK) for found in (ours, theirs))
            cells.append(f"{robust:.2f} / {peer_robust:.2f}")
            met &= robust <= peer_robust
        _row(victim.name, *cells, "met" if met else "MISSED")


def sizes(victim: Victim, adv_inputs: Tensor, norm: Literal["l2", "linf"]) -> Tensor:
    """(B,), infinite where the model is not fooled. What rounding left outside the box is clipped first."""
    adv_inputs = adv_inputs.clamp(0, 1)
    order = 2 if norm == "l2" else torch.inf
    found: Tensor = torch.linalg.vector_norm((adv_inputs - victim.inputs).flatten(1), ord=order, dim=1)
    return found.where(_fooled(victim, adv_inputs), torch.inf)


def deformation_sizes(victim: Victim, output: AttackOutput, *, fold_free: bool) -> Tensor:
    """(B,) pixels; infinite where nothing is fooled, the field does not make the image, or folds and must not."""
    assert output.deformation is not None, "a deformation attack returns its field"
    field = examine(victim.inputs, output.adv_inputs, output.deformation)
    valid = _fooled(victim, output.adv_inputs) & field["honest"]
    if fold_free:
        valid &= field["folded_share"] == 0
    return field["size_deformation"].where(valid, torch.inf)


@torch.no_grad()
def _fooled(victim: Victim, adv_inputs: Tensor) -> Tensor:
    logits: Tensor = victim.net(adv_inputs)
    return (logits.argmax(1) != victim.labels) & logits.isfinite().all(1)


def _entry(params: Params, kind: str) -> AttackEntry:
    """The first attack of this kind in params.yaml.

    Raises:
        UserError: there is none.
    """
    for entry in params.attacks.values():
        if entry.kind == kind:
            return entry
    raise UserError(f"params.yaml: attacks has no entry of kind {kind!r}, which is to be compared with its peer")


def _attack(entry: AttackEntry, victim: Victim) -> AttackOutput:
    """A minimal attack as configured."""
    return _run(entry.kind, entry.config, None, victim)


def _run(kind: str, config: object, epsilon: float | None, victim: Victim) -> AttackOutput:
    rng = ExampleRng.for_examples(victim.indices, seed=0, dataset="strength", attack=kind)
    attack = components.load("attacks", kind).attack
    output: AttackOutput = attack(
        victim.net, victim.inputs, victim.labels, targets=None, epsilon=epsilon, config=config, rng=rng
    )
    return output


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _heading(title: str, *columns: str) -> None:
    print(f"\n### {title}\n")
    _row("model", *columns)
    print("| --- |" + " ---: |" * len(columns))


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run(main)
