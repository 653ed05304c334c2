"""Timing in turns: A B A B …, so that a machine whose speed drifts treats all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]


def in_turns(tasks: Mapping[str, Callable[[], object]], *, rounds: int) -> Seconds:
    """Seconds of each task in every round. Nothing is warmed up: each task should have run once."""
    found: Seconds = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            found[name].append(time.perf_counter() - started)
    return found


def ratio(seconds: Seconds, task: str, other: str) -> float:
    """Median over the rounds of how long ``task`` took in units of ``other``: drift divides out round by round."""
    return statistics.median(a / b for a, b in zip(seconds[task], seconds[other], strict=True))
