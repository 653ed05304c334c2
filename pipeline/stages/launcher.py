"""A stage whose processes are started by torchrun or SLURM instead of Lightning."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings import ComputeConfig

LAUNCHED = "ODE_ROBUSTNESS_LAUNCHED"  # set for the processes that a launcher starts


def launch(compute: ComputeConfig) -> None:
    """Become the command that starts this stage's processes, if params.yaml names one and it has not started them.

    Raises:
        UserError: there is no such command.
    """
    if compute.launcher is None or LAUNCHED in os.environ:
        return
    module = f"pipeline.stages.{Path(sys.argv[0]).stem}"
    command = [*shlex.split(compute.launcher), sys.executable, "-m", module, *sys.argv[1:]]
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, os.environ | {LAUNCHED: "1"})
    except OSError as error:
        raise UserError(
            f"params.yaml: compute.launcher: {command[0]!r} does not start ({error.strerror}); name a command such as "
            "`torchrun --standalone --nproc-per-node 8 --no-python`, or null"
        ) from error
