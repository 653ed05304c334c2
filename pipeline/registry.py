"""MLflow's registry: a version for each architecture's weights and what they withstood.

A version points to a logged model, which has the weights and the numbers that MLflow can filter and order by.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CURRENT = "current"  # tag of versions and models, and alias of the newest version that has it


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a version holds.

    Attributes:
        name: the architecture's; its registered model is called ``<experiment>.<name>``.
        note: description in Markdown.
        metrics: what versions are ordered by; all finite.
        weights: safetensors files.
    """

    name: str
    note: str
    metrics: Mapping[str, float]
    weights: Sequence[Path]

    @property
    def content(self) -> list[object]:
        """Equal for equal versions: files by their contents."""
        return [self.name, self.note, dict(self.metrics), [(path.name, sha256(path)) for path in self.weights]]


def register(
    client: MlflowClient, experiment: tuple[str, str], model: Model, run_id: str, tags: dict[str, str]
) -> None:
    """Add a version that belongs to a run.

    Args:
        experiment: id and name.
        tags: of the version and the logged model.
    """
    from mlflow import entities

    logged = client.create_logged_model(
        experiment[0], name=model.name, source_run_id=run_id, tags=tags, model_type="classifier"
    )
    now = int(time.time() * 1000)
    metrics = [entities.Metric(key, value, now, 0, model_id=logged.model_id) for key, value in model.metrics.items()]
    client.log_batch(run_id, metrics)
    for path in model.weights:
        client.log_model_artifact(logged.model_id, str(path))
    client.finalize_logged_model(logged.model_id, entities.LoggedModelStatus.READY)
    name = f"{experiment[1]}.{model.name}"
    _make(client, name)
    source = f"models:/{logged.model_id}"
    # A server refuses a source whose model is not named as well; a database takes it.
    client.create_model_version(name, source, run_id, tags=tags, description=model.note, model_id=logged.model_id)


def _make(client: MlflowClient, name: str) -> None:
    from mlflow import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)


def forget(client: MlflowClient, experiment: tuple[str, str], run_id: str) -> None:
    """Remove what a publication that was killed had registered for its run."""
    for version in _versions(client, experiment):
        if version.run_id == run_id:
            client.delete_model_version(version.name, version.version)
    for logged in client.search_logged_models([experiment[0]], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(logged.model_id)


def mark(client: MlflowClient, experiment: tuple[str, str], current: Set[str]) -> None:
    """Tell versions and models of current runs from older ones; the alias ``current`` is the newest such version."""
    newest: dict[str, ModelVersion] = {}
    for version in sorted(_versions(client, experiment), key=lambda version: int(version.version)):
        wanted = str(version.run_id in current).lower()
        if version.tags.get(CURRENT) != wanted:
            client.set_model_version_tag(version.name, version.version, CURRENT, wanted)
        if version.run_id in current:
            newest[version.name] = version
    for name, version in newest.items():
        if CURRENT not in (version.aliases or ()):
            client.set_registered_model_alias(name, CURRENT, version.version)
    for logged in client.search_logged_models([experiment[0]], max_results=1000):
        wanted = str(logged.source_run_id in current).lower()
        if logged.source_run_id is not None and logged.tags.get(CURRENT) != wanted:
            client.set_logged_model_tags(logged.model_id, {CURRENT: wanted})


def _versions(client: MlflowClient, experiment: tuple[str, str]) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name LIKE '{experiment[1]}.%'", max_results=10_000))
