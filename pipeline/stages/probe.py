"""probe: what the alarms rest on, measured on every seed of every model."""

from __future__ import annotations

import json
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
from pipeline.store import STORE, locked

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
    path = STORE / "probes" / f"{key}.json"
    if not path.is_file():
        subject = Subject(**{name: target.net for name, target in targets.items()})
        probe = measure(subject, first_examples(split, params.probe.n_images), params.probe, seed=params.evaluate.seed)
        write_json(path, asdict(probe))
        logger.info("%s seed %d: probed", model.name, seed)
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def _leaked(test: Split) -> int:
    """Test images that are in another split, too."""
    seen = {image.numpy().tobytes() for name in ("train", "validation") for image in read_split(DATA, name).images}
    return sum(image.numpy().tobytes() in seen for image in test.images)


if __name__ == "__main__":
    run(main)
