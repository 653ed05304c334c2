"""The memory of a cell does not grow with its images and strengths."""

from __future__ import annotations

import pytest

from benchmarks.peak import CELLS, peak

pytestmark = pytest.mark.slow


def test_ten_times_the_images_and_strengths_take_no_more_memory() -> None:
    least, most = peak(*min(CELLS)), peak(*max(CELLS))
    assert most < 1.05 * least
