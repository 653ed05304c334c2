"""ui: MLflow's pages on this machine, with the links that open the curves; ``python -m pipeline.stages.ui [port]``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.errors import UserError
from pipeline.stages.common import run
from pipeline.tracking import ARTIFACTS, SETTINGS, Experiment, connect, is_server, links, tracking_uri

HOST = "127.0.0.1"
PORT = "5000"
START_SECONDS = 180


def main() -> None:
    experiment = connect(tracking_uri())
    if is_server(experiment.uri):
        show(experiment, experiment.uri)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would outlive us
    with server(experiment.uri, port()) as (base, process):
        show(experiment, base)
        print("Ctrl-C stops the server.", flush=True)
        with suppress(KeyboardInterrupt):
            process.wait()


def show(experiment: Experiment, base: str) -> None:
    """Print a line per page.

    Raises:
        UserError: there are none.
    """
    pages = links(experiment, base)
    if not pages:
        raise UserError(f"MLflow at {experiment.uri}: nothing is published yet; run `make repro` or `make publish`")
    width = max(map(len, pages))
    for name, address in pages.items():
        print(f"{name:{width}}  {address}", flush=True)


def port() -> int:
    """The argument, else ``MLFLOW_PORT``, else 5000; any free one if that is taken.

    Raises:
        UserError: it is no port.
    """
    given = next(iter(sys.argv[1:]), None) or os.environ.get("MLFLOW_PORT") or PORT
    if not (given.isdecimal() and int(given) < 2**16):
        raise UserError(f"{given!r} is no port; give a number below 65536")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, int(given)))
        except OSError:
            listener.bind((HOST, 0))
        chosen: int = listener.getsockname()[1]
    return chosen


@contextmanager
def server(uri: str, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server that answers, and its process, which ends with the block.

    Raises:
        UserError: it does not start; its own messages are on the terminal.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(ARTIFACTS), "--uvicorn-opts", "--log-level warning"]
    # The address may hold a password and is kept off the command line. Jobs are for language models.
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command,
        env=os.environ | SETTINGS | settings | {"PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        base = f"http://{HOST}:{port}"
        wait_for(f"{base}/health", process)
        yield base, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the address answers.

    Raises:
        UserError: the process ended, or the time is up.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise UserError(f"MLflow's server does not answer at {address}")


if __name__ == "__main__":
    run(main)
