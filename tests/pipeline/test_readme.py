"""Every command that the README names is there; what is cheap is run, what takes minutes is asked for its recipe."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.provenance import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = str(Path(sys.executable).parent)
# What is run for real, in this checkout, because it changes nothing.
CHEAP = {
    "python -m pipeline list": "architectures",
    "python -m pipeline explain adef": "Alaifari",
    "python -m pipeline check": "params.yaml is valid",
    "make help": "make repro",
    "make status": "time left",
}
# What is there, though asking for its help or recipe is all that can be afforded here.
LONG = {
    "python -m benchmarks.strength": "--help",
}
# `make test` and `make repro` themselves are run by .ci/run.
OTHERS = {
    "dvc repro": "run by tests/pipeline/test_repro.py",
    "dvc init --no-scm": "run by `make repro` without git",
    "dvc config --local core.no_scm true": "run by `make repro` without git",
}


def named() -> list[str]:
    """Commands in fences and between backticks, without comments and line breaks."""
    fenced = [
        line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    found = (" ".join(text.split()) for text in fenced + inline)
    return sorted({text for text in found if re.match(r"(make|python -m|dvc) ", text)})


def run(command: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    if words[0] == "make":
        words[1:1] = ["-o", ".venv/.installed"]  # the environment of these tests, whatever it is
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(words, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


COMMANDS = named()


def test_the_readme_names_the_two_commands() -> None:
    assert {"make repro", "make test"} <= set(COMMANDS)
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_there(command: str) -> None:
    if command in CHEAP or command in LONG or command in OTHERS:
        return
    target, *settings = command.removeprefix("make ").split()
    assert command.startswith("make "), f"{command}: say in this file how it is tested"
    for setting in settings:
        key, _, value = setting.partition("=")
        assert (key, value) == ("PROFILE", "…") or (ROOT / f"profiles/{value}.yaml").is_file(), setting
    asked = run(f"make -n {target}")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout


@pytest.mark.parametrize(("command", "words"), CHEAP.items())
def test_a_cheap_command_says_what_it_should(command: str, words: str) -> None:
    if command == "make status" and not (ROOT / ".venv/bin/python").exists():
        pytest.skip("make's environment is not that of the tests")
    finished = run(command)
    assert finished.returncode == 0, finished.stderr
    assert words in finished.stdout


@pytest.mark.parametrize(("command", "flag"), LONG.items())
def test_a_long_command_has_help(command: str, flag: str) -> None:
    assert run(f"{command} {flag}").returncode == 0


@pytest.mark.parametrize("profile", sorted(set(re.findall(r"`([a-z0-9_]+)`:", README))))
def test_a_profile_that_the_readme_describes_is_there(profile: str) -> None:
    assert (ROOT / f"profiles/{profile}.yaml").is_file()


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
