"""A workspace of its own for ``dvc repro``: a copy of the sources with the profile ``tiny`` and a store of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.provenance import ROOT
from pipeline.workspace import make_workspace

PATIENCE = 1800  # seconds until a command counts as hanging, also on a slow and busy machine


class Workspace:
    """A copy of the sources with tiny parameters and a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):  # the workspace's own sources are what runs
            self.environment.pop(name, None)

    @classmethod
    def make(cls, folder: Path) -> Workspace:
        (folder / ".store").mkdir(parents=True)
        make_workspace(ROOT, ROOT / "profiles/tiny.yaml", folder)
        return cls(folder)

    def copy(self, folder: Path) -> Workspace:
        """As it is now, be it in the middle of a run; without DVC's notes on who is running."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("tmp", "__pycache__"), dirs_exist_ok=True)
        return Workspace(folder)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """The command, by default ``dvc repro``, in a process group of its own."""
        return subprocess.Popen(
            command or ("dvc", "repro"),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(*command)
        output = output_of(process)
        return process.returncode, output

    def repro(self, *targets: str) -> set[str]:
        """Run and return the names of the stages that ran."""
        status, output = self.run("dvc", "repro", *targets)
        assert status == 0, output
        return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}

    def rows(self, model: str, attack: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "results" / model / f"{attack}.parquet")

    def edit_params(self, change: Any) -> None:
        yaml, path = YAML(), self.folder / "params.yaml"
        params = yaml.load(path)
        change(params)
        yaml.dump(params, path)


def same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left.drop(columns="seconds"), right.drop(columns="seconds"))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def output_of(process: subprocess.Popen[str], *, seconds: float = PATIENCE) -> str:
    """What a process of :meth:`Workspace.start` prints until its end; one that hangs is killed with its group.

    Raises:
        AssertionError: the time is up.
    """
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"no end after {seconds:g} s:\n{process.communicate()[0]}") from None


def members(group: int) -> list[int]:
    """Ids of the living processes of a group."""
    found = subprocess.run(["pgrep", "-g", str(group)], check=False, capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def stages(group: int) -> list[int]:
    """Those of them that are a stage's, workers included."""
    found = subprocess.run(["pgrep", "-g", str(group), "-f", "pipeline.stages"], check=False, capture_output=True)
    return [int(line) for line in found.stdout.split()]


def wait_for_end(group: int, *, seconds: float = 60) -> None:
    """Return when no process of the group is left.

    Raises:
        AssertionError: the time is up.
    """
    deadline = time.monotonic() + seconds
    while members(group):
        assert time.monotonic() < deadline, "a process outlives the signal"
        time.sleep(0.1)
