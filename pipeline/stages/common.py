"""What all stages share: how they are called, and how they fail."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.allocation import keep_freed_memory
from pipeline.components import nearest
from pipeline.errors import UserError

T = TypeVar("T")

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable",
    errno.EPERM: "make it writable",
}


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
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        sys.exit(f"error: {refused}")


def refusal(error: BaseException) -> str | None:
    """What the disk refused and how to mend it, in one line; None if the error is something else.

    safetensors wraps the system's error into a text of its own.
    """
    wrapped = re.search(r"\(os error (\d+)\)", str(error))
    code = int(wrapped[1]) if wrapped else getattr(error, "errno", None)
    remedy = _REMEDIES.get(code or 0)
    if remedy is None:
        return None
    where = getattr(error, "filename", None) or Path.cwd()
    return f"{where}: {os.strerror(code or 0)}; {remedy}, then run the same command again: nothing finished is lost"


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
