"""The registry holds one current version for each architecture, however often and however badly one publishes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.config import load_params
from pipeline.records import records
from pipeline.registry import Model
from pipeline.report.inputs import read_benchmark
from pipeline.stages.ui import server
from pipeline.tracking import Experiment, Metric, Record
from tests.pipeline.synthetic import write_benchmark
from tests.pipeline.workspaces import free_port


@pytest.fixture(autouse=True)
def _weights(uri: str) -> None:  # noqa: ARG001 the test's folder is where the weights are
    Path("seed-0.safetensors").write_bytes(b"weights")


def record(name: str, area: float) -> Record:
    return Record(
        name=name,
        note=f"about {name}",
        tags={"level": "architecture", "model": name},
        params={},
        metrics=[Metric("any", area)],
        model=Model(name=name, note="a note", metrics={"linf/area": area}, weights=[Path("seed-0.safetensors")]),
    )


def publish(experiment: Experiment, *wanted: Record) -> None:
    tracking.publish(experiment, wanted, benchmark="b", origin={"commit": "abc"})


def versions(experiment: Experiment, name: str) -> list[tuple[int, str, bool]]:
    """Number, tag ``current``, and whether the alias is its."""
    found = experiment.client.search_model_versions(f"name = 'test.{name}'")
    alias = experiment.client.get_registered_model(f"test.{name}").aliases.get("current")
    return sorted((int(v.version), v.tags["current"], str(alias) == str(v.version)) for v in found)


def ranking(experiment: Experiment, metric: str) -> list[str]:
    """The query of docs/mlflow.md."""
    found: Any = experiment.client.search_logged_models(
        [experiment.id], "tags.current = 'true'", order_by=[{"field_name": f"metrics.{metric}", "ascending": False}]
    )
    return [model.name for model in found]


def test_a_version_has_weights_numbers_and_a_note(experiment: Experiment) -> None:
    publish(experiment, record("cnn", 0.25))
    client = experiment.client
    version: Any = client.get_model_version_by_alias("test.cnn", "current")
    assert (version.description, version.tags["commit"], version.tags["model"]) == ("a note", "abc", "cnn")
    logged: Any = client.get_logged_model(version.source.removeprefix("models:/"))
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("linf/area", 0.25)]
    assert [file.path for file in client.list_logged_model_artifacts(logged.model_id)] == ["seed-0.safetensors"]
    assert client.get_run(version.run_id).info.run_name == "cnn"


@pytest.mark.slow  # a server takes as long to start as all other tests here together
def test_a_server_holds_what_a_database_would(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    with server(uri, free_port()) as (base, _):
        experiment = tracking.connect(base)
        for _ in range(2):
            publish(experiment, record("cnn", 0.25))
        assert versions(experiment, "cnn") == [(1, "true", True)]
        assert ranking(experiment, "linf/area") == ["cnn"]
        version: Any = experiment.client.get_model_version_by_alias("test.cnn", "current")
        files = experiment.client.list_logged_model_artifacts(version.source.removeprefix("models:/"))
        assert [file.path for file in files] == ["seed-0.safetensors"]


def test_publishing_twice_adds_no_version(experiment: Experiment) -> None:
    for _ in range(2):
        publish(experiment, record("cnn", 0.25), record("resnet", 0.5))
    assert versions(experiment, "cnn") == versions(experiment, "resnet") == [(1, "true", True)]


def test_new_results_are_a_new_version_and_old_ones_come_back(experiment: Experiment) -> None:
    publish(experiment, record("cnn", 0.25))
    publish(experiment, record("cnn", 0.3))
    assert versions(experiment, "cnn") == [(1, "false", False), (2, "true", True)]
    publish(experiment, record("cnn", 0.25))
    assert versions(experiment, "cnn") == [(1, "true", True), (2, "false", False)]


def test_other_weights_are_a_new_version(experiment: Experiment) -> None:
    publish(experiment, record("cnn", 0.25))
    Path("seed-0.safetensors").write_bytes(b"others")
    publish(experiment, record("cnn", 0.25))
    assert versions(experiment, "cnn") == [(1, "false", False), (2, "true", True)]


def test_the_most_robust_comes_first(experiment: Experiment) -> None:
    publish(experiment, record("cnn", 0.9))
    publish(experiment, record("cnn", 0.25), record("resnet", 0.5), record("neural_ode", 0.125))
    assert ranking(experiment, "linf/area") == ["resnet", "cnn", "neural_ode"]


@pytest.mark.parametrize(
    "killed_at", ["create_logged_model", "log_model_artifact", "create_model_version", "set_terminated"]
)
def test_a_killed_publication_leaves_one_version(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    original = getattr(experiment.client, killed_at)

    def killed(*arguments: Any, **keywords: Any) -> None:
        original(*arguments, **keywords)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment.client, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            publish(experiment, record("cnn", 0.25))
    publish(experiment, record("cnn", 0.25))
    ((_, current, has_alias),) = versions(experiment, "cnn")
    assert (current, has_alias) == ("true", True)
    assert ranking(experiment, "linf/area") == ["cnn"]
    assert len(experiment.client.search_logged_models([experiment.id])) == 1


def test_versions_of_other_experiments_are_left_alone(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(experiment, record("cnn", 0.25))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    other = tracking.connect(experiment.uri)
    publish(other, record("cnn", 0.5))
    publish(other)
    assert versions(experiment, "cnn") == [(1, "true", True)]


def test_a_benchmark_registers_each_architecture_with_its_worst_cases(tmp_path: Path) -> None:
    write_benchmark(tmp_path, models=["cnn", "neural_ode"], attacks=["fgsm", "pgd"], seeds=[0, 1], n_images=20)
    benchmark = read_benchmark(load_params(tmp_path / "params.yaml"), tmp_path)
    found = {entry.model.name: entry.model for entry in records(benchmark, tmp_path) if entry.model is not None}
    assert list(found) == ["cnn", "neural_ode"]
    curve = benchmark.results["cnn"]["pgd"].curve
    metrics = found["cnn"].metrics
    assert 0 < metrics["worst_case_linf/area_under_curve"] < 1
    assert 0.9 < metrics["test_accuracy"] <= 1
    for epsilon in curve["epsilon"]:
        assert f"worst_case_linf/accuracy_at_{epsilon:g}" in metrics


def test_the_content_of_a_version_is_part_of_its_run(experiment: Experiment) -> None:
    del experiment
    plain = record("cnn", 0.25)
    assert plain.model is not None
    assert plain.hash != replace(plain, model=None).hash
    assert plain.hash != replace(plain, model=replace(plain.model, metrics={"linf/area": 0.26})).hash
    assert plain.hash == record("cnn", 0.25).hash
