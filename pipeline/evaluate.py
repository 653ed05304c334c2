"""The only judge of success. It trusts no attack: predictions, sizes, bounds, counts and fields are computed anew."""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import AttackOutput, ExampleRng, Status
from pipeline.schema import validate

logger = logging.getLogger(__name__)

SIZE_SLACK = 1e-6  # relative and absolute: what float32 rounding of inputs + perturbation can add to a size

# Loaded by name, so that only the rows of attacks with a field depend on that file's code (pipeline.stages.attack).
FIELD_JUDGE = "pipeline.judge_field"


@dataclass(frozen=True)
class Examples:
    """Consecutive or selected test examples: inputs (B, C, H, W) in [0, 1], labels (B,), and who they are."""

    indices: tuple[int, ...]
    inputs: Tensor
    labels: Tensor
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Examples:
        """The same, in a device's memory."""
        return Examples(self.indices, self.inputs.to(device), self.labels.to(device), self.sha256)

    def subset(self, positions: Sequence[int]) -> Examples:
        """The examples at these positions, in this order."""
        chosen = torch.as_tensor(positions, dtype=torch.int64, device=self.inputs.device)
        return Examples(
            tuple(self.indices[i] for i in positions),
            self.inputs[chosen],
            self.labels[chosen],
            tuple(self.sha256[i] for i in positions),
        )


@dataclass(frozen=True)
class Cell:
    """What is being judged: an attack of params.yaml on one trained model. ``attack.config`` is its Config."""

    dataset: str
    split: str
    model: str
    seed: int
    attack: str
    kind: str
    config: Any
    base_seed: int
    config_hash: str

    @property
    def norm(self) -> str:
        norm: str = self.config.norm
        return norm


@dataclass(frozen=True)
class Judged:
    """Rows of some examples at one strength, with the first draw's images and field for the stores beside them."""

    rows: pd.DataFrame
    adv_inputs: Tensor
    deformation: Tensor | None


def join(parts: Sequence[Judged]) -> Judged:
    """What was judged in parts, as one."""
    fields = [part.deformation for part in parts if part.deformation is not None]
    return Judged(
        pd.concat([part.rows for part in parts], ignore_index=True),
        torch.cat([part.adv_inputs for part in parts]),
        torch.cat(fields) if fields else None,
    )


class CountingModel(nn.Module):
    """A model that counts the rows of its forward passes and of the backward passes through its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.n_forwards = 0
        self.n_backwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.n_forwards += len(inputs)
        logits: Tensor = self.model(inputs)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.n_backwards += len(gradient)


@torch.no_grad()
def predict(model: nn.Module, examples: Examples) -> Tensor:
    """Logits (B, K) of the unperturbed examples, by the judge."""
    logits: Tensor = model(examples.inputs)
    return logits


def evaluate(
    model: nn.Module, examples: Examples, cell: Cell, *, epsilon: float | None, clean_logits: Tensor
) -> Judged:
    """Attack the examples at one strength (None for a minimal attack) and judge the outcome.

    ``clean_logits`` is ``predict(model, examples)``, the same at all strengths and draws. An attack that raises ends in
    rows of status ``crashed``; out of memory is the machine's fault and is raised.
    """
    judged = [
        _evaluate_draw(model, examples, cell, epsilon=epsilon, draw=draw, clean_logits=clean_logits)
        for draw in range(getattr(cell.config, "draws", 1))
    ]
    rows = pd.concat([j.rows for j in judged], ignore_index=True)
    return Judged(rows, judged[0].adv_inputs, judged[0].deformation)


def _evaluate_draw(
    model: nn.Module, examples: Examples, cell: Cell, *, epsilon: float | None, draw: int, clean_logits: Tensor
) -> Judged:
    rng = ExampleRng.for_examples(
        examples.indices, seed=cell.base_seed, dataset=cell.dataset, attack=cell.attack, draw=draw
    )
    started = time.perf_counter()
    output, checked = _run(model, examples, cell, epsilon=epsilon, rng=rng)
    seconds = (time.perf_counter() - started) / max(len(examples), 1)
    verdict = judge(model, examples, output, cell, epsilon=epsilon, status=checked, clean_logits=clean_logits)
    rows = _rows(examples, cell, verdict | {"epsilon": epsilon, "draw": draw, "seconds": seconds})
    return Judged(rows, output.adv_inputs, output.deformation)


def evaluate_transferred(
    model: nn.Module,
    examples: Examples,
    output: AttackOutput,
    cell: Cell,
    *,
    epsilons: Sequence[float | None],
    source: tuple[str, int],
    clean_logits: Tensor,
) -> pd.DataFrame:
    """Rows of images that an attack made on another model: judged as if it had made them on this one, forwards only.

    Args:
        epsilons: the strength that each of the images was made at; None for a minimal attack's.
        source: the other model and its seed.
    """
    started = time.perf_counter()
    bounds = [math.inf if epsilon is None else epsilon for epsilon in epsilons]
    bound = torch.tensor(bounds, dtype=torch.float64, device=examples.inputs.device)
    verdict = judge(model, examples, output, cell, epsilon=bound, status=output.status, clean_logits=clean_logits)
    seconds = (time.perf_counter() - started) / max(len(examples), 1)
    more = {"epsilon": epsilons, "draw": 0, "seconds": seconds, "source_model": source[0], "source_seed": source[1]}
    return _rows(examples, cell, verdict | more)


def _rows(examples: Examples, cell: Cell, columns: dict[str, Any]) -> pd.DataFrame:
    """Rows of the schema: who was attacked by what, and ``columns``, which say how it went."""
    identity = {
        "dataset": cell.dataset,
        "split": cell.split,
        "index": examples.indices,
        "input_sha256": examples.sha256,
        "label": examples.labels.tolist(),
        "target": None,
        "model": cell.model,
        "seed": cell.seed,
        "attack": cell.attack,
        "norm": cell.norm,
        "inherited": False,
        "source_model": None,
        "source_seed": None,
        "config_hash": cell.config_hash,
    }
    rows = pd.DataFrame(identity | columns, index=range(len(examples)))
    return validate(rows, source=f"{cell.model}/{cell.attack}")


def _run(
    model: nn.Module, examples: Examples, cell: Cell, *, epsilon: float | None, rng: ExampleRng
) -> tuple[AttackOutput, Tensor]:
    """The attack's output, and its status with the judge's objections to counts, shapes and field."""
    counting = CountingModel(model).eval()
    try:
        output: AttackOutput = components.load("attacks", cell.kind).attack(
            counting,
            examples.inputs.clone(),  # a clone: an attack that writes into its inputs deceives nobody
            examples.labels.clone(),
            targets=None,
            epsilon=epsilon,
            config=cell.config,
            rng=rng,
        )
        fault = _inconsistency(output, examples, cell, counting)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.exception("%s on %s seed %s raised; its rows say so", cell.attack, cell.model, cell.seed)
        return _unchanged(examples, cell, counting), _codes(examples, Status.CRASHED)
    if fault:
        logger.error("%s on %s seed %s: %s", cell.attack, cell.model, cell.seed, fault)
        return _unchanged(examples, cell, counting), _codes(examples, Status.BAD_OUTPUT)
    return output, output.status


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left; PyTorch has a class for the former alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _codes(examples: Examples, status: Status) -> Tensor:
    return torch.full_like(examples.labels, int(status))


def _unchanged(examples: Examples, cell: Cell, counting: CountingModel) -> AttackOutput:
    """What stands in the rows when there is no usable output: the inputs themselves."""
    share = torch.zeros_like(examples.labels)
    share[:1] = 1
    height, width = examples.inputs.shape[-2:]
    field = examples.inputs.new_zeros(len(examples), height, width, 2) if cell.norm == "deformation" else None
    return AttackOutput(
        examples.inputs, field, share * counting.n_forwards, share * counting.n_backwards, torch.zeros_like(share)
    )


def _inconsistency(output: AttackOutput, examples: Examples, cell: Cell, counting: CountingModel) -> str | None:
    """Why the whole output cannot be believed, or None."""
    shape, dtype = tuple(examples.inputs.shape), examples.inputs.dtype
    counts = dict.fromkeys(("n_forwards", "n_backwards", "status"), (shape[:1], torch.int64))
    expected = {"adv_inputs": (shape, dtype)} | counts
    if cell.norm == "deformation" or output.deformation is not None:
        expected["deformation"] = ((shape[0], *shape[-2:], 2), dtype)
    for name, wanted in expected.items():
        value = getattr(output, name)
        if value is None or (value.shape, value.dtype) != wanted:
            return f"{name} is not a tensor of shape {wanted[0]} and {wanted[1]}"
    if not set(output.status.tolist()) <= set(Status):
        return "status has a code that means nothing"
    reported = int(output.n_forwards.sum()), int(output.n_backwards.sum())
    counted = counting.n_forwards, counting.n_backwards
    if reported != counted:
        return f"reports {reported} forwards and backwards, spent {counted}"
    budget = getattr(cell.config, "budget", None)
    if budget is not None and (output.n_forwards + output.n_backwards > budget).any():
        return f"spent more than its budget of {budget} forwards and backwards on an image"
    return None


@torch.no_grad()
def judge(
    model: nn.Module,
    examples: Examples,
    output: AttackOutput,
    cell: Cell,
    *,
    epsilon: float | Tensor | None,
    status: Tensor,
    clean_logits: Tensor,
) -> dict[str, Any]:
    """Columns of the verdict on an attack's output, one value an example (names and meaning: ``pipeline.schema``).

    ``epsilon`` is one strength for all, or a tensor (B,) of one for each.

    success = clean_correct & (adv_pred != label) & in_box & (size <= epsilon), with no size test for Gaussian noise
    and for minimal attacks, and with ``folded_share == 0`` where the attack is ``fold_free``.
    """
    model.eval()  # whatever state the attack left it in
    inputs, labels, adv_inputs = examples.inputs, examples.labels, output.adv_inputs
    adv_logits = model(adv_inputs)
    nfe, gave_up = (last_pass(model, name, labels) for name in ("nfe", "solver_failed"))
    columns: dict[str, Tensor] = {
        "clean_pred": clean_logits.argmax(1),
        "adv_pred": adv_logits.argmax(1),
        "clean_correct": clean_logits.argmax(1) == labels,
        "in_box": ((adv_inputs >= 0) & (adv_inputs <= 1)).flatten(1).all(1),
        "clean_margin": _margin(clean_logits, labels),
        "adv_margin": _margin(adv_logits, labels),
        "output_shift_l2": torch.linalg.vector_norm((adv_logits - clean_logits).double(), dim=1),
        "n_forwards": output.n_forwards,
        "n_backwards": output.n_backwards,
    } | _perturbation_sizes(inputs, adv_inputs)
    status = _overrule(status, ~_finite(clean_logits, adv_logits, adv_inputs), Status.NON_FINITE)
    status = _overrule(status, gave_up > 0, Status.SOLVER_FAILED)
    if output.deformation is not None:
        field = importlib.import_module(FIELD_JUDGE).examine(inputs, adv_inputs, output.deformation)
        status = _overrule(status, ~field.pop("honest"), Status.BAD_OUTPUT)
        columns |= field
    is_result = status <= int(Status.BUDGET)
    fooled = columns["adv_pred"] != labels
    within = _within(columns, cell, epsilon)
    columns["success"] = columns["clean_correct"] & fooled & columns["in_box"] & within & is_result
    values: dict[str, Any] = {name: column.tolist() for name, column in columns.items()}
    no_field = dict.fromkeys(("size_deformation", "folded_share", "max_gradient"), float("nan"))
    return no_field | values | {"nfe": nfe.tolist(), "status": [Status(code).name.lower() for code in status.tolist()]}


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other, (B,): positive iff the prediction is right."""
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf)).amin(1)


def _perturbation_sizes(inputs: Tensor, adv_inputs: Tensor) -> dict[str, Tensor]:
    perturbation = (adv_inputs.double() - inputs.double()).flatten(1)
    return {
        "size_l2": torch.linalg.vector_norm(perturbation, dim=1),
        "size_linf": torch.linalg.vector_norm(perturbation, ord=torch.inf, dim=1),
    }


def _finite(*tensors: Tensor) -> Tensor:
    """(B,): whether every value of a row is finite in all tensors."""
    return torch.stack([torch.isfinite(tensor).flatten(1).all(1) for tensor in tensors]).all(0)


def _overrule(status: Tensor, against: Tensor, code: Status) -> Tensor:
    """The judge's status where the attack's own claims a result that the judge does not believe."""
    return torch.where((status <= int(Status.BUDGET)) & against, int(code), status)


def _within(columns: dict[str, Tensor], cell: Cell, epsilon: float | Tensor | None) -> Tensor:
    """Whether the size is allowed, and the field free of folds where that is the threat model."""
    allowed = torch.ones_like(columns["in_box"])
    if cell.norm != "sigma":
        size = columns[f"size_{cell.norm}"]
        limit = float("inf") if epsilon is None else epsilon * (1 + SIZE_SLACK) + SIZE_SLACK
        allowed &= torch.isfinite(size) & (size <= limit)
    if getattr(cell.config, "fold_free", False):
        allowed &= columns["folded_share"] == 0
    return allowed


def last_pass(model: nn.Module, name: str, labels: Tensor) -> Tensor:
    """What the modules noted of each image (B,) in the last forward pass, summed; 0 where none notes it."""
    noted = [getattr(module, name) for module in model.modules() if hasattr(module, name)]
    return sum((values.to(labels) for values in noted), torch.zeros_like(labels))
