"""theory: what trajectories that cannot cross forbid, on toys of one and two dimensions."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pipeline import provenance
from pipeline.files import atomic_directory, digest, write_json
from pipeline.folders import THEORY
from pipeline.stages.common import run
from pipeline.store import STORE, locked
from pipeline.theory import annuli, expansion, ordering

CLAIMS = {module.__name__.rpartition(".")[2]: module for module in (annuli, expansion, ordering)}


def main() -> None:
    with locked("theory"), atomic_directory(THEORY) as folder:
        for name in CLAIMS:
            write_json(folder / f"{name}.json", _measured(name))


def _measured(name: str) -> dict[str, Any]:
    """From the store, or computed now."""
    code = provenance.code_hash([f"pipeline.theory.{name}"])
    path = STORE / "theory" / f"{name}-{digest([code, provenance.environment()])}.json"
    if not path.is_file():
        write_json(path, asdict(CLAIMS[name].measure()))
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


if __name__ == "__main__":
    run(main)
