"""Two processes come to the rows of one, however they are started; a worker that dies ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.pipeline.workspaces import Workspace, free_port, output_of, same_rows, stages, wait_for_end

pytestmark = pytest.mark.slow

TRAIN, ATTACK = "pipeline.stages.train", "pipeline.stages.attack"
MODEL = "neural_ode"
ATTACKS = ("fgsm", "pgd")


def narrow(params: Any) -> None:
    """30 images in chunks of 7: five, the last one short; one network, trained for a short time."""
    params["evaluate"]["chunk_size"] = 7
    params["train"]["epochs"] = 4


def spread(workspace: Workspace, **compute: Any) -> None:
    workspace.edit_params(lambda params: params["compute"].update(accelerator="cpu", strategy="ddp", **compute))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One process trained and attacked the model."""
    made = Workspace.make(tmp_path_factory.mktemp("devices") / "one")
    made.edit_params(narrow)
    made.repro("data")
    finish(made, TRAIN)
    finish(made, ATTACK)
    return made


def finish(workspace: Workspace, stage: str) -> None:
    status, output = workspace.run("python", "-m", stage, MODEL)
    assert status == 0, output


def fresh(trained: Workspace, folder: Path, *, weights: bool = True) -> Workspace:
    """The same data, and the same weights if wanted, but no rows."""
    copied = trained.copy(folder)
    for name in (".store", "results", *([] if weights else ["checkpoints"])):
        subprocess.run(["rm", "-rf", str(copied.folder / name)], check=True)
    (copied.folder / ".store").mkdir()
    return copied


def stored(workspace: Workspace) -> list[str]:
    """Names of the stored units: chunk, strength and part."""
    return sorted(path.name for path in workspace.folder.glob(".store/rows/*/*.parquet"))


def assert_equal_rows(left: Workspace, right: Workspace) -> None:
    for attack in ATTACKS:
        same_rows(left.rows(MODEL, attack), right.rows(MODEL, attack))
        rows = left.rows(MODEL, attack)
        assert not rows.duplicated(["index", "epsilon", "draw", "seed"]).any()
    assert stored(left) == stored(right), "each unit once, in one part"


def test_two_processes_attack_each_example_once_with_the_rows_of_one(trained: Workspace, tmp_path: Path) -> None:
    two = fresh(trained, tmp_path / "two")
    spread(two, devices=2)
    finish(two, ATTACK)
    assert_equal_rows(two, trained)


def test_a_launcher_named_in_params_starts_the_processes(trained: Workspace, tmp_path: Path) -> None:
    two = fresh(trained, tmp_path / "two")
    spread(two, devices=2, launcher="torchrun --standalone --nproc-per-node 2 --no-python")
    finish(two, ATTACK)
    assert_equal_rows(two, trained)
    assert (two.folder / f"logs/attack-{MODEL}-rank1.log").is_file(), "the second process"


def test_a_process_without_work_writes_nothing_and_ends(trained: Workspace, tmp_path: Path) -> None:
    """All images in one chunk, so that the second process has none."""
    one, two = (fresh(trained, tmp_path / name) for name in ("one", "two"))
    for workspace in (one, two):
        workspace.edit_params(lambda params: params["evaluate"].update(chunk_size=30))
    spread(two, devices=2)
    finish(one, ATTACK)
    finish(two, ATTACK)
    assert_equal_rows(two, one)


def test_two_processes_train_as_one_at_equal_global_batch_size(trained: Workspace, tmp_path: Path) -> None:
    """Of all batches' gradients, half comes from either process: equal up to the rounding of sums.

    Adam divides small gradients by their own size, so rounding grows with the steps: to 7e-5 of the squared weights in
    these, where ranks that get the same share of each batch end at 1e-2.
    """
    two = fresh(trained, tmp_path / "two", weights=False)
    spread(two, devices=2)
    finish(two, TRAIN)
    name = f"checkpoints/{MODEL}/seed-0"
    left, right = (load_file(workspace.folder / f"{name}.safetensors") for workspace in (trained, two))
    apart = sum(float((weights - right[key]).square().sum()) for key, weights in left.items())
    reports = [pd.read_json(workspace.folder / f"{name}.json", typ="series") for workspace in (trained, two)]
    assert apart < 1e-3 * sum(float(weights.square().sum()) for weights in left.values())
    ours, theirs = ([epoch["train_loss"] for epoch in report["history"]] for report in reports)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours == pytest.approx(theirs, rel=5e-3)


@contextmanager
def two_hosts() -> Iterator[list[tuple[list[str], str, str]]]:
    """Commands to enter each of two hosts, its address and its network device: namespaces, or this host twice."""
    hosts = [(f"ode-bench-{os.getpid()}-{i}", f"10.213.77.{i + 1}", f"veth{os.getpid() % 10_000}n{i}") for i in (0, 1)]
    with ExitStack() as stack:

        def ip(*arguments: str) -> bool:
            return subprocess.run(["ip", *arguments], check=False, capture_output=True).returncode == 0

        if os.geteuid() or not all(ip("netns", "add", name) for name, _, _ in hosts):
            yield [([], "127.0.0.1", "lo"), ([], "127.0.0.1", "lo")]
            return
        for name, _, _ in hosts:
            stack.callback(ip, "netns", "delete", name)
        assert ip("link", "add", hosts[0][2], "type", "veth", "peer", "name", hosts[1][2])
        for name, address, device in hosts:
            assert ip("link", "set", device, "netns", name)
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            assert ip("-n", name, "link", "set", device, "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        yield [(["ip", "netns", "exec", name], address, device) for name, address, device in hosts]


def test_two_hosts_come_to_the_rows_of_one(trained: Workspace, tmp_path: Path) -> None:
    """torchrun on each, with a shared folder."""
    two = fresh(trained, tmp_path / "two")
    spread(two, devices=1, num_nodes=2)
    port = free_port()
    with two_hosts() as hosts:
        processes = []
        for rank, (enter, _, device) in enumerate(hosts):
            two.environment["GLOO_SOCKET_IFNAME"] = device
            launch = [*enter, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
            launch += [f"--node-rank={rank}", f"--master-addr={hosts[0][1]}", f"--master-port={port}"]
            processes.append(two.start(*launch, "-m", ATTACK, MODEL))
        for process in processes:
            output = output_of(process)
            assert process.returncode == 0, output
    assert_equal_rows(two, trained)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_dies_ends_the_run_and_the_next_completes_it(
    trained: Workspace, tmp_path: Path, rank: int
) -> None:
    two = fresh(trained, tmp_path / "two")
    two.edit_params(lambda params: params["attacks"]["pgd"].update(steps=500))
    spread(two, devices=2)
    process = two.start("python", "-m", ATTACK, MODEL)
    deadline = time.monotonic() + 300
    while not stored(two):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = sorted(stages(process.pid))
    assert len(workers) == 2
    os.kill(workers[rank], signal.SIGKILL)
    output_of(process, seconds=120)
    assert process.returncode != 0
    wait_for_end(process.pid, seconds=120)
    two.edit_params(lambda params: params["attacks"]["pgd"].update(steps=5))
    finish(two, ATTACK)
    for attack in ATTACKS:
        same_rows(two.rows(MODEL, attack), trained.rows(MODEL, attack))
