"""What all stages share: how they are called, and how they fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from pipeline.allocation import keep_freed_memory
from pipeline.components import nearest
from pipeline.errors import UserError

T = TypeVar("T")


def run(main: Callable[[], None]) -> None:
    """Run a stage; an error that is the user's to mend becomes one line and exit status 1."""
    # Lightning takes note of SIGTERM and goes on predicting, unless somebody before it has said what it means.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def is_first_rank() -> bool:
    """Whether this process writes for its job: Lightning, torchrun and SLURM tell the rank in these variables."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def pick(entries: dict[str, T], arguments: list[str], section: str) -> T:
    """The entry of params.yaml that the stage's only argument names.

    Raises:
        UserError: there is no argument, or no such entry.
    """
    if len(arguments) != 2 or arguments[1] not in entries:
        given = " ".join(arguments[1:]) or "nothing"
        raise UserError(f"params.yaml: {section} has no entry {given!r}; {nearest(given, entries)}")
    return entries[arguments[1]]
