"""The verdicts in words and numbers, and whether what they compare is matched."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from pipeline import matching
from pipeline.comparison import values
from pipeline.config import Claim
from pipeline.matching import Standing, mismatches
from pipeline.report.curves import THREAT_WORDS
from pipeline.report.inputs import Benchmark, Result
from pipeline.report.tables import NOTHING, Table, number
from pipeline.statistics import Outcomes
from pipeline.verdict import LEVEL, VERDICT_SEEDS, Case, Verdict, answer, judge
from pipeline.worst_case import THREATS

WARNING = "not matched"


def verdicts(benchmark: Benchmark) -> dict[str, Verdict]:
    """Claim to its verdict."""
    return judge({name: _case(benchmark, claim) for name, claim in benchmark.params.claims.items()}, benchmark.alarms)


def sentence(benchmark: Benchmark) -> str:
    """The answer to the report's question."""
    return answer(verdicts(benchmark))


def table(benchmark: Benchmark) -> Table:
    """Claim × what is known of it."""
    standings = _standings(benchmark)
    rows = []
    for name, verdict in verdicts(benchmark).items():
        difference, effect = verdict.difference, verdict.difference.effect
        unmatched = any(mismatches(*_compared(verdict.claim, standings)))
        alarms = sorted({f"{alarm.name} ({alarm.model})" for alarm in verdict.alarms})
        rows.append(
            (
                f"{name}: {words(verdict.claim)}",
                verdict.word,
                f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]",
                _p(verdict.corrected_p),
                f"{difference.n_agree} of {difference.n_seeds}",
                number(verdict.detectable) if math.isfinite(verdict.detectable) else NOTHING,
                ", ".join(alarms) or NOTHING,
                f"⚠ {WARNING}" if unmatched else "matched",
            )
        )
    return Table(
        "The difference of robust accuracy, or of its area under the curve, on the same images, with its 95 % interval "
        f"over seeds and images; p corrected for all {len(rows)} claims (Holm); seeds whose difference has the sign of "
        "the mean; the smallest difference that these seeds and images would show with a probability of 80 %; alarms "
        f"on the evidence. Supported or contradicted: corrected p < {LEVEL:g}, an interval on that side of 0, at least "
        f"{VERDICT_SEEDS} seeds and no alarm; with an alarm a claim is unreliable.",
        (
            "claim",
            "verdict",
            "difference",
            "corrected p",
            "seeds that agree",
            "smallest detectable",
            "alarms",
            "comparison",
        ),
        tuple(rows),
    )


def words(claim: Claim) -> str:
    """A claim as a sentence; one attack alone is said to be that."""
    under = (
        f"the worst case of {THREAT_WORDS[claim.threat]}"
        if claim.threat
        else f"{claim.attack} alone, which is no worst case"
    )
    at = "area under the curve" if claim.at is None else f"at {claim.at:g}"
    return f"{claim.more_robust} withstands more than {claim.than} under {under} ({at})"


def matched(benchmark: Benchmark) -> Table:
    """Model × what a fair comparison has equal."""
    rows = [
        (
            model,
            f"{it.parameters:,.0f}",
            f"{it.gradient_steps:,.0f}",
            f"{it.training_seconds:.0f}",
            f"{it.test_accuracy:.3f}",
            f"{it.clean_accuracy:.3f}",
            f"{it.generalization_gap:+.3f}",
            number(it.logit_scale),
        )
        for model, it in _standings(benchmark).items()
    ]
    return Table(
        "What models differ in besides their architecture: means over the seeds; the logit scale is the median margin "
        "of the correctly classified attacked images. A comparison is matched if no accuracy and no gap differs by "
        f"more than {matching.CLEAN_GAP:g}, and the larger is at most {matching.PARAMETER_RATIO:g} times the smaller "
        f"in parameters, {matching.STEP_RATIO:g} in gradient steps, {matching.SECONDS_RATIO:g} in training seconds and "
        f"{matching.SCALE_RATIO:g} in logit scale.",
        (
            "architecture",
            "parameters",
            "gradient steps",
            "training s",
            "test accuracy",
            "accuracy on attacked images",
            "generalization gap",
            "logit scale",
        ),
        tuple(rows),
    )


def warnings(benchmark: Benchmark) -> list[str]:
    """A sentence for each pair of models that a claim compares and that is not matched."""
    standings = _standings(benchmark)
    pairs = {(claim.more_robust, claim.than): claim for claim in benchmark.params.claims.values()}
    found = {pair: list(mismatches(*_compared(claim, standings))) for pair, claim in pairs.items()}
    return [f"{one} and {other} are {WARNING}: {', '.join(they)}." for (one, other), they in found.items() if they]


def metrics(benchmark: Benchmark) -> dict[str, Any]:
    """Claim to numbers, alarms and verdict; what is not finite is left out."""
    standings = _standings(benchmark)
    return {
        name: {
            "difference": verdict.difference.effect.value,
            "low": verdict.difference.effect.low,
            "high": verdict.difference.effect.high,
            "p": verdict.difference.p,
            "corrected_p": verdict.corrected_p,
            "seeds_that_agree": verdict.difference.n_agree,
            "alarms": len(verdict.alarms),
            "mismatches": len(list(mismatches(*_compared(verdict.claim, standings)))),
            "verdict": verdict.word,
        }
        | ({"smallest_detectable": verdict.detectable} if math.isfinite(verdict.detectable) else {})
        for name, verdict in verdicts(benchmark).items()
    }


def _case(benchmark: Benchmark, claim: Claim) -> Case:
    one, other = (values(_outcomes(benchmark, claim, model), claim.at) for model in (claim.more_robust, claim.than))
    if claim.threat is not None:
        return Case(claim, one, other, frozenset({claim.threat}))
    norm = benchmark.params.attacks[claim.attack or ""].norm
    return Case(claim, one, other, frozenset(threat.name for threat in THREATS if threat.norm == norm))


def _outcomes(benchmark: Benchmark, claim: Claim, model: str) -> Outcomes:
    if claim.threat is not None:
        return benchmark.evidence[claim.threat][model].worst
    return benchmark.results[model][claim.attack or ""].outcomes


def _compared(claim: Claim, standings: dict[str, Standing]) -> tuple[Standing, Standing]:
    return standings[claim.more_robust], standings[claim.than]


def _standings(benchmark: Benchmark) -> dict[str, Standing]:
    return {model: _standing(benchmark, model) for model in benchmark.params.attacked}


def _standing(benchmark: Benchmark, model: str) -> Standing:
    trained = benchmark.params.trained(model)
    reports = benchmark.training[trained.name]
    train, test = (fmean(report["accuracy"][split] for report in reports) for split in ("train", "test"))
    n_train = benchmark.card["splits"]["train"]["shape"][0]
    widest = max(benchmark.results[model].values(), key=lambda result: result.attack.n_images)
    return Standing(
        parameters=fmean(report["parameters"] for report in reports),
        gradient_steps=trained.train.epochs * (n_train // trained.train.batch_size),
        training_seconds=fmean(report["seconds"] for report in reports),
        test_accuracy=test,
        clean_accuracy=float(widest.outcomes.robust[..., 0].mean()),
        generalization_gap=train - test,
        logit_scale=_logit_scale(widest),
    )


def _logit_scale(result: Result) -> float:
    images = result.rows[result.rows["clean_correct"]].drop_duplicates(["seed", "index"])
    return float(images["clean_margin"].median())


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
