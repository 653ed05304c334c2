"""data: the three splits of the data set of params.yaml, with a card."""

from __future__ import annotations

from pipeline import components
from pipeline.config import load_params
from pipeline.datasets.base import write_dataset
from pipeline.folders import DATA
from pipeline.stages.common import run


def main() -> None:
    dataset = load_params().dataset
    loaded = components.load("datasets", dataset.kind).load(dataset.config)
    write_dataset(loaded, DATA, kind=dataset.kind)


if __name__ == "__main__":
    run(main)
