"""Progress is said every ten seconds, with the time that is left at the present pace."""

from __future__ import annotations

import logging

import pytest

from pipeline.progress import Progress, duration


def test_lines_come_at_ten_seconds_and_tell_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    progress = Progress("net · pgd", clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for second in range(1, 41):
            now = float(second)
            progress.reach(second / 40)
    assert [record.message for record in caplog.records] == [
        "net · pgd: 25 %, about 30.0 s left",
        "net · pgd: 50 %, about 20.0 s left",
        "net · pgd: 75 %, about 10.0 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (7290, "2 h 1 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
