"""Alarms against shares counted by hand; every sign is raised from its threshold on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.masking import THRESHOLDS, Alarm, alarms, leaks
from pipeline.probe import Probe
from pipeline.worst_case import Access, Evidence

SOUND = Probe(
    repeat_shift=0.0,
    batch_shift=4e-7,
    solver_shift=0.0,
    adjoint_angle=0.0,
    dead_gradients=0.0,
    failed_ascents=0.0,
    unbounded=0.0,
    epsilon=0.1,
    one_step=0.0,
    ladder=[25, 50, 100],
    robust_accuracy=[0.6, 0.5, 0.5],
    nfe_ratio=1.0,
    probabilities=0.0,
    clipped=0.0,
    logit_scale=5.0,
)


def changed(**values: Any) -> Probe:
    return replace(SOUND, **values)


def raised(probes: list[Probe], evidence: dict[str, Evidence] | None = None) -> list[str]:
    return [alarm.name for alarm in alarms("net", probes, evidence or {}) if alarm.raised]


def found(**sizes: list[float]) -> dict[str, Evidence]:
    by_access: dict[Access, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {
        {"white": "white box", "black": "black box", "transfer": "transfer"}[name]: np.array([values])  # type: ignore[misc]
        for name, values in sizes.items()
    }
    return {"linf": Evidence("linf", (0.1, 0.2), by_access, ("a",))}


def test_a_sound_net_raises_none() -> None:
    assert raised([SOUND]) == []
    assert len(alarms("net", [SOUND], {})) == 13


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("random", "repeat_shift"),
        ("batch", "batch_shift"),
        ("solver", "solver_shift"),
        ("adjoint", "adjoint_angle"),
        ("nfe", "nfe_ratio"),
        ("dead gradient", "dead_gradients"),
        ("no ascent", "failed_ascents"),
        ("one step", "one_step"),
        ("unbounded", "unbounded"),
        ("no logits", "probabilities"),
        ("clipped", "clipped"),
        ("scale", "logit_scale"),
    ],
)
def test_every_sign_is_raised_from_its_threshold_on(name: str, field: str) -> None:
    threshold = THRESHOLDS[name]
    assert raised([changed(**{field: threshold})]) == [name]
    assert raised([changed(**{field: threshold * 0.99})]) == []
    assert raised([changed(**{field: math.nan})]) == [name], "what could not be measured is no good sign"


def test_accuracy_that_still_falls_with_the_steps_is_a_sign() -> None:
    """Only the last doubling counts: before it, more steps may well help."""
    assert raised([replace(SOUND, robust_accuracy=[0.6, 0.5, 0.3])]) == ["more steps"]
    assert raised([replace(SOUND, robust_accuracy=[0.9, 0.5, 0.49])]) == []
    assert raised([replace(SOUND, ladder=[25], robust_accuracy=[0.6])]) == []


def test_seeds_are_averaged_and_nets_without_a_solver_have_no_sign_of_it() -> None:
    half = replace(SOUND, unbounded=0.03)
    assert raised([SOUND, half]) == []
    assert raised([half, half]) == ["unbounded"]
    names = [alarm.name for alarm in alarms("net", [replace(SOUND, solver_shift=None, adjoint_angle=None)], {})]
    assert "solver" not in names
    assert "adjoint" not in names


def test_what_withstands_gradients_and_falls_without_is_a_sign() -> None:
    """At .1: image 1 of 4 falls to the black box alone. At .2 both have it."""
    evidence = found(white=[0.2, 0.1, math.inf, math.nan], black=[0.1, 0.1, math.inf, math.nan])
    (alarm,) = alarms("net", [], evidence)
    assert (alarm.name, alarm.value, alarm.threshold, alarm.threat) == ("black box wins", 0.25, 0.02, "linf")
    assert alarm.raised
    assert "at 0.1" in alarm.evidence


def test_a_weaker_attack_without_gradients_is_none() -> None:
    evidence = found(white=[0.1, 0.1, 0.2], black=[0.2, math.inf, math.inf], transfer=[0.1, 0.2, 0.2])
    assert raised([], evidence) == []
    assert [alarm.value for alarm in alarms("net", [], evidence)] == [0, 0]


def test_one_leaked_image_is_a_leak() -> None:
    assert leaks(1, 1000).raised
    assert not leaks(0, 1000).raised


def test_nan_is_raised() -> None:
    assert Alarm("a", "net", math.nan, 1.0, "").raised
