"""``python -m tests.faults [kills] [--only WORD]``: disturb runs in every way; the next run must come to the same.

Every fault begins with a copy of a run as it was before one of its stages. It must end in success or one clear error,
and the run after it in the rows, weights and curves of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from tests.faults import company, disks, kills
from tests.faults.laboratory import FaultError, Laboratory
from tests.faults.outcome import Difference

Fault = Callable[[], Difference]


def main() -> None:
    arguments = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"  # side by side, more threads would only wait for each other
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        started = time.monotonic()
        laboratory = Laboratory(folder)
        rows, seconds = laboratory.undisturbed.rows.total(), time.monotonic() - started
        print(f"undisturbed: {rows} rows, {len(laboratory.moments)} stages, {seconds:.0f} s", flush=True)
        rng = random.Random(arguments.seed)
        faults = killing(laboratory, arguments.kills, rng)
        if not arguments.kills_only:
            faults |= others(laboratory, rng)
        chosen = {name: fault for name, fault in faults.items() if arguments.only in name}
        sys.exit(try_all(chosen, at_once=arguments.at_once))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("kills", type=int, nargs="?", default=20, help="how many kills at random moments")
    parser.add_argument("--kills-only", action="store_true", help="no other faults")
    parser.add_argument("--only", default="", help="faults with this word in their names")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="so many faults side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


def killing(laboratory: Laboratory, number: int, rng: random.Random) -> dict[str, Fault]:
    """Kills by what they are."""
    drawn = list(kills.draw(laboratory, number, rng))
    return {f"{i}: {kill}": partial(kills.disturb, laboratory, kill) for i, kill in enumerate(drawn, start=1)}


def others(laboratory: Laboratory, rng: random.Random) -> dict[str, Fault]:
    """All faults that are no kills."""
    attack, train = "attack@resnet", "train@resnet"
    found: dict[str, Fault] = {
        "flipped byte in outputs": lambda: disks.flipped_outputs(laboratory),
        "flipped byte in the store": lambda: disks.flipped_store(laboratory),
        "truncated checkpoints": lambda: disks.truncated_checkpoints(laboratory),
        "truncated dvc.lock": lambda: disks.truncated_dvc_lock(laboratory),
        "deleted caches": lambda: disks.deleted_caches(laboratory),
        "MLflow down at the start": lambda: company.server_down(laboratory, 0),
        "MLflow down in the middle": lambda: company.server_down(laboratory, 0.5),
        "MLflow down at the end": lambda: company.server_down(laboratory, 1),
        "two runs at once": lambda: company.two_at_once(laboratory, train),
        "a dead worker in training": lambda: company.dead_worker(
            laboratory, train, "pipeline.stages.train", "resnet", rng.uniform(0, 5)
        ),
        "a dead worker in an attack": lambda: company.dead_worker(
            laboratory, attack, "pipeline.stages.attack", "resnet", rng.uniform(0, 5)
        ),
    }
    if disks.can_mount():
        found["full disk in training"] = lambda: disks.full_disk(laboratory, train, 100_000)
        found["full disk in an attack"] = lambda: disks.full_disk(laboratory, attack, 300_000)
        found["full disk in the report"] = lambda: disks.full_disk(laboratory, "report", 300_000)
        found["full disk in publishing"] = lambda: disks.full_disk(laboratory, "publish", 600_000, "disk is full")
    else:
        print("skipped: full disks (only root may mount)", flush=True)
    if disks.can_mount() or not disks.is_root():
        found["unwritable output"] = lambda: disks.unwritable_output(laboratory, attack, "results")
        found["unwritable store"] = lambda: disks.unwritable_output(laboratory, attack, ".store/rows")
    return found


def try_all(faults: dict[str, Fault], *, at_once: int) -> int:
    """Try each, a line each as they end, and the sums; returns the exit status."""
    recovered = lost = 0
    with ThreadPoolExecutor(at_once) as pool:
        tried = [pool.submit(attempt, name, fault) for name, fault in faults.items()]
        for name, difference, words in (future.result() for future in as_completed(tried)):
            print(f"{name}: {words}", flush=True)
            recovered += difference is not None and not difference
            lost += 0 if difference is None else difference.rows_lost
    print(f"faults tried: {len(faults)}, recovered: {recovered}, rows lost: {lost}", flush=True)
    return int(recovered < len(faults))


def attempt(name: str, fault: Fault) -> tuple[str, Difference | None, str]:
    """The fault's name, what it left different (None: it ended neither well nor clearly), and that in words."""
    started = time.monotonic()
    try:
        difference = fault()
    except FaultError as error:
        return name, None, f"FAILED: {error} ({time.monotonic() - started:.0f} s)"
    words = f"NOT AS UNDISTURBED: {difference}" if difference else "as undisturbed"
    return name, difference, f"{words} ({time.monotonic() - started:.0f} s)"


if __name__ == "__main__":
    main()
