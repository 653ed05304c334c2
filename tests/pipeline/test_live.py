"""Trainings that MLflow shows while they go on: told once, taken over by publishing, harmless without MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import tracking
from pipeline.live import METRICS, LiveRun
from pipeline.tracking import LIVE, Experiment, Metric, Record

KEY = "abc123"


@pytest.fixture(autouse=True)
def _tracked(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def train(epochs: Sequence[int], *, end: bool = True) -> LiveRun:
    """What Lightning calls in a training of these epochs, which is killed without ``end``."""
    live = LiveRun("cnn · training · seed 0", KEY, {"level": "training", "model": "cnn"})
    trainer: Any = SimpleNamespace(is_global_zero=True)
    live.on_train_start(trainer, None)  # type: ignore[arg-type]
    for epoch in epochs:
        trainer.callback_metrics = {name: value(name, epoch) for name in METRICS}
        live.on_train_epoch_end(trainer, SimpleNamespace(current_epoch=epoch))  # type: ignore[arg-type]
    if end:
        live.on_train_end(trainer, None)  # type: ignore[arg-type]
    return live


def value(name: str, epoch: int) -> float:
    return len(name) + epoch / 8


def told(experiment: Experiment, run_id: str) -> list[tuple[str, int, float]]:
    histories = (experiment.client.get_metric_history(run_id, name) for name in METRICS)
    return sorted((metric.key, metric.step, metric.value) for history in histories for metric in history)


def expected(epochs: int) -> list[tuple[str, int, float]]:
    return sorted((name, epoch, value(name, epoch)) for name in METRICS for epoch in range(epochs))


def runs(experiment: Experiment, query: str = "") -> list[Any]:
    return list(experiment.client.search_runs([experiment.id], query))


def record(epochs: int = 3, live: str | None = KEY) -> Record:
    metrics = [Metric(name, value(name, epoch), epoch) for name in METRICS for epoch in range(epochs)]
    return Record(
        name="cnn · training · seed 0",
        note="a note",
        tags={"level": "training", "model": "cnn"},
        params={"model.channels": "32"},
        metrics=[*metrics, Metric("final_test_accuracy", 0.96)],
        live=live,
    )


def publish(experiment: Experiment, *wanted: Record) -> tracking.Outcome:
    return tracking.publish(experiment, wanted, benchmark="b", origin={"commit": "abc"})


def test_epochs_are_shown_before_the_training_ends(experiment: Experiment) -> None:
    live = train(range(2), end=False)
    deadline = time.monotonic() + 30
    while not (found := runs(experiment)) or told(experiment, found[0].info.run_id) != expected(2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (run,) = found
    assert (run.info.status, run.info.run_name) == ("RUNNING", "cnn · training · seed 0")
    assert run.data.tags["level"] == "training"
    live.epochs.put(None)


def test_publishing_takes_the_live_run_over(experiment: Experiment) -> None:
    train(range(3))
    (live,) = runs(experiment)
    assert publish(experiment, record()) == tracking.Outcome(1, 0, 0)
    (run,) = runs(experiment)
    assert run.info.run_id == live.info.run_id
    assert (run.info.status, run.data.tags["complete"], run.data.tags["commit"]) == ("FINISHED", "true", "abc")
    assert run.data.params == {"model.channels": "32"}
    assert run.data.metrics["final_test_accuracy"] == 0.96
    assert told(experiment, run.info.run_id) == expected(3), "nothing twice"
    assert publish(experiment, record()) == tracking.Outcome(0, 1, 0)


def test_what_the_live_run_missed_is_added(experiment: Experiment) -> None:
    train(range(1))
    publish(experiment, record())
    (run,) = runs(experiment)
    assert told(experiment, run.info.run_id) == expected(3)


def test_a_resumed_training_goes_on_in_its_run(experiment: Experiment) -> None:
    """Killed after epoch 1 was told and before it was saved: it comes again."""
    train([0, 1])
    train([1, 2])
    (run,) = runs(experiment)
    assert told(experiment, run.info.run_id) == expected(3)


def test_a_published_run_is_taken_over_once(experiment: Experiment) -> None:
    train(range(3))
    publish(experiment, record())
    publish(experiment, record(4))
    assert len(runs(experiment)) == 2
    assert len(runs(experiment, "tags.current = 'true'")) == 1


def test_a_live_run_that_nobody_takes_is_no_longer_current(experiment: Experiment) -> None:
    train(range(1))
    publish(experiment, record(live="another"))
    (run,) = runs(experiment, f"tags.{LIVE} = '{KEY}'")
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")


def test_without_mlflow_training_goes_on_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        train(range(3))
    assert [record.getMessage() for record in caplog.records] == [
        "cnn · training · seed 0: MLflow does not show it live (MLflow at http://127.0.0.1:9 not reachable)"
    ]


def test_other_ranks_tell_nothing(experiment: Experiment) -> None:
    live = LiveRun("cnn", KEY, {})
    trainer: Any = SimpleNamespace(is_global_zero=False, callback_metrics=dict.fromkeys(METRICS, 0.0))
    live.on_train_start(trainer, None)  # type: ignore[arg-type]
    live.on_train_epoch_end(trainer, SimpleNamespace(current_epoch=0))  # type: ignore[arg-type]
    live.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert not runs(experiment)
