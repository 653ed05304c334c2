"""Measuring a net for the alarms: gradients, logits, neighbours, solvers, and PGD with ever more steps.

The checklist is that of Athalye et al. 2018, Carlini et al. 2019 and Tramèr et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pipeline import components, provenance
from pipeline.attacks.losses import value, value_and_gradient
from pipeline.evaluate import Cell, Examples, evaluate, last_pass, predict
from pipeline.files import digest
from pipeline.ode import SolverConfig
from pipeline.probe import Probe
from pipeline.settings import Component, ProbeConfig

EPSILONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # ℓ∞; the steps are counted where about half of the images stand
SHORTEST = 25  # steps of the first PGD
UNBOUNDED_STEPS = 50
STEP = 0.005  # ℓ∞ length of the step along the gradient
TINY = 0.1  # of the margin; sound nets promise several margins
_ATTACKS = ("pipeline.attacks.fgsm", "pipeline.attacks.pgd")  # loaded by name
FINER = 4  # times the steps of a fixed-step solver; its square for tolerances


@dataclass(frozen=True)
class Subject:
    """A net and the same weights with a finer solver and with exact gradients; None where it has no solver."""

    net: nn.Module
    finer: nn.Module | None = None
    exact: nn.Module | None = None


def finer(solver: SolverConfig) -> SolverConfig:
    """The same method with more steps, or with tighter tolerances and each image's own steps."""
    if solver.steps is not None:
        return replace(solver, steps=FINER * solver.steps)
    assert solver.rtol is not None
    assert solver.atol is not None
    assert solver.max_steps is not None
    return SolverConfig(
        method=solver.method,
        rtol=solver.rtol / FINER**2,
        atol=solver.atol / FINER**2,
        max_steps=FINER * solver.max_steps,
        control="sample",
        gradient="backprop",
    )


def relatives(model: Component) -> dict[str, Component]:
    """The components of a ``Subject`` besides the net itself."""
    if not hasattr(model.config, "solver"):
        return {}
    solver: SolverConfig = model.config.solver
    exact = replace(solver, gradient="backprop")
    return {
        name: replace(model, config=replace(model.config, solver=one))
        for name, one in {"finer": finer(solver), "exact": exact}.items()
    }


def measure(subject: Subject, examples: Examples, config: ProbeConfig, *, seed: int) -> Probe:
    """All measurements on these examples; ``seed`` is the base seed of the attacks' randomness."""
    net = subject.net.eval().requires_grad_(False)
    clean = predict(net, examples)
    top = clean.topk(2, dim=1).values
    scale = max(float((top[:, 0] - top[:, 1]).median()), torch.finfo(clean.dtype).tiny)
    right = (clean.argmax(1) == examples.labels).nonzero().flatten()
    chosen = examples.subset(right.tolist())
    bench = _Bench(net, chosen, clean[right], seed)
    epsilon = bench.middle_strength()
    ladder = list(_doublings(config.most_steps))
    shortest = bench.rows(_pgd(ladder[0]), epsilon, bench.everything())
    survivors = bench.survivors(epsilon, ladder, torch.tensor(~shortest["success"].to_numpy()))
    return Probe(
        repeat_shift=_largest(predict(net, examples) - clean) / scale,
        batch_shift=_largest(_one_by_one(net, examples) - clean) / scale,
        solver_shift=_disagreement(subject.finer, examples, clean),
        adjoint_angle=_angle(net, subject.exact, chosen),
        dead_gradients=_dead_gradients(net, chosen),
        failed_ascents=_failed_ascents(net, chosen),
        unbounded=_share(bench.stands(_pgd(UNBOUNDED_STEPS), 1.0)),
        epsilon=epsilon,
        one_step=_share(survivors[-1] & ~bench.stands(_fgsm(), epsilon)),
        ladder=ladder,
        robust_accuracy=[_share(standing) for standing in survivors],
        nfe_ratio=bench.nfe_ratio(shortest),
        probabilities=_probabilities(clean),
        clipped=_clipped(clean),
        logit_scale=scale,
    )


class _Bench:
    """Attacks on the correctly classified examples of one net, judged by the judge."""

    def __init__(self, net: nn.Module, examples: Examples, clean_logits: Tensor, seed: int) -> None:
        self.net, self.examples, self.clean_logits, self.seed = net, examples, clean_logits, seed

    def rows(self, config: _Attack, epsilon: float, among: Tensor) -> pd.DataFrame:
        """The judge's rows of the examples ``among``, (N,) bool."""
        chosen = among.nonzero().flatten()
        kind, parameters = config
        cell = Cell("probe", "test", "net", 0, "probe", kind, parameters, self.seed, "probe")
        clean_logits = self.clean_logits[chosen.to(self.clean_logits.device)]
        examples = self.examples.subset(chosen.tolist())
        return evaluate(self.net, examples, cell, epsilon=epsilon, clean_logits=clean_logits).rows

    def stands(self, config: _Attack, epsilon: float, among: Tensor | None = None) -> Tensor:
        """(N,) bool: the examples, of those ``among``, that the attack does not fool."""
        standing = self.everything() if among is None else among.clone()
        if standing.any():
            standing[standing.clone()] = torch.tensor(~self.rows(config, epsilon, standing)["success"].to_numpy())
        return standing

    def everything(self) -> Tensor:
        return torch.ones(len(self.examples), dtype=torch.bool)

    def middle_strength(self) -> float:
        """Where the shortest PGD leaves the share nearest to one half; of equals the largest that leaves any."""
        standing, shares = self.everything(), {}
        for epsilon in EPSILONS:
            standing = self.stands(_pgd(SHORTEST), epsilon, standing)
            shares[epsilon] = _share(standing)
        return min(shares, key=lambda epsilon: (abs(shares[epsilon] - 0.5), shares[epsilon] == 0, -epsilon))

    def survivors(self, epsilon: float, ladder: list[int], first: Tensor) -> list[Tensor]:
        """Who stands against PGD with each number of steps and with all fewer ones; ``first`` against the fewest."""
        found = [first]
        for steps in ladder[1:]:
            found.append(self.stands(_pgd(steps), epsilon, found[-1]))
        return found

    def nfe_ratio(self, attacked: pd.DataFrame) -> float | None:
        """Evaluations of the vector field for attacked images (the judge's rows), to those for clean ones."""
        predict(self.net, self.examples)
        clean = last_pass(self.net, "nfe", self.examples.labels).double()
        return float(attacked["nfe"].mean() / clean.mean()) if clean.sum() else None


_Attack = tuple[str, Any]  # kind and Config


def _pgd(steps: int) -> _Attack:
    config = components.load("attacks", "pgd").Config
    return "pgd", config(norm="linf", steps=steps, step_size=2.0, restarts=1, random_start=True, loss="both")


def _fgsm() -> _Attack:
    return "fgsm", components.load("attacks", "fgsm").Config(norm="linf")


def _doublings(most: int) -> Iterator[int]:
    """25, 50, 100 … and ``most``."""
    steps = SHORTEST
    while steps < most:
        yield steps
        steps *= 2
    yield most


def _share(selected: Tensor) -> float:
    return float(selected.double().mean()) if len(selected) else 0.0


def _largest(shifts: Tensor) -> float:
    return float(shifts.abs().max())


def _one_by_one(net: nn.Module, examples: Examples) -> Tensor:
    return torch.cat([predict(net, examples.subset([i])) for i in range(len(examples))])


def _disagreement(other: nn.Module | None, examples: Examples, clean: Tensor) -> float | None:
    if other is None:
        return None
    return _share(predict(other.eval(), examples).argmax(1) != clean.argmax(1))


def _angle(net: nn.Module, exact: nn.Module | None, examples: Examples) -> float | None:
    if exact is None:
        return None
    exact = exact.eval().requires_grad_(False)
    ours, true = (
        value_and_gradient(one, examples.inputs, examples.labels, None, "margin")[2].flatten(1).double()
        for one in (net, exact)
    )
    cosines = torch.nn.functional.cosine_similarity(ours, true, dim=1).clamp(-1, 1)
    return float(cosines.acos().rad2deg().nanmedian())


def _dead_gradients(net: nn.Module, examples: Examples) -> float:
    _, margins, gradients = value_and_gradient(net, examples.inputs, examples.labels, None, "margin")
    promised = gradients.abs().flatten(1).sum(1)
    return _share(~(promised > TINY * margins.abs()))  # NaN is dead, too


def _failed_ascents(net: nn.Module, examples: Examples) -> float:
    _, before, gradients = value_and_gradient(net, examples.inputs, examples.labels, None, "margin")
    points = (examples.inputs + STEP * gradients.sign()).clamp(0, 1)
    _, after, _ = value(net, points, examples.labels, None, "margin")
    return _share(~(after > before))


def _probabilities(logits: Tensor) -> float:
    wide = logits.double()
    probabilities = (wide >= 0).all(1) & ((wide.sum(1) - 1).abs() < 1e-4)
    return _share(probabilities | (wide.logsumexp(1).abs() < 1e-4))


def _clipped(logits: Tensor) -> float:
    """A value at either end that only one logit has is no clipping."""
    ends = [(logits == end).sum().item() for end in (logits.max(), logits.min())]
    return sum(count for count in ends if count > 1) / logits.numel()


def probe_key(weights_sha256: str, model: Component, data_sha256: str, config: ProbeConfig, *, seed: int) -> str:
    """Hash of everything that determines the measurements."""
    return digest(
        {
            "weights": weights_sha256,
            "model": [model.kind, asdict(model.config)],
            "data": data_sha256,
            "probe": [asdict(config), seed],
            "code": provenance.code_hash(["pipeline.probing", *_ATTACKS, f"pipeline.models.{model.kind}"]),
            "environment": provenance.environment(),
        }
    )
