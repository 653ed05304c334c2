"""MLflow's pages as a reviewer sees them: the command is started, its links are opened in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_params
from pipeline.provenance import ROOT
from pipeline.report.inputs import Benchmark, read_benchmark
from tests.pipeline.synthetic import write_benchmark
from tests.pipeline.workspaces import Workspace

pytestmark = pytest.mark.browser

MODELS, ATTACKS = ("cnn", "resnet", "euler_net", "neural_ode"), ("fgsm", "adef")
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-quic"
)
PATIENCE = 120_000  # milliseconds; machines of CI are slow, and a page that is ready is not waited for

# Every chart on the page: title of the x axis, and name, x and y of each line.
CHARTS = """() => [...document.querySelectorAll('.js-plotly-plot')]
    .filter(plot => plot.layout && plot.layout.xaxis && plot.layout.xaxis.title && plot.layout.xaxis.title.text)
    .map(plot => ({x: plot.layout.xaxis.title.text, lines: plot.data.filter(line => line.mode && line.visible !== false)
        .map(line => ({name: line.name, key: line.metricKey, x: [...line.x], y: [...line.y]}))}))"""


@dataclass(frozen=True)
class Pages:
    """Addresses by name, and the benchmark they must show."""

    addresses: dict[str, str]
    benchmark: Benchmark

    @property
    def models(self) -> list[str]:
        return list(self.benchmark.params.models)

    @property
    def attacks(self) -> list[str]:
        return list(self.benchmark.params.attacks)


@pytest.fixture(scope="module", params=["made-up results", "a run"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """A benchmark published and served by the commands themselves; the last is a whole ``dvc repro``, of a minute."""
    root = tmp_path_factory.mktemp("mlflow")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    if request.param == "a run":
        Workspace.make(root).repro()
    else:
        write_benchmark(root, models=MODELS, attacks=ATTACKS, seeds=(0, 1), n_images=20)
        for stage in ("report", "publish"):
            subprocess.run([sys.executable, "-m", f"pipeline.stages.{stage}"], cwd=root, env=environment, check=True)
    # `make ui`, in that folder and with the environment of these tests.
    made = [
        "make",
        "--silent",
        "--old-file=.venv/.installed",
        "ui",
        f"WORKDIR={root}",
        f"BIN={Path(sys.executable).parent}",
    ]
    with subprocess.Popen(
        made, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            addresses = {}
            for line in process.stdout:
                name, separator, address = line.partition(" http://")
                if not separator:
                    break
                addresses[name.strip()] = "http://" + address.strip()
            yield Pages(addresses, read(root))
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def read(root: Path) -> Benchmark:
    return read_benchmark(load_params(root / "params.yaml"), root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A browser that has never been here, with room for two rows of charts: those out of sight are not drawn."""
    context = browser.new_context(viewport={"width": 1600, "height": 1200})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def charts(page: Any, *titles: str) -> dict[str, list[dict[str, Any]]]:
    """Lines of the charts whose x axes have these titles, when they are drawn."""
    page.wait_for_function(
        f"titles => {{ const found = ({CHARTS})(); return titles.every(title => found.some("
        "chart => chart.x === title && chart.lines.length && chart.lines.every(line => line.y.length))); }",
        arg=list(titles),
        polling=500,  # the default, every frame, starves where frames are rare
    )
    found = page.evaluate(CHARTS)
    return {title: next(chart["lines"] for chart in found if chart["x"] == title) for title in titles}


def test_the_first_link_shows_all_curves_against_the_true_strength(pages: Pages, page: Any) -> None:
    page.goto(pages.addresses["Robust accuracy: all attacks"])
    found = charts(page, *(f"{attack}/epsilon" for attack in pages.attacks))
    for attack in pages.attacks:
        lines = {line["name"]: line for line in found[f"{attack}/epsilon"]}
        assert set(lines) == set(pages.models)
        for model in pages.models:
            expected = pages.benchmark.results[model][attack].curve
            assert lines[model]["x"] == list(expected["epsilon"])
            assert lines[model]["y"] == pytest.approx(list(expected["robust_accuracy"]), abs=1e-6)
    for model in pages.models:
        assert page.get_by_role("link", name=model, exact=True).first.is_visible()


def test_an_attack_has_a_page_with_all_architectures_and_intervals(pages: Pages, page: Any) -> None:
    attack = pages.benchmark.params.attacks[pages.attacks[-1]]
    name = f"Robust accuracy: {attack.name} ({attack.norm})"
    page.goto(pages.addresses[name])
    lines = charts(page, "epsilon")["epsilon"]
    assert {line["name"] for line in lines} == {f"{model} · {attack.name}" for model in pages.models}
    for line in lines:
        assert line["x"] == [0, *attack.epsilons]
    page.wait_for_function(
        f"() => ({CHARTS})().some(chart => chart.lines.some(l => l.key === 'robust_accuracy_low'))",
        polling=500,
    )
    page.get_by_role("button", name=name).first.click()
    page.get_by_text("Training", exact=True).first.wait_for()  # the other saved views are one click away


def test_runs_can_be_compared(pages: Pages, page: Any) -> None:
    page.goto(pages.addresses["Robust accuracy: fgsm (linf)"])
    charts(page, "epsilon")
    for row in (0, 1):
        page.get_by_label("Press Space to toggle row selection (unchecked)").first.click()
        page.get_by_label("Press Space to toggle row selection (checked)").nth(row).wait_for()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url("**/compare-runs?**")
    page.get_by_text("attack.epsilons").first.wait_for()
    assert page.get_by_text(f"{pages.models[0]} · fgsm").first.is_visible()


def test_the_report_and_its_figures_are_shown_inline(pages: Pages, page: Any) -> None:
    page.goto(pages.addresses["Report"])
    shown = page.frame_locator("iframe").locator("h1").first
    shown.wait_for()
    assert shown.inner_text()
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("curve-fgsm.png", exact=True).click()
    page.wait_for_function(
        "() => [...document.images].some(image => image.src.startsWith('blob:') && image.width > 300)"
    )
