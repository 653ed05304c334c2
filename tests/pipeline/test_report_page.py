"""The report's page as a reader sees it: from the disk, in a real browser, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.stages import report
from tests.pipeline.synthetic import write_benchmark

pytestmark = pytest.mark.browser

MODELS, ATTACKS = ["cnn", "neural_ode"], ["gaussian", "pgd", "adef"]
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
WIDTHS = {"desk": 1280, "phone": 375}
# How many pixels of each canvas have been drawn on.
PAINTED = """() => [...document.querySelectorAll('.live canvas')].map(canvas =>
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data
        .reduce((n, value, i) => n + (i % 4 === 3 && value > 0), 0))"""


@dataclass(frozen=True)
class Site:
    """Where the page lies, and the curves it must show."""

    address: str
    curves: pd.DataFrame


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("page")
    write_benchmark(root, models=MODELS, attacks=ATTACKS, seeds=[0, 1], n_images=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()
    return Site((root / "reports" / "index.html").as_uri(), pd.read_csv(root / "reports" / "curves.csv"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest, site: Site) -> Iterator[Any]:
    """The open page; the test fails if it ever says an error or asks for what is not on the disk."""
    options = {"viewport": {"width": WIDTHS["desk"], "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    opened = context.new_page()
    complaints: list[str] = []

    def listen(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def watch(asked: Any) -> None:
        if not asked.url.startswith(("file:", "data:")):
            complaints.append(asked.url)

    opened.on("console", listen)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", watch)
    opened.goto(site.address)
    yield opened
    context.close()
    assert not complaints


LOOKS = [
    {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    for width in WIDTHS.values()
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize(
    "page", LOOKS, indirect=True, ids=lambda look: f"{look['viewport']['width']}-{look['color_scheme']}"
)
def test_axe_finds_nothing_serious_and_nothing_sticks_out(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    violations = Axe().run(page).response["violations"]
    grave = {v["id"]: v["nodes"][0]["html"][:200] for v in violations if v["impact"] in ("serious", "critical")}
    assert not grave
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_axe_would_find_something(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(
        "document.querySelector('.lead').innerHTML = '<a href=\"#\"></a><span style=\"color: #eee\">pale</span>'"
    )
    found = {v["id"] for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")}
    assert {"link-name", "color-contrast"} <= found


def test_every_picture_is_loaded_and_every_chart_is_drawn(page: Any) -> None:
    pictures = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    inside = page.evaluate("[...document.querySelectorAll('svg image')].map(image => image.getBBox().width)")
    assert all(pictures)
    assert inside
    assert all(inside)
    painted = page.evaluate(PAINTED)
    assert len(painted) == len(ATTACKS) + 2  # and the worst cases of two threats
    assert min(painted) > 3000
    links = page.eval_on_selector_all("figcaption a", "found => found.map(link => link.href)")
    assert links
    assert all(Path(link.removeprefix("file://")).is_file() for link in links)


def test_the_first_screens_say_question_verdict_picture_and_warnings_in_this_order(page: Any) -> None:
    places = ["h1", "#verdict", "table", ".live .plot", "#cautions", "#curves"]
    heights = [page.locator(place).first.bounding_box()["y"] for place in places]
    assert heights == sorted(heights)


def plot(page: Any, attack: str) -> Any:
    return page.locator(f"section[aria-labelledby='attack-{attack}'] .plot")


def said(page: Any, attack: str) -> tuple[float, dict[str, list[float]]]:
    """Strength, and the value and interval of each architecture shown, as a screen reader says them."""
    text = plot(page, attack).get_attribute("aria-valuetext")
    strength, _, values = text.partition(": ")
    number = r"([\d.]+)"
    found = re.findall(rf"(\w+) {number} \[{number}, {number}\]", values)
    return float(strength), {name: [float(value) for value in numbers] for name, *numbers in found}


def test_the_keyboard_alone_reads_every_value(page: Any, site: Site) -> None:
    page.locator("section[aria-labelledby='attack-pgd'] .controls button").last.focus()
    page.keyboard.press("Tab")
    assert plot(page, "pgd").evaluate("place => place === document.activeElement")
    table = site.curves[site.curves["attack"] == "pgd"]
    for position, (epsilon, rows) in enumerate(table.groupby("epsilon")):
        page.keyboard.press("ArrowRight" if position else "Home")
        strength, values = said(page, "pgd")
        assert strength == epsilon
        expected = rows.set_index("model")[["robust_accuracy", "low", "high"]]
        assert values == {m: pytest.approx(list(expected.loc[m]), abs=6e-4) for m in MODELS}
    page.keyboard.press("ArrowRight")  # there is nothing beyond the last
    assert said(page, "pgd")[0] == epsilon


def test_pointing_reads_values_too(page: Any) -> None:
    plot(page, "adef").scroll_into_view_if_needed()
    plot(page, "adef").hover(position={"x": 400, "y": 100})
    strength, values = said(page, "adef")
    assert strength > 0
    assert values
    assert (
        page.locator("section[aria-labelledby='attack-adef'] .readout")
        .inner_text()
        .startswith(f"Strength {strength:g}")
    )


def test_an_architecture_is_hidden_in_all_charts_by_one_key(page: Any) -> None:
    before = page.evaluate(PAINTED)
    button = page.locator(".controls button", has_text="cnn").first
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    for attack in ATTACKS:
        assert list(said(page, attack)[1]) == ["neural_ode"]
    page.wait_for_function(f"before => ({PAINTED})().every((n, i) => n < before[i])", arg=before)
    page.locator(".controls button[data-name=cnn]").last.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert list(said(page, "pgd")[1]) == MODELS


def test_a_logarithmic_scale_has_no_zero(page: Any, site: Site) -> None:
    page.get_by_role("button", name="log scale").first.click()
    strengths = site.curves[site.curves["attack"] == "pgd"]["epsilon"]
    plot(page, "pgd").press("Home")
    assert said(page, "pgd")[0] == min(strengths[strengths > 0])
    assert min(page.evaluate(PAINTED)) > 3000


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_the_static_pictures_stay(page: Any) -> None:
    assert page.locator(".wide").first.is_visible()
    assert not page.locator(".live").first.is_visible()
    assert not page.locator(".hint").first.is_visible()


def test_paper_gets_the_static_pictures(page: Any) -> None:
    assert not page.locator("section[aria-labelledby='worst-case'] .wide").is_visible()
    page.emulate_media(media="print")
    assert page.locator("section[aria-labelledby='worst-case'] .wide").is_visible()
    assert not page.locator(".live").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_colours_follow_the_reader(page: Any) -> None:
    """A chart drawn in daylight is drawn again at night."""
    chart = "document.querySelector('.live canvas').toDataURL()"
    page.emulate_media(color_scheme="light")
    day = page.evaluate(chart)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"day => {chart} !== day", arg=day)
    night = page.evaluate(chart)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"night => {chart} !== night", arg=night)
    assert page.evaluate(chart) == day
