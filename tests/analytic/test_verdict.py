"""Verdicts on simulated benchmarks with known truth: their error rates, their power, and what can never be said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from pipeline.config import Claim
from pipeline.masking import Alarm, leaks
from pipeline.matching import Standing, mismatches
from pipeline.statistics import Array
from pipeline.verdict import LEVEL, VERDICT_SEEDS, Case, Verdict, answer, judge

N_CLAIMS, N_IMAGES = 6, 100
SLACK = 0.999  # of Monte Carlo: quantile of the count that a true rate of LEVEL may reach


def claim(threat: str | None = "linf", attack: str | None = None) -> Claim:
    return Claim(more_robust="a", than="b", at=None, threat=threat, attack=attack)  # type: ignore[arg-type]


def outcomes(rng: np.random.Generator, logits: Array, n_seeds: int) -> Array:
    """(S, I): Bernoulli with an effect of the seed and the logits of the images."""
    return (rng.random((n_seeds, N_IMAGES)) < expit(logits + 0.3 * rng.standard_normal((n_seeds, 1)))).astype(float)


def simulate(
    rng: np.random.Generator,
    effects: Sequence[float],
    *,
    n_seeds: int = VERDICT_SEEDS,
    alarms: Sequence[Alarm] = (),
) -> list[Verdict]:
    """One benchmark with a claim for each effect, in logits.

    Claims in pairs share the outcomes of model a, as claims against several controls do.
    """
    cases: dict[str, Case] = {}
    for k, effect in enumerate(effects):
        if k % 2 == 0:
            images = 1.5 * rng.standard_normal((1, N_IMAGES))
            one = outcomes(rng, images, n_seeds)
        cases[f"c{k}"] = Case(claim(), one, outcomes(rng, images - effect, n_seeds), frozenset({"linf"}))
    return list(judge(cases, alarms).values())


def most(rate: float, n: int) -> float:
    return float(stats.binom.ppf(SLACK, n, rate))


# --- error rates ------------------------------------------------------------------------------------------------------


def test_without_any_effect_at_most_one_benchmark_in_twenty_has_a_false_verdict() -> None:
    rng, n = np.random.default_rng(0), 400
    false = sum(any(it.word != "undecided" for it in simulate(rng, [0.0] * N_CLAIMS)) for _ in range(n))
    assert false <= most(LEVEL, n)


def test_large_effects_are_found_and_do_not_make_the_others_false() -> None:
    rng, n = np.random.default_rng(1), 200
    found, false = Counter[str](), 0
    for _ in range(n):
        one, other, *nothing = simulate(rng, [1.5, -1.5, 0.0, 0.0, 0.0, 0.0])
        found.update([f"better {one.word}", f"worse {other.word}"])
        false += any(it.word != "undecided" for it in nothing)
    assert found["better supported"] >= 0.95 * n
    assert found["worse contradicted"] >= 0.95 * n
    assert found["better contradicted"] == found["worse supported"] == 0
    assert false <= most(LEVEL, n)


def test_small_effects_are_seldom_found_and_hardly_ever_with_the_wrong_sign() -> None:
    rng, n = np.random.default_rng(2), 200
    words = [Counter(it.word for it in simulate(rng, [0.1] * N_CLAIMS)) for _ in range(n)]
    assert sum(count["contradicted"] > 0 for count in words) <= most(LEVEL / 2, n)
    assert sum(count["undecided"] for count in words) >= 0.8 * n * N_CLAIMS


def test_what_is_masked_is_never_supported() -> None:
    rng = np.random.default_rng(3)
    alarm = Alarm("dead gradient", "a", 0.5, 0.05, "")
    for _ in range(200):
        assert {it.word for it in simulate(rng, [3.0] * 2, alarms=[alarm])} == {"unreliable"}


def test_few_seeds_decide_nothing() -> None:
    rng = np.random.default_rng(4)
    for n_seeds in range(1, VERDICT_SEEDS):
        assert {it.word for it in simulate(rng, [5.0, -5.0], n_seeds=n_seeds)} == {"undecided"}
    alarm = Alarm("dead gradient", "a", 0.5, 0.05, "")
    assert {it.word for it in simulate(rng, [5.0], n_seeds=3, alarms=[alarm])} == {"unreliable"}


def test_the_smallest_detectable_effect_shrinks_with_seeds_and_grows_with_claims() -> None:
    sizes = [
        np.mean([simulate(np.random.default_rng(k), [0.0] * m, n_seeds=s)[0].detectable for k in range(30)])
        for s, m in ((20, 1), (10, 1), (10, 8), (3, 8))
    ]
    assert all(fewer < more for fewer, more in pairwise(sizes))


# --- alarms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alarm", "word"),
    [
        (Alarm("scale", "a", 200.0, 100.0, ""), "unreliable"),
        (Alarm("scale", "b", 200.0, 100.0, ""), "unreliable"),
        (Alarm("scale", "b", math.nan, 100.0, ""), "unreliable"),
        (Alarm("scale", "b", 99.0, 100.0, ""), "supported"),
        (Alarm("scale", "elsewhere", 200.0, 100.0, ""), "supported"),
        (Alarm("transfer wins", "a", 0.1, 0.02, "", "linf"), "unreliable"),
        (Alarm("transfer wins", "a", 0.1, 0.02, "", "l2"), "supported"),
        (leaks(1, 100), "unreliable"),
        (leaks(0, 100), "supported"),
    ],
)
def test_an_alarm_counts_where_it_concerns_the_evidence(alarm: Alarm, word: str) -> None:
    (verdict,) = simulate(np.random.default_rng(0), [3.0], alarms=[alarm])
    assert verdict.word == word
    assert verdict.alarms == ((alarm,) if word == "unreliable" else ())


# --- the answer -------------------------------------------------------------------------------------------------------


def judged(**effects: float) -> dict[str, Verdict]:
    return dict(zip(effects, simulate(np.random.default_rng(0), list(effects.values())), strict=True))


def test_the_answer_counts_worst_cases_only() -> None:
    verdicts = judged(one=3.0, other=3.0)
    assert answer(verdicts) == (
        "Yes, as far as these attacks go: of 2 claims about worst cases, 2 supported (one, other)."
    )
    assert answer(judged(one=3.0, other=0.0)).startswith("In part: of 2 claims")
    assert answer(judged(one=-3.0, other=-3.0)).startswith("No, rather the contrary:")
    assert answer(judged(one=-3.0, other=0.0)).startswith("Not shown: of 2 claims")
    alone = {name: replace(it, claim=claim(None, "fgsm")) for name, it in verdicts.items()}
    assert answer(alone) == answer({}) == "Nothing is decided: no claim rests on a worst case."
    assert not any(verdict.is_worst_case for verdict in alone.values())


def test_the_answer_says_that_seeds_are_few() -> None:
    few = dict(enumerate(simulate(np.random.default_rng(0), [3.0], n_seeds=3)))
    assert answer({str(name): it for name, it in few.items()}) == (
        "Not shown: of 1 claim about worst cases, 1 undecided (0); fewer than 10 seeds (3) can decide none."
    )


# --- matched comparisons ----------------------------------------------------------------------------------------------

MODEL = Standing(
    parameters=1000,
    gradient_steps=500,
    training_seconds=20,
    test_accuracy=0.95,
    clean_accuracy=0.96,
    generalization_gap=0.03,
    logit_scale=5,
)


@pytest.mark.parametrize(
    ("change", "within"),
    [
        ({"parameters": 1200}, {"parameters": 1090}),
        ({"gradient_steps": 600}, {"gradient_steps": 504}),
        ({"training_seconds": 40}, {"training_seconds": 29}),
        ({"logit_scale": 10}, {"logit_scale": 7}),
        ({"logit_scale": math.nan}, {}),
        ({"test_accuracy": 0.92}, {"test_accuracy": 0.935}),
        ({"clean_accuracy": 0.93}, {"clean_accuracy": 0.945}),
        ({"generalization_gap": 0.06}, {"generalization_gap": 0.045}),
    ],
)
def test_a_mismatch_is_named_beyond_its_tolerance(change: dict[str, float], within: dict[str, float]) -> None:
    for pair in ((MODEL, replace(MODEL, **change)), (replace(MODEL, **change), MODEL)):
        assert len(list(mismatches(*pair))) == 1
    assert list(mismatches(MODEL, replace(MODEL, **within))) == []
