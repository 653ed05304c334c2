"""Faults of others: a tracking server that goes, a second run, a worker that dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing

from pipeline.stages.ui import server
from tests.faults.laboratory import FaultError, Laboratory, must_be_clear
from tests.faults.outcome import Difference
from tests.pipeline.workspaces import free_port, output_of, stages, wait_for_end

PUBLISH = ("python", "-m", "pipeline.stages.publish")


def server_down(laboratory: Laboratory, share: float) -> Difference:
    """MLflow's server goes when this share of the runs is there; publishing again completes it."""
    with laboratory.trial("publish") as workspace:
        database = workspace.folder / "mlflow.db"
        uri = f"sqlite:///{database}"
        wanted = share * laboratory.undisturbed.runs.total()
        number = free_port()
        workspace.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{number}"
        if share:
            with server(uri, number) as (_, mlflow):
                process = workspace.start()
                while process.poll() is None and _runs(database) < wanted:
                    time.sleep(0.05)
                os.killpg(mlflow.pid, signal.SIGKILL)
                output = output_of(process)
        else:
            process = workspace.start()
            output = output_of(process)
        must_be_clear(process.returncode, output)
        if process.returncode == 0 and "nothing lost" not in output and share < 1:
            raise FaultError(f"nobody said that the server is gone:\n{output}")
        with server(uri, number):
            status, output = workspace.run(*PUBLISH)
            if status:
                raise FaultError(f"publishing again failed:\n{output}")
            return laboratory.complete(workspace)


def _runs(database: os.PathLike[str]) -> int:
    try:
        with closing(sqlite3.connect(f"file:{os.fspath(database)}?mode=ro", uri=True)) as connection:
            return int(connection.execute("select count(*) from tags where key = 'complete'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not there yet


def two_at_once(laboratory: Laboratory, stage: str) -> Difference:
    """Two ``dvc repro`` in one workspace: each ends well or with a clear error."""
    with laboratory.trial(stage) as workspace:
        processes = [workspace.start(), workspace.start()]
        outputs = [output_of(process) for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            must_be_clear(process.returncode, output)
        return laboratory.complete(workspace)


def dead_worker(laboratory: Laboratory, stage: str, module: str, model: str, seconds: float) -> Difference:
    """One of two processes is killed; the other does not wait for it for ever."""
    with laboratory.trial(stage) as workspace:
        workspace.edit_params(lambda params: params["compute"].update(accelerator="cpu", devices=2, strategy="ddp"))
        process = workspace.start("python", "-m", module, model)
        deadline = time.monotonic() + 300
        while len(workers := stages(process.pid)) < 2:
            if process.poll() is not None or time.monotonic() > deadline:
                raise FaultError(f"no second process:\n{process.communicate()[0]}")
            time.sleep(0.05)
        time.sleep(seconds)
        os.kill(max(workers), signal.SIGKILL)
        output = output_of(process, seconds=180)
        wait_for_end(process.pid)
        if process.returncode == 0:
            raise FaultError(f"a dead worker went unnoticed:\n{output}")
        workspace.edit_params(lambda params: params["compute"].update(devices=1, strategy="auto"))
        return laboratory.complete(workspace)
