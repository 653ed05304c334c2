"""An MLflow store of a test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import Experiment


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes longer than all tests of a file."""
    tracking._skip_fsync()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}").client.delete_experiment("1")
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of it in the test's folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def experiment(uri: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment ``test`` in it."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    return tracking.connect(uri)
