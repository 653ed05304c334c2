"""Is it an ODE? A net with tied blocks read as dz/dt = f(t, z) and solved with ever finer steps (Ott et al. 2021).

A net that learned the dynamics keeps its predictions; one that learned its own discretisation loses them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import provenance
from pipeline.files import digest
from pipeline.ode import SolverConfig, SolverStatus, solve
from pipeline.refinement import Refinement

FACTORS = (1, 2, 4, 8)  # times the steps that the net was trained with
REFERENCE = SolverConfig(method="dopri5", rtol=1e-5, atol=1e-5, max_steps=1000, control="sample", gradient="backprop")
BATCH = 250


class _Solved(nn.Module):
    """A vector field solved from 0 to 1; NaN where the solver gives up."""

    def __init__(self, field: nn.Module, solver: SolverConfig) -> None:
        super().__init__()
        self.field, self.solver = field, solver

    def forward(self, z: Tensor) -> Tensor:
        field, parameters = self.field.bind(z)  # type: ignore[operator]
        solution = solve(field, z, t0=0.0, t1=1.0, config=self.solver, parameters=parameters)
        return solution.z1.masked_fill((solution.status != SolverStatus.OK).view(-1, 1, 1, 1), torch.nan)


def native_solver(net: nn.Module) -> SolverConfig | None:
    """The fixed steps that a net's tied block stands for; None if it has no such block."""
    body: Any = net[1] if isinstance(net, nn.Sequential) and len(net) == 3 else None  # stem, body, head
    if not hasattr(body, "field"):
        return None
    if hasattr(body, "blocks"):
        return SolverConfig(method="euler", steps=body.blocks, gradient="backprop")
    solver: SolverConfig = body.solver
    return solver if solver.steps is not None else None


@torch.no_grad()
def refine(net: nn.Module, inputs: Tensor, labels: Tensor) -> list[Refinement]:
    """The net with 1, 2, 4, 8 times its steps, and the reference last. Empty if it is no tied net.

    Args:
        inputs: (N, C, H, W).
        labels: (N,).
    """
    native = native_solver(net)
    if native is None:
        return []
    reference = _logits(net, REFERENCE, inputs)
    solvers = [SolverConfig(method=native.method, steps=native.steps * k, gradient="backprop") for k in FACTORS]  # type: ignore[operator]
    found = [(_words(solver), solver.steps, _logits(net, solver, inputs)) for solver in solvers]
    found.append((_words(REFERENCE), None, reference))
    return [_compare(words, steps, logits, reference, labels) for words, steps, logits in found]


def refinement_key(weights_sha256: str, kind: str, config: Any, data_sha256: str) -> str:
    """Hash of everything that determines the numbers."""
    return digest(
        {
            "weights": weights_sha256,
            "model": [kind, asdict(config)],
            "data": data_sha256,
            "code": provenance.code_hash(["pipeline.refining", f"pipeline.models.{kind}"]),
            "environment": provenance.environment(),
        }
    )


def _logits(net: nn.Module, solver: SolverConfig, inputs: Tensor) -> Tensor:
    assert isinstance(net, nn.Sequential)
    solved = nn.Sequential(net[0], _Solved(net[1].field, solver), net[2]).eval()  # type: ignore[arg-type]
    return torch.cat([solved(batch) for batch in torch.split(inputs, BATCH)])


def _compare(words: str, steps: int | None, logits: Tensor, reference: Tensor, labels: Tensor) -> Refinement:
    predictions = logits.argmax(1)
    finite = logits.isfinite().all(1) & reference.isfinite().all(1)
    shift = (logits - reference).norm(dim=1) / reference.norm(dim=1)
    return Refinement(
        solver=words,
        steps=steps,
        accuracy=((predictions == labels) & finite).double().mean().item(),
        agreement=((predictions == reference.argmax(1)) & finite).double().mean().item(),
        logit_shift=shift.nan_to_num(nan=torch.inf).median().item(),
    )


def _words(solver: SolverConfig) -> str:
    return f"{solver.method}, {solver.steps} steps" if solver.steps else f"{solver.method}, tolerance {solver.rtol:g}"
