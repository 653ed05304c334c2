"""One door to every solver: ``solve()`` integrates dz/dt = f(t, z) from t0 to t1 and says how it went.

Fixed steps and steps controlled by the error of the whole batch are torchdiffeq's (Chen et al. 2018); steps that each
sample controls by itself are torchode's (Lienen and Günnemann 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.fields import PositiveFloat, PositiveInt

FIXED_STEP = ("euler", "midpoint", "rk4", "explicit_adams")
# The adaptive methods by who may control their steps.
CONTROLLED_BY: dict[str, tuple[str, ...]] = {"dopri5": ("batch", "sample"), "tsit5": ("sample",)}
ADAMS_MAX_ORDER = 5  # as torchdiffeq counts: the method's order is 4
EVALUATIONS = 6  # per step of dopri5 and of tsit5, whose seventh stage is the next step's first
VectorField = Callable[[Tensor, Tensor], Tensor]


class SolverStatus(IntEnum):
    OK = 0
    STEP_LIMIT = 1
    NON_FINITE = 2


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """A numerical method and how it is differentiated. A method has ``steps`` or all of the four that follow.

    Attributes:
        method: fixed step (euler, midpoint, rk4: torchdiffeq's 3/8 rule, explicit_adams: multistep) or adaptive
            (dopri5, tsit5).
        gradient: through the solver's own operations, or by the continuous adjoint equations (Chen et al. 2018).
        steps: number of equal steps of a fixed-step method.
        rtol, atol: error tolerances of an adaptive one.
        max_steps: a solve that needs more ends with status STEP_LIMIT.
        control: whose error decides on a step: that of each ``sample``, or of the whole ``batch``, so that an image's
            logits depend on its neighbours.
    """

    method: Literal["euler", "midpoint", "rk4", "explicit_adams", "dopri5", "tsit5"]
    gradient: Literal["backprop", "adjoint"]
    steps: PositiveInt | None = None
    rtol: PositiveFloat | None = None
    atol: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    control: Literal["batch", "sample"] | None = None

    def __post_init__(self) -> None:
        needed = ("steps",) if self.method in FIXED_STEP else ("rtol", "atol", "max_steps", "control")
        for name in ("steps", "rtol", "atol", "max_steps", "control"):
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(f"{name}: {'needed by' if name in needed else 'must be null for'} {self.method}")
        if self.control is not None and self.control not in CONTROLLED_BY[self.method]:
            raise ValueError(f"control: for {self.method} it must be {' or '.join(CONTROLLED_BY[self.method])}")
        if self.control == "sample" and self.gradient == "adjoint":
            raise ValueError("gradient: must be backprop with steps controlled by each sample")

    @property
    def couples_batch(self) -> bool:
        """Whether a sample's solution depends on the others of its batch."""
        return self.control == "batch"


@dataclass(frozen=True)
class Solution:
    """The end of B trajectories and what each cost.

    Attributes:
        z1: (B, ...), z(t1); NaN where the status is not OK, or where the field was not finite.
        nfe: (B,) int64, vector-field evaluations.
        accepted, rejected: (B,) int64, steps.
        status: (B,) int64 codes of ``SolverStatus``. All B samples share these four where steps are the batch's.
    """

    z1: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor


def solve(
    field: VectorField, z0: Tensor, *, t0: float, t1: float, config: SolverConfig, parameters: Sequence[Tensor]
) -> Solution:
    """Integrate dz/dt = field(t, z), z(t0) = z0, to t1.

    Args:
        field: maps (t, z of shape (B, ...)) to dz/dt of z's shape; t is a scalar or, where samples control their own
            steps, (B, 1, ...), which broadcasts like one.
        z0: (B, ...), the state at t0.
        parameters: every tensor requiring gradients that ``field`` reads, apart from z; the adjoint method returns
            gradients for these only. Backpropagation through the solver finds them by itself.
    """
    if config.control == "sample":
        return _solve_each(field, z0, t0, t1, config)
    return _solve_together(field, z0, t0, t1, config, tuple(parameters))


class _CountedField(nn.Module):
    """A vector field as the module that torchdiffeq wants, counting its evaluations."""

    def __init__(self, field: VectorField) -> None:
        super().__init__()
        self.field = field
        self.nfe = self.accepted = self.rejected = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.field(t, z)


class _CountedSteps(_CountedField):
    """The same for adaptive methods, which tell it of every step by these names."""

    def callback_accept_step(self, _t: Tensor, _z: Tensor, _dt: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, _t: Tensor, _z: Tensor, _dt: Tensor) -> None:
        self.rejected += 1


def _options(config: SolverConfig) -> dict[str, Any]:
    if config.steps is not None:
        steps = config.steps
        grid = {"grid_constructor": lambda _f, _z, t: torch.linspace(t[0], t[-1], steps + 1, dtype=t.dtype)}
        # torchdiffeq's default, 12, is unstable at steps for which this is not.
        return grid | ({"max_order": ADAMS_MAX_ORDER} if config.method == "explicit_adams" else {})
    return {"max_num_steps": config.max_steps}


def _solve_together(
    field: VectorField, z0: Tensor, t0: float, t1: float, config: SolverConfig, parameters: tuple[Tensor, ...]
) -> Solution:
    """By torchdiffeq: one sequence of steps for the whole batch."""
    from torchdiffeq import odeint, odeint_adjoint  # loads SciPy: a second that processes without an ODE need not spend

    counted = _CountedField(field) if config.steps is not None else _CountedSteps(field)
    times = torch.tensor([t0, t1], dtype=z0.dtype)  # on the CPU: the steps are Python's business, not the device's
    tolerances = {} if config.steps is not None else {"rtol": config.rtol, "atol": config.atol}
    arguments = {"method": config.method, "options": _options(config)} | tolerances
    try:
        if config.gradient == "adjoint":
            z1 = odeint_adjoint(counted, z0, times, adjoint_params=parameters, **arguments)[-1]
        else:
            z1 = odeint(counted, z0, times, **arguments)[-1]
        status = SolverStatus.OK
    except AssertionError as error:
        # torchdiffeq asserts on too many steps and on a step size that underflows: results of this solve, not bugs.
        status = SolverStatus.STEP_LIMIT if "max_num_steps" in str(error) else SolverStatus.NON_FINITE
        z1 = z0 * torch.nan  # still a function of z0: it can be differentiated
    accepted = counted.accepted if config.steps is None else config.steps

    def each(value: int) -> Tensor:
        return torch.full(z0.shape[:1], value, dtype=torch.int64, device=z0.device)

    return Solution(z1, each(counted.nfe), each(accepted), each(counted.rejected), each(status))


def _solve_each(field: VectorField, z0: Tensor, t0: float, t1: float, config: SolverConfig) -> Solution:
    """By torchode: a sequence of steps for each sample; one that fails takes no other with it."""
    import torchode  # loads sympy: a second and a half that most processes need not spend

    z1 = torch.zeros_like(z0)
    nfe, accepted, rejected, status = (torch.zeros(len(z0), dtype=torch.int64, device=z0.device) for _ in range(4))
    rows = torch.arange(len(z0), device=z0.device)
    while len(rows):
        found = _run_torchode(field, z0[rows], t0, t1, config)
        steps, done = found.stats["n_steps"], found.status == torchode.Status.SUCCESS.value
        nfe[rows] += EVALUATIONS * steps + 2  # and two for the first step's size
        accepted[rows] += found.stats["n_accepted"]
        rejected[rows] += steps - found.stats["n_accepted"]
        limit = found.status == torchode.Status.REACHED_MAX_STEPS.value
        status[rows] = torch.where(limit, SolverStatus.STEP_LIMIT, SolverStatus.NON_FINITE).masked_fill(
            done, SolverStatus.OK
        )
        if done.all():
            z1 = z1.index_copy(0, rows, found.ys[:, -1].view_as(z0[rows]))
        # torchode stops all when one fails, wherever they are: the others start again without it.
        rows = rows[done & ~done.all()]
        nfe[rows] = accepted[rows] = rejected[rows] = 0
    failed = (status != SolverStatus.OK).nonzero().flatten()
    z1 = z1.index_copy(0, failed, z0[failed] * torch.nan)  # still a function of z0: it can be differentiated
    return Solution(z1, nfe, accepted, rejected, status)


def _run_torchode(field: VectorField, z0: Tensor, t0: float, t1: float, config: SolverConfig) -> Any:
    import torchode

    shape, ones = z0.shape, (1,) * (z0.dim() - 1)
    term = torchode.ODETerm(lambda t, z: field(t.view(-1, *ones), z.view(shape)).flatten(1))
    method = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[config.method](term=term)
    controller = torchode.IntegralController(atol=config.atol, rtol=config.rtol, term=term)
    start, end = (torch.full(shape[:1], t, dtype=z0.dtype, device=z0.device) for t in (t0, t1))
    problem = torchode.InitialValueProblem(y0=z0.flatten(1), t_start=start, t_end=end)
    # The steps' sizes depend on the state, too: without their share the gradient is not that of the computation.
    solver = torchode.AutoDiffAdjoint(method, controller, max_steps=config.max_steps)
    return solver.solve(problem)
