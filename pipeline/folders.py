"""Where the stages' outputs lie, relative to the folder of params.yaml."""

from pathlib import Path

DATA = Path("data/splits")
CHECKPOINTS = Path("checkpoints")
REFINEMENT = Path("refinement")
RESULTS = Path("results")
TRANSFER = Path("transfer")
PROBES = Path("probes")
REPORTS = Path("reports")
THEORY = Path("theory")
TRAJECTORIES = Path("trajectories")


def examples_prefix(seed: int, epsilon: float | None) -> str:
    """What the tensors of a seed at a strength (None: a minimal attack's) are called in the files of kept images."""
    return f"seed{seed}/eps{'minimal' if epsilon is None else repr(epsilon)}"
