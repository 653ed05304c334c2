"""What is timed: the attacks of params.yaml and their peers.

Our PGD drops fooled images, Foolbox's does not. So PGD is timed twice: as configured, at a middle strength, where the
difference counts; and at a strength so small that nothing is fooled, where both make all steps on all images.

SciPy's L-BFGS-B is timed twice, too: converged, as ``tests/equivalence`` and ``benchmarks.strength`` use it, and with
the iterations and the tolerance of our own solves, where it makes about as many passes as we do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foolbox.attacks import L2DeepFoolAttack, L2FMNAttack, LinfFastGradientAttack, LinfPGD
from torch import Tensor, nn

from benchmarks.peers import PGD_STEP, SCIPY_ITERATIONS, SCIPY_TOLERANCE, Peer, foolbox_peer, scipy_peer
from pipeline import components
from pipeline.attacks import fmn
from pipeline.attacks.base import AttackOutput, ExampleRng
from pipeline.config import Params

HARMLESS = 1e-4  # a strength in ℓ∞ that fools nothing
ALL_STEPS = ", all steps"
FMN = fmn.Config(norm="l2", steps=20, step_size=1.0, gamma=0.3, loss="both")


@dataclass(frozen=True)
class Case:
    """An attack and how many images it is timed on."""

    name: str
    kind: str
    config: Any
    epsilon: float | None
    batch: int

    def run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> AttackOutput:
        rng = ExampleRng.for_examples(range(len(labels)), seed=0, dataset="benchmark", attack=self.name)
        attack = components.load("attacks", self.kind).attack
        output: AttackOutput = attack(
            model, inputs, labels, targets=None, epsilon=self.epsilon, config=self.config, rng=rng
        )
        return output


def all_cases(params: Params) -> list[Case]:
    """The attacks of params.yaml, PGD once more where nothing falls, and FMN."""
    cases = []
    for attack in params.attacks.values():
        if attack.kind == "gaussian":  # spends no pass: there is no floor
            continue
        minimal = components.load("attacks", attack.kind).GOAL == "minimal"
        epsilon = None if minimal else attack.epsilons[len(attack.epsilons) // 2]
        batch = 100 if minimal and attack.kind != "adef" else 200
        cases.append(Case(attack.name, attack.kind, attack.config, epsilon, batch))
        if attack.kind == "pgd":
            cases.append(Case(attack.name + ALL_STEPS, attack.kind, attack.config, HARMLESS, batch))
    return [*cases, Case("fmn", "fmn", FMN, None, 100)]


def peers_of(case: Case) -> dict[str, tuple[Peer, int]]:
    """Peers by name, with the number of images they are timed on: slow ones on a few."""
    if case.kind == "fgsm":
        return {"Foolbox": (foolbox_peer(LinfFastGradientAttack(random_start=False), case.epsilon), case.batch)}
    if case.kind == "pgd":
        attack = LinfPGD(rel_stepsize=PGD_STEP, steps=case.config.steps)
        return {"Foolbox": (foolbox_peer(attack, case.epsilon), case.batch)}
    if case.kind == "fmn":
        return {
            "Foolbox": (foolbox_peer(L2FMNAttack(steps=case.config.steps), None), case.batch),
            "DeepFool": (foolbox_peer(L2DeepFoolAttack(), None), 20),
        }
    if case.kind == "lbfgs":
        c = case.config
        return {
            "SciPy": (scipy_peer(c, iterations=SCIPY_ITERATIONS, tolerance=SCIPY_TOLERANCE), 5),
            "SciPy, our limits": (scipy_peer(c, iterations=c.iterations, tolerance=c.tolerance), 5),
        }
    return {}
