"""Documents that cannot go stale: links lead somewhere, and docs/attacks.md knows every attack and every parameter."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from pipeline import components
from pipeline.provenance import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = ROOT / "docs" / "attacks.md"
KINDS = components.kinds("attacks")
SHARED = {"budget"}  # parameters of several attacks, described once in the introduction
LARGEST_PICTURE = 60_000  # bytes

_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)


@cache
def sections() -> dict[str, str]:
    """What stands below each heading of the second order in docs/attacks.md."""
    _, *parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def described(section: str) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each parameter: the rows of a section whose first column is in code."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*?) \| ([^|]*?) \|$", section, flags=re.MULTILINE)
    return {name: (unit, meaning) for name, unit, meaning in rows}


def parameters(kind: str) -> set[str]:
    return {field.name for field in dataclasses.fields(components.load("attacks", kind).Config)}


def targets(document: Path) -> list[str]:
    """Where the links and pictures of a document lead, apart from the web."""
    found = [target for _, target in _LINK.findall(_CODE.sub("", document.read_text(encoding="utf-8")))]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", document.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    return not file.exists() or bool(anchor and file.suffix == ".md" and anchor not in anchors(file))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    assert not [target for target in targets(document) if leads_nowhere(document, target)]


def test_the_check_sees_broken_links(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "# A page, with `code`\n[a](#a-page-with-code) [b](#elsewhere) [c](page.md#a-page-with-code) ![d](none.png)\n"
        "[e](https://example.org/none)\n```\n[f](in-code)\n```\n",
        encoding="utf-8",
    )
    assert [target for target in targets(document) if leads_nowhere(document, target)] == ["#elsewhere", "none.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_has_a_section_with_formula_source_cost_failures_and_picture(kind: str) -> None:
    assert kind in sections(), f"docs/attacks.md lacks a section '## {kind}'"
    text = sections()[kind]
    for part in ("```math\n", "*Source:*", "*Cost:*", "*Known failures:*", f"](figures/attacks/{kind}.png)"):
        assert part in text, part


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_described_with_its_unit(kind: str) -> None:
    found = described(sections()[kind])
    assert found.keys() == parameters(kind) - SHARED
    assert all(unit and meaning for unit, meaning in found.values())


def test_shared_parameters_are_described_in_the_introduction_for_all_who_have_them() -> None:
    introduction = sections()["What they share"]
    for name in SHARED:
        (paragraph,) = (part for part in introduction.split("\n\n") if part.startswith(f"**`{name}`**"))
        having = {kind for kind in KINDS if name in parameters(kind)}
        assert {kind for kind in KINDS if f"`{kind}`" in paragraph} == having


def test_pictures_are_small() -> None:
    pictures = [PAGE.parent / target for target in targets(PAGE) if target.startswith("figures/attacks/")]
    assert len(pictures) == len(KINDS) + 1
    assert not [picture.name for picture in pictures if picture.stat().st_size > LARGEST_PICTURE]


def test_the_gallery_has_filled_in_its_numbers() -> None:
    blocks = re.findall(r"<!-- gallery: (\w+) -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert {name for name, _ in blocks} == {"shots", "alike"}
    assert all(block.strip() for _, block in blocks)
