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

LOGS = Path("logs")

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable",
    errno.EPERM: "make it writable",
}


def run(main: Callable[[], None]) -> None:
    """Run a stage; an error that is the user's to mend becomes one line and exit status 1.

    What it says stands on the terminal and, with times, in its log file.
    """
    # Lightning takes note of SIGTERM and goes on predicting, unless somebody before it has said what it means.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.raiseExceptions = False  # a full disk stops the log, not the stage
    try:
        _log_to_file()
        main()
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else refusal(error)
        if text is None:
            _to_file("Traceback", exc_info=error)
            raise
        _to_file("error: %s", text)
        sys.exit(f"error: {text}")


def _log_to_file() -> None:
    """``logs/<stage>-<model>.log``, one for each process of the stage; runs are added one after another."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    words = [Path(sys.argv[0]).stem, *sys.argv[1:], *([] if rank == "0" else [f"rank{rank}"])]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words))[:100]
    path = LOGS / f"{name}.log"
    path.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    _to_file("--- %s", " ".join(words))


def _to_file(text: str, *arguments: object, exc_info: BaseException | None = None) -> None:
    """What the terminal shows anyway, or need not show."""
    record = logging.LogRecord("pipeline", logging.INFO, "", 0, text, arguments, None)
    if exc_info is not None:
        record.exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


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
