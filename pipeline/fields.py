"""Ranges for configuration fields, written once beside the type and checked by ``pipeline.config``.

A component declares ``steps: PositiveInt``; the parser turns a violation into an error that names the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

LARGEST_INT = 2**63 - 1  # torch, NumPy and PyArrow count in 64 bits, and math.isnan overflows beyond 1e308


@dataclass(frozen=True)
class Range:
    """Closed (ge, le) and open (gt, lt) bounds; NaN and infinities are refused unless ``infinite``."""

    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf
    infinite: bool = False

    def violation(self, value: float) -> str | None:
        """Why ``value`` is out of range, or None."""
        if isinstance(value, int):
            if abs(value) > LARGEST_INT:
                return "must fit in 64 bits"
        elif math.isnan(value) or (math.isinf(value) and not self.infinite):
            return "must be a finite number"
        bounds = (
            (value >= self.ge, f"must be at least {self.ge:g}"),
            (value > self.gt or self.gt == -math.inf, f"must be greater than {self.gt:g}"),
            (value <= self.le, f"must be at most {self.le:g}"),
            (value < self.lt or self.lt == math.inf, f"must be less than {self.lt:g}"),
        )
        return next((reason for holds, reason in bounds if not holds), None)


PositiveInt = Annotated[int, Range(ge=1)]
NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
PositiveOrInfinite = Annotated[float, Range(gt=0, infinite=True)]
UnitFloat = Annotated[float, Range(ge=0, le=1)]
