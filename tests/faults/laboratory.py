"""The undisturbed run, the state before each of its stages, and trials that begin there."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.outcome import Difference, Outcome, compare, is_clear, read
from tests.pipeline.workspaces import Workspace


class FaultError(AssertionError):
    """A fault ended neither in success nor in one clear error, or left other results."""


@dataclass(frozen=True)
class Moment:
    """A stage of the undisturbed run: the workspace when it began, and how long it took, in seconds."""

    stage: str
    before: Workspace
    seconds: float


class Laboratory:
    """Trials on copies of one undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = Workspace.make(folder / "undisturbed")
        self.moments = {moment.stage: moment for moment in self._observe()}
        self.undisturbed: Outcome = read(self.finished.folder)
        self._numbers = itertools.count()

    def _observe(self) -> Iterator[Moment]:
        """Run undisturbed; a copy is taken when a stage is announced, seconds before it writes anything."""
        process = self.finished.start()
        assert process.stdout is not None
        begun: list[tuple[str, float]] = []
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Running stage"):
                begun.append((line.split("'")[1], time.monotonic()))
                self.finished.copy(self.folder / "before" / begun[-1][0])
        if process.wait() != 0:
            raise FaultError(f"the undisturbed run failed:\n{''.join(lines)}")
        ends = [start for _, start in begun[1:]] + [time.monotonic()]
        for (stage, start), end in zip(begun, ends, strict=True):
            yield Moment(stage, Workspace(self.folder / "before" / stage), end - start)

    @contextmanager
    def trial(self, before: str | None = None) -> Iterator[Workspace]:
        """A copy of the workspace as it was before a stage, or when all was done; removed afterwards."""
        source = self.finished if before is None else self.moments[before].before
        folder = self.folder / f"trial-{next(self._numbers)}"
        try:
            yield source.copy(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def complete(self, workspace: Workspace) -> Difference:
        """Let ``dvc repro`` finish, and compare.

        Raises:
            FaultError: it does not finish.
        """
        status, output = workspace.run()
        if status != 0:
            raise FaultError(f"the next run failed:\n{output}")
        return compare(read(workspace.folder), self.undisturbed)


def must_be_clear(status: int, output: str) -> None:
    """Success or a clear error.

    Raises:
        FaultError: neither.
    """
    if not is_clear(status, output):
        raise FaultError(f"exit status {status} without a clear error:\n{output}")


def must_fail_clearly(status: int, output: str, *words: str) -> None:
    """A clear error with these words.

    Raises:
        FaultError: success, or an error of another sort.
    """
    must_be_clear(status, output)
    if status == 0 or not all(word in output for word in words):
        raise FaultError(f"exit status {status}, expected an error about {words}:\n{output}")
