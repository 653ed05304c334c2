"""What a figure must reach, said beside the figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A bound on a figure; NaN meets none."""

    sign: Literal["≤", "≥"]
    bound: float

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.sign == "≤" else value >= self.bound

    def verdict(self, value: float) -> str:
        """The figure, its target and whether it is met."""
        return f"{value:.3f} ({self.sign} {self.bound:g}: {'met' if self.is_met(value) else 'MISSED'})"
