"""What every attack shares: its output, its status codes and its source of randomness.

An attack is a module ``pipeline/attacks/<kind>.py`` with

``GOAL``
    ``"budget"``: run once per strength. ``"minimal"``: run once, every strength is read off the size it found.
``CLIMBS``
    (budget attacks only) True if an image that fell at a lower strength need not be attacked again.
``NORMS``
    The sizes it can be asked for, of ``"sigma"``, ``"linf"``, ``"l2"`` and ``"deformation"``.
``Config``
    A frozen keyword-only dataclass. ``norm`` picks one of ``NORMS``. Three optional fields mean something to the
    judge: ``draws`` (the attack is repeated with fresh randomness), ``fold_free`` (a field that folds is no success)
    and ``budget`` (an output that cost more is refused). Nothing that moves a result has a default.
``attack(model, inputs, labels, *, targets, epsilon, config, rng) -> AttackOutput``
    A pure function. ``model`` is in eval mode and maps ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``. Nothing is
    mutated and the model's parameters receive no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from pipeline.fields import PositiveInt
from pipeline.seeds import derive_seed

Goal = Literal["budget", "minimal"]
Norm = Literal["sigma", "linf", "l2", "deformation"]


class Status(IntEnum):
    """How an attack on one image ended. Only the first three are results; the others never count as robustness."""

    OK = 0  # ran as configured, whether or not it found an adversarial example
    STOPPED = 1  # gave up by its own rule (ADef beyond max_norm, a zero gradient)
    BUDGET = 2  # used up the allowed number of forwards and backwards
    NON_FINITE = 3  # the model's logits or gradients, or the attack's images, were not finite
    SOLVER_FAILED = 4  # the model's ODE solver did not reach t1
    BAD_OUTPUT = 5  # the judge found the output inconsistent (counts, field against image, shapes)
    CRASHED = 6  # the attack raised

    @property
    def is_result(self) -> bool:
        return self <= Status.BUDGET


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """What the Configs of iterative attacks share, so that attacks can be compared at equal cost.

    Attributes:
        budget: most forwards plus backwards per image; steps are cut to fit it. None: what the other parameters cost.
    """

    budget: PositiveInt | None = None


def affordable(steps: int, budget: int | None, *, restarts: int = 1) -> int:
    """How many of ``steps`` a budget pays for in each restart: a step is two evaluations, the last look is one.

    Raises:
        ValueError: not a single one.
    """
    if budget is None:
        return steps
    if budget < 3 * restarts:
        raise ValueError(f"budget: must be at least {3 * restarts}, which is one step in each restart")
    return min(steps, (budget // restarts - 1) // 2)


@dataclass(frozen=True)
class AttackOutput:
    """What an attack found. ``adv_inputs`` is the best attempt for images that were not fooled, too.

    Attributes:
        adv_inputs: (B, C, H, W) in [0, 1].
        deformation: (B, H, W, 2) in pixels, component 0 along columns (x) and 1 along rows (y), or None.
        n_forwards: (B,) int64, model evaluations spent on each image.
        n_backwards: (B,) int64, gradient evaluations spent on each image.
        status: (B,) int64 codes of ``Status``.
    """

    adv_inputs: Tensor
    deformation: Tensor | None
    n_forwards: Tensor
    n_backwards: Tensor
    status: Tensor


@dataclass(frozen=True)
class ExampleRng:
    """Randomness that belongs to an example, never to its batch, its rank or the architecture attacked.

    Row i is drawn from hash(base seed, data set, example index, attack, draw); two models attacked by the same
    entry therefore see the same noise, which makes their comparison paired.
    """

    keys: tuple[int, ...]

    @classmethod
    def for_examples(cls, indices: Sequence[int], *, seed: int, dataset: str, attack: str, draw: int = 0) -> ExampleRng:
        return cls(tuple(derive_seed(seed, dataset, int(index), attack, draw) for index in indices))

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, selection: Tensor) -> ExampleRng:
        """The rows that a boolean mask (B,) or an index tensor selects, in order."""
        indices = selection.nonzero().flatten() if selection.dtype == torch.bool else selection
        return ExampleRng(tuple(self.keys[i] for i in indices.tolist()))

    def uniform(self, shape: Sequence[int], *, like: Tensor, stream: int = 0) -> Tensor:
        """(B, *shape) in [0, 1). The same ``stream`` gives the same numbers; restarts take different streams."""
        return self._draw("uniform", shape, like, stream)

    def normal(self, shape: Sequence[int], *, like: Tensor, stream: int = 0) -> Tensor:
        """(B, *shape) standard normal; see ``uniform``."""
        return self._draw("normal", shape, like, stream)

    def _draw(self, law: Literal["uniform", "normal"], shape: Sequence[int], like: Tensor, stream: int) -> Tensor:
        # Drawn on the CPU whatever the device, so that every device attacks with the same numbers.
        sample = torch.rand if law == "uniform" else torch.randn
        rows = [
            sample(tuple(shape), generator=torch.Generator().manual_seed(derive_seed(key, law, stream)))
            for key in self.keys
        ]
        drawn = torch.stack(rows) if rows else torch.empty(0, *shape)
        return drawn.to(device=like.device, dtype=like.dtype)
