"""What all stages share: log files, and a launcher that starts a stage's processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.provenance import ROOT
from pipeline.settings import ComputeConfig
from pipeline.stages import launcher

STAGE = """
import logging, sys
from pipeline.errors import UserError
from pipeline.stages.common import run

def main():
    logging.getLogger("any").info("working")
    if sys.argv[1:] == ["user"]:
        raise UserError("params.yaml: seeds: wrong")
    if sys.argv[1:] == ["bug"]:
        raise KeyError("surprise")

run(main)
"""


def stage(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "attack.py").write_text(STAGE, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "attack.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
        capture_output=True,
        text=True,
    )


def log(folder: Path, name: str) -> list[str]:
    return (folder / "logs" / name).read_text(encoding="utf-8").splitlines()


def test_what_a_stage_says_is_in_its_log_with_times_run_after_run(tmp_path: Path) -> None:
    for _ in range(2):
        assert stage(tmp_path, "cnn").stdout == "working\n"
    lines = [line.split(" ", 2)[2] for line in log(tmp_path, "attack-cnn.log")]
    assert lines == ["--- attack cnn", "working"] * 2


def test_an_error_is_in_the_log_too(tmp_path: Path) -> None:
    finished = stage(tmp_path, "user")
    assert (finished.returncode, finished.stderr) == (1, "error: params.yaml: seeds: wrong\n")
    assert log(tmp_path, "attack-user.log")[-1].endswith(" error: params.yaml: seeds: wrong")


def test_a_bug_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    assert stage(tmp_path, "bug").stderr.count("Traceback") == 1
    assert log(tmp_path, "attack-bug.log")[-1] == "KeyError: 'surprise'"


def test_each_process_has_a_log_of_its_own(tmp_path: Path) -> None:
    stage(tmp_path, "cnn", RANK="0")
    stage(tmp_path, "cnn", RANK="1")
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"attack-cnn.log", "attack-cnn-rank1.log"}


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    stage(tmp_path, "../../etc/x")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["attack-..-..-etc-x.log"]


def compute(command: str | None) -> ComputeConfig:
    return ComputeConfig(
        accelerator="cpu", devices=1, num_nodes=1, strategy="auto", batch_size="auto", launcher=command, live=False
    )


@pytest.mark.parametrize(("command", "launched"), [(None, False), ("some-launcher", True)], ids=["none", "launched"])
def test_a_stage_without_a_launcher_or_started_by_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, command: str | None, launched: bool
) -> None:
    become: list[str] = []
    monkeypatch.setattr(os, "execvpe", lambda file, *_: become.append(file))
    if launched:
        monkeypatch.setenv(launcher.LAUNCHED, "1")
    launcher.launch(compute(command))
    assert become == []
    monkeypatch.delenv(launcher.LAUNCHED, raising=False)
    launcher.launch(compute("some-launcher"))
    assert become == ["some-launcher"]  # or the list would prove nothing


def test_a_launcher_that_does_not_start_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"compute.launcher: 'no-such-command' does not start \(No such file"):
        launcher.launch(compute("no-such-command --with arguments"))


def test_the_launcher_gets_the_stage_as_its_command(tmp_path: Path) -> None:
    """Here the launcher is a Python that prints its arguments, in a process that calls itself the stage ``attack``."""
    code = (
        "import sys; from pipeline.stages import launcher; from tests.pipeline.test_stages import compute\n"
        "sys.argv = ['.../attack.py', 'cnn']\n"
        f"launcher.launch(compute('''{sys.executable} show.py \"two words\"'''))\n"
        "print('not reached')\n"
    )
    show = f"import json, os, sys; print(json.dumps([sys.argv, os.environ['{launcher.LAUNCHED}']]))"
    (tmp_path / "show.py").write_text(show, encoding="utf-8")
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    words, mark = json.loads(output)
    assert words == ["show.py", "two words", sys.executable, "-m", "pipeline.stages.attack", "cnn"]
    assert mark == "1"
