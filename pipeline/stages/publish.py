"""publish: finished results to MLflow; ``python -m pipeline.stages.publish``."""

from __future__ import annotations

import logging
import subprocess
import sys

from pipeline.config import load_params
from pipeline.datasets.base import read_card
from pipeline.provenance import ROOT
from pipeline.records import DESCRIPTION, Benchmark, views
from pipeline.stages.common import DATA, run
from pipeline.store import locked
from pipeline.tracking import UnreachableError, connect, describe, publish, tracking_uri

logger = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    records = list(Benchmark(params, read_card(DATA)).records())
    uri = tracking_uri()
    with locked("publish"):
        try:
            experiment = connect(uri)
        except UnreachableError as error:
            logger.warning("%s: nothing lost, run `make publish` later", error)
            return
        outcome = publish(experiment, records, origin={"commit": commit(), "mlflow.source.git.commit": commit()})
        describe(experiment, DESCRIPTION, views(params))
    logger.info(
        "MLflow at %s: %d runs added, %d unchanged, %d no longer current",
        uri,
        outcome.added,
        outcome.unchanged,
        outcome.retired,
    )


def commit() -> str:
    """The checked-out commit, with ``-dirty`` if files differ from it; ``unknown`` without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(run(main))
