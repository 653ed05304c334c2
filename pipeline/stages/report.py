"""report: rows to curves, pictures, tables and one page; ``python -m pipeline.stages.report``."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.config import load_params
from pipeline.files import atomic_directory, write_json, write_text
from pipeline.folders import REPORTS
from pipeline.report.inputs import Benchmark, read_benchmark
from pipeline.report.latex import latex
from pipeline.report.page import page
from pipeline.report.pictures import draw
from pipeline.report.summary import configurations, curves, metrics, summary
from pipeline.stages.common import run

logger = logging.getLogger(__name__)


def main() -> None:
    benchmark = read_benchmark(load_params())
    with atomic_directory(REPORTS) as folder:
        write_report(benchmark, folder)
    logger.info("%s", (REPORTS / "index.html").resolve().as_uri())


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """Everything, into an empty folder."""
    pictures = draw(benchmark)
    for picture in pictures.all():
        picture.write(folder / "figures")
    curves(benchmark).to_csv(folder / "curves.csv", index=False)
    write_text(folder / "curves.tex", latex(benchmark))
    write_json(folder / "configurations.json", configurations(benchmark))
    write_json(folder / "metrics.json", metrics(benchmark))
    write_text(folder / "summary.md", summary(benchmark))
    write_text(folder / "index.html", page(benchmark, pictures))


if __name__ == "__main__":
    run(main)
