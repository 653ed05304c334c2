"""publish: finished results to MLflow; ``python -m pipeline.stages.publish``."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import asdict

from pipeline.config import Params, load_params
from pipeline.files import digest
from pipeline.provenance import ROOT
from pipeline.records import DESCRIPTION, records, views
from pipeline.report.inputs import read_benchmark
from pipeline.stages.common import run
from pipeline.store import locked
from pipeline.tracking import UnreachableError, connect, describe, publish, tracking_uri

logger = logging.getLogger(__name__)


def main() -> None:
    params, uri = load_params(), tracking_uri()
    try:
        with locked("publish"):
            experiment = connect(uri)
            benchmark = read_benchmark(params)
            outcome = publish(experiment, records(benchmark), benchmark=group(params), origin=origin())
            describe(experiment, DESCRIPTION, views(params))
    except UnreachableError as error:
        logger.warning("%s: nothing lost, run `make publish` later", error)
    else:
        logger.info("MLflow at %s: %s", uri, outcome)


def group(params: Params) -> str:
    """A name for what these parameters compute, wherever they do."""
    what = {name: value for name, value in asdict(params).items() if name != "compute"}
    return f"{params.dataset.kind} {len(params.attacked)}x{len(params.seeds)}x{len(params.attacks)} {digest(what)[:6]}"


def origin() -> dict[str, str]:
    """Tags that say which code published."""
    return {"commit": commit(), "mlflow.source.git.commit": commit()}


def commit() -> str:
    """The checked-out commit, with ``-dirty`` if files differ from it; ``unknown`` without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    run(main)
