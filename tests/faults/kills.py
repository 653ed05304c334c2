"""Kills at random moments of random stages."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from tests.faults.laboratory import Laboratory
from tests.faults.outcome import Difference
from tests.pipeline.workspaces import members, output_of, stages, wait_for_end

NAMED = ("attack", "train", "report", "publish", "data")  # these first, so that few kills cover them


@dataclass(frozen=True)
class Kill:
    """A signal to the stage alone, or to DVC and the stage, so many seconds after the stage was announced."""

    stage: str
    seconds: float
    signal: signal.Signals
    whole: bool

    def __str__(self) -> str:
        victim = "dvc repro" if self.whole else "the stage alone"
        return f"{self.signal.name} to {victim}, {self.seconds:.1f} s into {self.stage}"


def draw(laboratory: Laboratory, number: int, rng: random.Random) -> Iterator[Kill]:
    """So many kills over all stages, the signals and victims in turns."""
    names = sorted(laboratory.moments)
    rng.shuffle(names)
    names.sort(key=lambda name: NAMED.index(name.split("@")[0]) if name.split("@")[0] in NAMED else len(NAMED))
    first = {name.split("@")[0]: name for name in names}.values()
    names = [*first, *(name for name in names if name not in first)]
    for i in range(number):
        stage = names[i % len(names)]
        seconds = rng.uniform(0, laboratory.moments[stage].seconds)
        yield Kill(stage, seconds, (signal.SIGKILL, signal.SIGTERM)[i % 2], whole=i // 2 % 2 == 0)


def disturb(laboratory: Laboratory, kill: Kill) -> Difference:
    """Kill a run, let the next one finish, and compare."""
    with laboratory.trial(kill.stage) as workspace:
        process = workspace.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"Running stage '{kill.stage}'"):
                break
        time.sleep(kill.seconds)
        while process.poll() is None:
            victims = members(process.pid) if kill.whole else stages(process.pid)
            for pid in victims:
                with suppress(ProcessLookupError):  # it came to its end before
                    os.kill(pid, kill.signal)
            if victims:
                break
            time.sleep(0.05)  # between two stages
        output_of(process)
        wait_for_end(process.pid)
        return laboratory.complete(workspace)
