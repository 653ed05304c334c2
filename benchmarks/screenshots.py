"""``python -m benchmarks.screenshots``: MLflow's pages of the finished run in this folder, for docs/mlflow.md.

Needs Debian's chromium; the pages are those that ``make ui`` prints.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.stages.ui import port, server
from pipeline.tracking import Experiment, connect, links, tracking_uri

FOLDER = Path("docs/figures")
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
SIZE = {"width": 1500, "height": 950}
PATIENCE = 120_000  # milliseconds
# Charts whose lines are all drawn.
DRAWN = """number => [...document.querySelectorAll('.js-plotly-plot')]
    .filter(plot => plot.data && plot.data.length && plot.data.every(line => !line.x || line.x.length))
    .length >= number"""


def main() -> None:
    if not CHROMIUM.is_file():
        raise UserError(f"{CHROMIUM} is missing; as root: apt-get install chromium")
    sys.argv[1:] = []  # what follows looks for a port there
    experiment = connect(tracking_uri())
    with server(experiment.uri, port()) as (base, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        take(page, experiment, base)
        browser.close()


def take(page: Page, experiment: Experiment, base: str) -> None:
    """All pictures."""
    pages = links(experiment, base)
    if "Report" not in pages:
        raise UserError(f"MLflow at {experiment.uri}: nothing is published yet; run `make repro` or `make publish`")
    for name, title in (("overview", "Robust accuracy: all attacks"), ("training", "Training")):
        page.goto(pages[title])
        page.wait_for_function(DRAWN, arg=2, polling=500)
        save(page, name)
    attack = next(title for title in pages if title.startswith("Robust accuracy: pgd"))
    page.goto(pages[attack])
    page.wait_for_function(DRAWN, arg=1, polling=500)
    save(page, "attack")
    page.goto(pages["Report"])
    page.frame_locator("iframe").locator("svg, img").first.wait_for()
    save(page, "report")
    page.goto(f"{base}/#/experiments/{experiment.id}/models?workflowType=machine_learning")
    page.get_by_text("neural_ode").first.wait_for()
    save(page, "models")


def save(page: Page, name: str) -> None:
    """A page as ``mlflow-<name>.png`` in 256 colours: text and lines need no more."""
    page.wait_for_timeout(1500)  # fonts and the last frame
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256)
    with atomic_write(FOLDER / f"mlflow-{name}.png") as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    print(FOLDER / f"mlflow-{name}.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
