"""Freed memory is reused instead of being asked for again."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from pipeline.allocation import keep_freed_memory
{call}
def step():
    for _ in range(20):
        torch.ones(10_000_000)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(call: str) -> int:
    code = _FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_reused() -> None:
    """40 MB are beyond what glibc ever keeps by itself: each of the 20 rounds touches 10,000 fresh pages."""
    assert _page_faults("pass") > 20 * 5000
    assert _page_faults("keep_freed_memory()") < 1000
