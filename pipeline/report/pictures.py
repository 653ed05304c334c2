"""All pictures of the report, with their names and what they show for those who do not see them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.files import write_text
from pipeline.report import curves, deformations, examples, refinement, sensitivity, theory, trajectories, transfer
from pipeline.report.inputs import Benchmark, Result
from pipeline.report.style import save_pdf, save_png, to_svg

COLUMNS = 8  # examples of a picture: as many as stay legible


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, its text alternative, and a figure to take its place on a phone.

    Curves are written as PDF, too: papers show them, and the fonts of a PDF take as long as all else.
    """

    name: str
    figure: Figure
    alt: str
    narrow: Figure | None = None
    pdf: bool = False

    @cached_property
    def svg(self) -> str:
        """The picture as an SVG file."""
        return to_svg(self.figure)

    def write(self, folder: Path) -> None:
        """``<name>.svg``, ``<name>.png`` and, of curves, ``<name>.pdf``."""
        write_text(folder / f"{self.name}.svg", self.svg)
        save_png(self.figure, folder / f"{self.name}.png")
        if self.pdf:
            save_pdf(self.figure, folder / f"{self.name}.pdf")


@dataclass(frozen=True)
class Pictures:
    """``curves`` by attack, ``examples`` by attack and architecture, ``comparisons`` one for each shared norm.

    ``worst_cases`` needs an attack with a norm, ``transfer`` images tried elsewhere, ``sensitivity`` one that goes on
    at every strength, ``alike`` an attack on deformations, ``costs`` some that differ in their budgets alone,
    ``refinement`` a net with tied blocks, ``trajectories`` one with steps between stem and head; ``theory`` has one
    for each toy.
    """

    worst_cases: Picture | None
    overview: Picture
    comparisons: tuple[Picture, ...]
    transfer: Picture | None
    sensitivity: Picture | None
    alike: Picture | None
    costs: Picture | None
    refinement: Picture | None
    trajectories: Picture | None
    theory: tuple[Picture, ...]
    curves: dict[str, Picture]
    examples: dict[str, dict[str, Picture]]

    def all(self) -> list[Picture]:
        """In the order of the page."""
        examples = [picture for of_attack in self.examples.values() for picture in of_attack.values()]
        optional = (self.transfer, self.sensitivity, self.alike, self.costs, self.refinement, self.trajectories)
        first = [picture for picture in (self.worst_cases, self.overview, *self.comparisons, *optional) if picture]
        return [*first, *self.theory, *self.curves.values(), *examples]


def draw(benchmark: Benchmark) -> Pictures:
    """Draw everything that the results allow."""
    attacks = benchmark.params.attacks
    return Pictures(
        worst_cases=_worst_cases(benchmark),
        overview=Picture(
            "robust_accuracy",
            curves.overview(benchmark),
            f"Robust accuracy against strength for {', '.join(attacks)}; the numbers are in the tables below.",
            curves.overview(benchmark, narrow=True),
            pdf=True,
        ),
        comparisons=tuple(
            Picture(
                f"attacks-{norm}",
                curves.norm_comparison(benchmark, norm),
                f"Robust accuracy against strength of {', '.join(names)}, a panel per architecture.",
                curves.norm_comparison(benchmark, norm, narrow=True),
                pdf=True,
            )
            for norm, names in curves.shared_norms(benchmark).items()
        ),
        transfer=_transfer(benchmark),
        sensitivity=_sensitivity(benchmark),
        alike=_alike(benchmark),
        costs=_costs(benchmark),
        refinement=_refinement(benchmark),
        trajectories=_trajectories(benchmark),
        theory=_theory(benchmark),
        curves={
            name: Picture(
                f"curve-{name}",
                curves.attack_curve(benchmark.of_attack(name)),
                f"Robust accuracy against the strength of {name}; the numbers are in the table beside it.",
                pdf=True,
            )
            for name in attacks
        },
        examples={name: _examples(benchmark, benchmark.of_attack(name)) for name in attacks},
    )


def _worst_cases(benchmark: Benchmark) -> Picture | None:
    if not benchmark.evidence:
        return None
    threats = ", ".join(curves.THREAT_WORDS[threat] for threat in benchmark.evidence)
    return Picture(
        "worst-case",
        curves.worst_cases(benchmark),
        f"Robust accuracy against strength under the strongest attack on each image: {threats}.",
        curves.worst_cases(benchmark, narrow=True),
        pdf=True,
    )


def _transfer(benchmark: Benchmark) -> Picture | None:
    if not benchmark.transfers:
        return None
    alt = f"Share of images of {', '.join(benchmark.transfers)} that fool other models; the numbers are in the tables."
    return Picture("transfer", transfer.picture(benchmark), alt)


def _sensitivity(benchmark: Benchmark) -> Picture | None:
    names = sensitivity.attacks(benchmark)
    if not names:
        return None
    alt = f"Change of the logits per change of the image, and margins, against the strength of {', '.join(names)}."
    return Picture("sensitivity", sensitivity.picture(benchmark), alt)


def _alike(benchmark: Benchmark) -> Picture | None:
    attack = deformations.alike_attack(benchmark)
    if attack is None:
        return None
    alt = (
        f"Euclidean and largest change of the pixel values against the largest displacement, images fooled by {attack}."
    )
    return Picture("alike", deformations.alike(benchmark, attack), alt)


def _costs(benchmark: Benchmark) -> Picture | None:
    if not deformations.common_strengths(benchmark):
        return None
    families = deformations.budget_families(benchmark)
    alt = f"Share of images fooled against the budget of {', '.join(families)}, a panel per architecture and strength."
    return Picture("success-against-budget", deformations.success_at_cost(benchmark), alt)


def _refinement(benchmark: Benchmark) -> Picture | None:
    if not benchmark.refinements:
        return None
    names = ", ".join(benchmark.refinements)
    alt = f"Agreement with the flow's predictions and distance of the logits against steps, for {names}."
    return Picture("refinement", refinement.picture(benchmark), alt)


def _trajectories(benchmark: Benchmark) -> Picture | None:
    names = trajectories.perturbations(benchmark)
    if not names:
        return None
    alt = f"Distance from the clean trajectory and its growth against time for {'; '.join(names.values())}."
    return Picture("trajectories", trajectories.picture(benchmark), alt)


def _theory(benchmark: Benchmark) -> tuple[Picture, ...]:
    toys = benchmark.theory
    figures = {
        "ordering": theory.ordering_picture(toys.ordering),
        "annuli": theory.annuli_picture(toys.annuli),
        "expansion": theory.expansion_picture(toys.expansion),
    }
    said = theory.findings(toys)
    return tuple(Picture(f"theory-{name}", figures[name], text) for name, text in zip(figures, said, strict=True))


def _examples(benchmark: Benchmark, results: list[Result]) -> dict[str, Picture]:
    seed = benchmark.params.seeds[0]
    found = {result.model: examples.examples(result, benchmark.images[:COLUMNS], seed=seed) for result in results}
    name = results[0].attack.name
    return {
        model: Picture(f"examples-{name}-{model}", examples.figure_of(shown), _describe(name, model, shown))
        for model, shown in found.items()
        if shown
    }


def _describe(attack: str, model: str, shown: list[examples.Example]) -> str:
    outcomes = "; ".join(f"{example.before}, then {' '.join(example.after.split())}" for example in shown)
    return f"{attack} on {model}, test images before and after: {outcomes}."
