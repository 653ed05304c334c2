"""theory: what trajectories that cannot cross forbid, on toys of one and two dimensions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline import provenance
from pipeline.files import atomic_directory, digest, write_json
from pipeline.folders import THEORY
from pipeline.stages.common import run
from pipeline.store import locked, remembered
from pipeline.theory import annuli, expansion, ordering

CLAIMS = {module.__name__.rpartition(".")[2]: module for module in (annuli, expansion, ordering)}


def main() -> None:
    with locked("theory"), atomic_directory(THEORY) as folder:
        for name in CLAIMS:
            write_json(folder / f"{name}.json", _measured(name))


def _measured(name: str) -> dict[str, Any]:
    """From the store, or computed now."""
    code = provenance.code_hash([f"pipeline.theory.{name}"])
    key = f"{name}-{digest([code, provenance.environment()])}"
    found: dict[str, Any] = remembered("theory", key, lambda: asdict(CLAIMS[name].measure()))
    return found


if __name__ == "__main__":
    run(main)
