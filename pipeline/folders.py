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
