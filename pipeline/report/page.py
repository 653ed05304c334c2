"""The report as one HTML file that needs nothing else: pictures and the script of the curves are inline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import components
from pipeline.report import alarms, live, published, refinement, tables, theory, trajectories, transfer, verdicts
from pipeline.report.cautions import cautions
from pipeline.report.curves import THREAT_WORDS
from pipeline.report.deformations import alike_attack
from pipeline.report.inputs import Benchmark
from pipeline.report.pictures import Picture, Pictures
from pipeline.report.style import inline, to_svg
from pipeline.report.summary import HOW_TO_READ, QUESTION, describe
from pipeline.report.tables import Table


@dataclass(frozen=True)
class AttackSection:
    """What the page says of one attack; ``examples`` are by architecture."""

    name: str
    description: str
    curve: Picture
    numbers: Table
    details: Table
    examples: dict[str, Picture]
    has_fields: bool


def page(benchmark: Benchmark, pictures: Pictures) -> str:
    """The HTML of the report."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"wide": _wide, "narrow": _narrow}
    return environment.get_template("page.html").render(
        question=QUESTION,
        description=describe(benchmark),
        how_to_read=HOW_TO_READ,
        verdict=verdicts.sentence(benchmark),
        claims=verdicts.table(benchmark),
        matched=verdicts.matched(benchmark),
        mismatches=verdicts.warnings(benchmark),
        cautions=cautions(benchmark),
        pictures=pictures,
        worst_case_names=[f"{live.WORST}{threat}" for threat in benchmark.evidence],
        live_data=live.data(benchmark),
        library=live.library(),
        library_style=live.library_style(),
        alike_attack=alike_attack(benchmark),
        architectures=tables.architectures(benchmark),
        areas=tables.areas(benchmark),
        worst_cases={THREAT_WORDS[name]: tables.worst_cases(found) for name, found in benchmark.evidence.items()},
        alarms=alarms.table(benchmark),
        n_raised=sum(alarm.raised for alarm in benchmark.alarms),
        probed=alarms.probed(benchmark),
        transfers=[transfer.table(benchmark, attack) for attack in benchmark.transfers],
        published=published.table(benchmark),
        refinements=refinement.table(benchmark),
        trajectories=trajectories.table(benchmark),
        trajectory_findings=trajectories.findings(benchmark),
        toys=tuple(zip(theory.findings(benchmark.theory), pictures.theory, strict=True)),
        sections=[_section(benchmark, pictures, attack) for attack in benchmark.params.attacks],
        seed=benchmark.params.seeds[0],
        fold_free=any(getattr(attack.config, "fold_free", False) for attack in benchmark.params.attacks.values()),
        card=benchmark.card,
    )


def _section(benchmark: Benchmark, pictures: Pictures, attack: str) -> AttackSection:
    results = benchmark.of_attack(attack)
    module = components.load("attacks", benchmark.params.attacks[attack].kind)
    return AttackSection(
        name=attack,
        description=(module.__doc__ or "").strip().partition("\n")[0],
        curve=pictures.curves[attack],
        numbers=tables.robust_accuracies(results),
        details=tables.details(results),
        examples=pictures.examples[attack],
        has_fields=results[0].attack.norm == "deformation",
    )


def _wide(picture: Picture) -> Markup:
    """The picture as an element of the page: our own drawing, whose texts are outlines."""
    return Markup(inline(picture.svg, picture.name))


def _narrow(picture: Picture) -> Markup:
    """The same for a phone; empty if the picture has no narrow form."""
    return Markup(inline(to_svg(picture.narrow), f"{picture.name}-narrow") if picture.narrow else "")
