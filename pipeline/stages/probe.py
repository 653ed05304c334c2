"""probe: what the alarms rest on, measured on every seed of every model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from pipeline.config import Params, load_params
from pipeline.datasets.base import Split, read_card, read_split
from pipeline.examples import first_examples
from pipeline.files import atomic_directory, write_json
from pipeline.folders import DATA, PROBES
from pipeline.nets import load_target
from pipeline.probing import Subject, measure, probe_key, relatives
from pipeline.settings import Component
from pipeline.stages.common import run
from pipeline.store import locked, remembered

logger = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    split, card = read_split(DATA, "test"), read_card(DATA)
    with locked("probe"):
        found = {
            name: {str(seed): _measured(params, model, seed, split, card) for seed in params.seeds}
            for name, model in params.attacked.items()
        }
        with atomic_directory(PROBES) as folder:
            write_json(folder / "probes.json", {"models": found, "leaked": _leaked(split), "tested": len(split.labels)})


def _measured(params: Params, model: Component, seed: int, split: Split, card: dict[str, Any]) -> dict[str, Any]:
    """From the store, or measured now."""
    trained = params.trained(model.name).name
    targets = {
        name: load_target(one, trained, seed, split, card["n_classes"])
        for name, one in {"net": model, **relatives(model)}.items()
    }
    data = card["splits"]["test"]["sha256"]
    key = probe_key(targets["net"].weights_sha256, model, data, params.probe, seed=params.evaluate.seed)

    def measured() -> dict[str, Any]:
        subject = Subject(**{name: target.net for name, target in targets.items()})
        probe = measure(subject, first_examples(split, params.probe.n_images), params.probe, seed=params.evaluate.seed)
        logger.info("%s seed %d: probed", model.name, seed)
        return asdict(probe)

    found: dict[str, Any] = remembered("probes", key, measured)
    return found


def _leaked(test: Split) -> int:
    """Test images that are in another split, too."""
    seen = {image.numpy().tobytes() for name in ("train", "validation") for image in read_split(DATA, name).images}
    return sum(image.numpy().tobytes() in seen for image in test.images)


if __name__ == "__main__":
    run(main)
