"""The verdict on a claim "A withstands more than B": supported, contradicted, undecided or unreliable.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.comparison import Difference, compare, holm
from pipeline.config import Claim
from pipeline.masking import Alarm
from pipeline.statistics import Array

Word = Literal["supported", "contradicted", "undecided", "unreliable"]

VERDICT_SEEDS = 10  # fewer cannot carry "more robust" or "less robust"
LEVEL = 0.05  # probability of any false verdict among all claims


@dataclass(frozen=True)
class Case:
    """A claim and what was measured for it.

    Attributes:
        one: (S, I) in [0, 1], robustness of ``claim.more_robust``.
        other: of ``claim.than``, same seeds and images.
        threats: those whose alarms concern the evidence.
    """

    claim: Claim
    one: Array
    other: Array
    threats: frozenset[str]

    def is_concerned(self, alarm: Alarm) -> bool:
        """Whether an alarm is about this evidence; one without a model or threat is about all."""
        models = {self.claim.more_robust, self.claim.than, LEAKING}
        return alarm.model in models and (not alarm.threat or alarm.threat in self.threats)


LEAKING = "data"  # the model that a leak between splits is reported of (``masking.leaks``)


@dataclass(frozen=True)
class Verdict:
    """The verdict and what it rests on.

    Attributes:
        difference: effect with interval, p, seeds that agree.
        corrected_p: Holm's, over all claims.
        detectable: smallest difference found with a probability of 80 % at the strictest of Holm's levels.
        alarms: raised, on either model, about this evidence.
        word: the verdict.
    """

    claim: Claim
    difference: Difference
    corrected_p: float
    detectable: float
    alarms: tuple[Alarm, ...]
    word: Word

    @property
    def is_worst_case(self) -> bool:
        """Whether the claim is about the strongest of all attacks; one attack alone may merely be weak."""
        return self.claim.threat is not None


def judge(cases: Mapping[str, Case], alarms: Sequence[Alarm]) -> dict[str, Verdict]:
    """The verdict on each claim; the family that p is corrected for is all of them, unreliable ones included."""
    differences = [compare(case.one, case.other) for case in cases.values()]
    corrected = holm([difference.p for difference in differences])
    verdicts = {}
    for (name, case), difference, p in zip(cases.items(), differences, corrected, strict=True):
        raised = tuple(alarm for alarm in alarms if alarm.raised and case.is_concerned(alarm))
        detectable = difference.detectable(LEVEL / len(cases))
        verdicts[name] = Verdict(case.claim, difference, p, detectable, raised, _word(difference, p, bool(raised)))
    return verdicts


def _word(difference: Difference, corrected_p: float, alarmed: bool) -> Word:
    if alarmed:
        return "unreliable"
    if difference.n_seeds < VERDICT_SEEDS or not corrected_p < LEVEL:
        return "undecided"
    if difference.effect.low > 0:
        return "supported"
    return "contradicted" if difference.effect.high < 0 else "undecided"


def answer(verdicts: Mapping[str, Verdict]) -> str:
    """One sentence about the claims that rest on worst cases."""
    decisive = {name: verdict for name, verdict in verdicts.items() if verdict.is_worst_case}
    if not decisive:
        return "Nothing is decided: no claim rests on a worst case."
    by_word: dict[Word, list[str]] = {"supported": [], "contradicted": [], "undecided": [], "unreliable": []}
    for name, verdict in decisive.items():
        by_word[verdict.word].append(name)
    found = ", ".join(f"{len(names)} {word} ({', '.join(names)})" for word, names in by_word.items() if names)
    n_seeds = min(verdict.difference.n_seeds for verdict in decisive.values())
    few = f"; fewer than {VERDICT_SEEDS} seeds ({n_seeds}) can decide none" if n_seeds < VERDICT_SEEDS else ""
    count = f"{len(decisive)} claim{'s' * (len(decisive) > 1)} about worst cases"
    return f"{_opening(by_word, len(decisive))}: of {count}, {found}{few}."


def _opening(by_word: Mapping[Word, Sequence[str]], n_claims: int) -> str:
    if len(by_word["supported"]) == n_claims:
        return "Yes, as far as these attacks go"
    if by_word["supported"]:
        return "In part"
    return "No, rather the contrary" if len(by_word["contradicted"]) == n_claims else "Not shown"
