"""Publishing: what lands in the store, that it lands there once, and that nothing is lost or left half-done."""

from __future__ import annotations

import ast
import base64
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import statistics, tracking
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.provenance import ROOT
from pipeline.records import flat, records, views
from pipeline.report.inputs import Benchmark, read_benchmark
from pipeline.report.style import line_style
from pipeline.stages import publish as stage
from pipeline.stages import ui
from pipeline.tracking import Chart, Experiment, Metric, Outcome, Record, UnreachableError, View
from tests.pipeline.synthetic import write_benchmark
from tests.pipeline.workspaces import free_port

MODELS, ATTACKS, SEEDS = ("cnn", "neural_ode"), ("fgsm", "adef"), (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def _no_fsync() -> None:
    tracking._skip_fsync()


@pytest.fixture(scope="module")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    write_benchmark(root, models=MODELS, attacks=ATTACKS, seeds=SEEDS, n_images=20)
    (root / "reports/figures").mkdir(parents=True)
    for name in ("index.html", "summary.md", "figures/curve-fgsm.png", "figures/examples-adef-cnn.png"):
        (root / "reports" / name).write_text(name)
    return root


@pytest.fixture(scope="module")
def benchmark(benchmark_root: Path) -> Benchmark:
    root = benchmark_root
    return read_benchmark(load_params(root / "params.yaml"), root)


def record(name: str, value: float = 0.5, artifacts: dict[str, list[Path]] | None = None) -> Record:
    return Record(
        name=name,
        note=f"about {name}",
        tags={"level": "cell", "model": name},
        params={"model.channels": "32"},
        metrics=[Metric("robust_accuracy", value, step) for step in range(3)],
        artifacts=artifacts or {},
    )


def publish(experiment: Experiment, *wanted: Record) -> Outcome:
    return tracking.publish(experiment, wanted, benchmark="set 1x1x1", origin={"commit": "abc"})


def active_runs(experiment: Experiment) -> list[Any]:
    return list(experiment.client.search_runs([experiment.id]))


def current(experiment: Experiment) -> list[str]:
    """Names of the runs of the default view."""
    found = experiment.client.search_runs([experiment.id], "tags.current = 'true'")
    return sorted(run.info.run_name for run in found)


def test_a_run_holds_its_record(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_bytes(b"picture")
    assert publish(experiment, record("a", 0.25, {"figures": [tmp_path / "curve.png"]})) == Outcome(1, 0, 0)
    (run,) = active_runs(experiment)
    assert run.info.run_name == "a"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.channels": "32"}
    expected = {"level": "cell", "model": "a", "commit": "abc", "current": "true", "mlflow.note.content": "about a"}
    assert expected.items() <= run.data.tags.items()
    history = experiment.client.get_metric_history(run.info.run_id, "robust_accuracy")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.25), (1, 0.25), (2, 0.25)]
    stored = experiment.client.download_artifacts(run.info.run_id, "figures/curve.png", str(tmp_path))
    assert Path(stored).read_bytes() == b"picture"


def test_long_curves_are_stored_whole(experiment: Experiment) -> None:
    """MLflow takes a thousand metrics a call."""
    long = replace(record("a"), metrics=[Metric("train_loss", 1.0, step) for step in range(2100)])
    publish(experiment, long)
    (run,) = active_runs(experiment)
    assert len(experiment.client.get_metric_history(run.info.run_id, "train_loss")) == 2100


def test_publishing_twice_adds_nothing(experiment: Experiment) -> None:
    assert publish(experiment, record("a"), record("b")) == Outcome(2, 0, 0)
    before = {run.info.run_id: run.to_dictionary() for run in active_runs(experiment)}
    assert publish(experiment, record("b"), record("a")) == Outcome(0, 2, 0)
    assert {run.info.run_id: run.to_dictionary() for run in active_runs(experiment)} == before


def test_a_changed_record_replaces_its_run_and_keeps_it(experiment: Experiment) -> None:
    publish(experiment, record("a", 0.5), record("b"))
    assert publish(experiment, record("a", 0.6), record("b")) == Outcome(1, 1, 1)
    assert current(experiment) == ["a", "b"]
    assert len(active_runs(experiment)) == 3
    assert publish(experiment, record("a", 0.5), record("b")) == Outcome(0, 2, 1), "the first run is there already"
    (run,) = experiment.client.search_runs([experiment.id], "tags.current = 'true' and tags.model = 'a'")
    assert run.data.metrics["robust_accuracy"] == 0.5


def test_a_removed_record_is_no_longer_current(experiment: Experiment) -> None:
    publish(experiment, record("a"), record("b"))
    assert publish(experiment, record("b")) == Outcome(0, 1, 1)
    assert current(experiment) == ["b"]


def test_a_changed_file_is_a_changed_record(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    path.write_bytes(b"old")
    held = record("a", artifacts={"": [path]})
    before = held.hash
    path.touch()
    assert held.hash == before, "a file is its contents, not its date"
    path.write_bytes(b"new")
    assert held.hash != before


@pytest.mark.parametrize("killed_in", ["create_run", "log_batch", "log_artifact", "set_terminated"])
@pytest.mark.parametrize("after_the_call", [False, True])
def test_a_killed_publication_is_completed_by_the_next(
    experiment: Experiment, tmp_path: Path, killed_in: str, after_the_call: bool
) -> None:
    (tmp_path / "curve.png").write_bytes(b"picture")
    wanted = [record("a", 0.1), record("b", artifacts={"figures": [tmp_path / "curve.png"]}), record("c")]
    publish(experiment, wanted[0])
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(experiment.client, killed_in)

        def die(*arguments: Any, **named: Any) -> None:
            if after_the_call:
                real(*arguments, **named)
            raise KeyboardInterrupt

        patch.setattr(experiment.client, killed_in, die)
        with pytest.raises(KeyboardInterrupt):
            publish(experiment, *wanted)
    assert set(current(experiment)) <= {"a"}, "half a run is shown to nobody"
    publish(experiment, *wanted)
    assert current(experiment) == ["a", "b", "c"]
    assert {run.data.tags["complete"] for run in active_runs(experiment)} == {"true"}
    assert publish(experiment, *wanted) == Outcome(0, 3, 0)
    (run,) = experiment.client.search_runs([experiment.id], "tags.model = 'b'")
    assert [file.path for file in experiment.client.list_artifacts(run.info.run_id, "figures")] == ["figures/curve.png"]


def test_runs_of_others_are_left_alone(experiment: Experiment) -> None:
    theirs = experiment.client.create_run(experiment.id, run_name="theirs").info.run_id
    publish(experiment, record("a"))
    publish(experiment)
    assert experiment.client.get_run(theirs).info.lifecycle_stage == "active"


def test_a_run_deleted_by_hand_is_published_again(experiment: Experiment) -> None:
    publish(experiment, record("a"))
    experiment.client.delete_run(active_runs(experiment)[0].info.run_id)
    assert publish(experiment, record("a")) == Outcome(1, 0, 0)


def test_of_two_equal_runs_one_is_current(experiment: Experiment) -> None:
    """Two machines may publish to a server at the same time."""
    publish(experiment, record("a"))
    (run,) = active_runs(experiment)
    experiment.client.set_tag(run.info.run_id, "results_hash", "hidden")
    publish(experiment, record("a"))
    experiment.client.set_tag(run.info.run_id, "results_hash", record("a").hash)
    experiment.client.set_tag(run.info.run_id, "current", "true")
    assert publish(experiment, record("a")) == Outcome(0, 1, 1)
    assert current(experiment) == ["a"]


def test_a_deleted_experiment_comes_back(experiment: Experiment) -> None:
    publish(experiment, record("a"))
    experiment.client.delete_experiment(experiment.id)
    again = tracking.connect(experiment.uri)
    assert again.id == experiment.id
    assert publish(again, record("a"), record("b")) == Outcome(1, 1, 0)


def view(key: str) -> View:
    charts = (Chart(("robust_accuracy",), "epsilon"), Chart(("train_loss",), None))
    return View(key=key, name=f"View {key}", filter="tags.current = 'true'", charts=charts, columns=())


def page_state(value: str) -> dict[str, Any]:
    """As MLflow's pages read it."""
    envelope = json.loads(value)
    assert isinstance(envelope["name"], str)
    assert isinstance(envelope["createdAt"], int)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_views_are_saved_and_linked_in_order(experiment: Experiment) -> None:
    tracking.describe(experiment, "about", [view("z"), view("a")])
    tags = experiment.client.get_experiment(experiment.id).tags
    assert tags["mlflow.note.content"] == "about"
    charts = page_state(tags["mlflow.sharedViewState.benchmark-z"])["compareRunCharts"]
    assert [(chart["xAxisKey"], chart["selectedXAxisMetricKey"]) for chart in charts] == [
        ("metric", "epsilon"),
        ("step", ""),
    ]
    pages = tracking.links(experiment, "http://127.0.0.1:5000/")
    assert list(pages) == ["View z", "View a"]
    start = f"http://127.0.0.1:5000/#/experiments/{experiment.id}/runs?viewStateShareKey=benchmark-z&"
    assert pages["View z"].startswith(start)


def test_only_own_outdated_views_are_removed(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.client.set_experiment_tag(experiment.id, "mlflow.sharedViewState.theirs", "{}")
    tracking.describe(experiment, "about", [view("a"), view("b")])
    tracking.describe(experiment, "about", [view("a")])
    tags = experiment.client.get_experiment(experiment.id).tags
    saved = {key for key in tags if key.startswith("mlflow.sharedViewState.")}
    assert saved == {"mlflow.sharedViewState.theirs", "mlflow.sharedViewState.benchmark-a"}
    monkeypatch.setattr(experiment.client, "set_experiment_tag", lambda *_: pytest.fail("nothing has changed"))
    tracking.describe(experiment, "about", [view("a")])


def levels(found: list[Record]) -> Counter[str]:
    return Counter(entry.tags["level"] for entry in found)


def test_there_is_a_record_of_everything(benchmark: Benchmark, benchmark_root: Path) -> None:
    found = list(records(benchmark, benchmark_root))
    assert levels(found) == {"training": 6, "cell": 12, "aggregate": 4, "architecture": 2, "report": 1}
    assert len({entry.name for entry in found}) == len(found)
    assert len({entry.hash for entry in found}) == len(found)
    by_name = {entry.name: entry for entry in found}
    cell = by_name["neural_ode · adef · seed 2"]
    data_hash = benchmark.card["splits"]["test"]["sha256"]
    assert cell.tags == {
        "level": "cell",
        "model": "neural_ode",
        "attack": "adef",
        "norm": "deformation",
        "seed": "2",
        "dataset": "mnist5k",
        "data_hash": data_hash,
        "dvc_stage": "attack@neural_ode",
        "mlflow.runColor": line_style(1)["color"],
    }
    assert cell.params["model.solver.method"] == "rk4"
    assert cell.params["attack.epsilons"] == "0.5, 1.0, 2.0, 3.0"
    assert cell.params["train.epochs"] == "10"
    assert [path.name for path in by_name["cnn · fgsm"].artifacts["figures"]] == ["curve-fgsm.png"]
    assert [path.name for path in by_name["cnn · adef"].artifacts["figures"]] == ["examples-adef-cnn.png"]
    assert [path.name for path in by_name["report"].artifacts[""]] == ["index.html", "summary.md"]


def curve(entry: Record, key: str) -> list[float]:
    points = [metric for metric in entry.metrics if metric.key == key]
    assert [point.step for point in points] == list(range(len(points))), "steps are the strengths' indices"
    return [point.value for point in points]


@pytest.mark.parametrize("attack", ATTACKS)
def test_curves_are_those_of_the_statistics(benchmark: Benchmark, benchmark_root: Path, attack: str) -> None:
    by_name = {entry.name: entry for entry in records(benchmark, benchmark_root)}
    result = benchmark.results["cnn"][attack]
    expected = statistics.curve(result.outcomes)
    aggregate = by_name[f"cnn · {attack}"]
    assert curve(aggregate, "epsilon") == [0.0, *result.attack.epsilons]
    assert curve(aggregate, "robust_accuracy") == list(expected["robust_accuracy"])
    assert curve(aggregate, "robust_accuracy_low") == list(expected["low"])
    assert curve(aggregate, "robust_accuracy_high") == list(expected["high"])
    # Every seed attacks the same images, so the aggregate is the mean of the cells.
    cells = [curve(by_name[f"cnn · {attack} · seed {seed}"], "robust_accuracy") for seed in SEEDS]
    assert curve(aggregate, "robust_accuracy") == pytest.approx(
        [sum(values) / 3 for values in zip(*cells, strict=True)]
    )
    assert cells[0] != cells[1]
    for key in ("epsilon", "robust_accuracy", "area_under_curve"):
        assert curve(by_name["cnn"], f"{attack}/{key}") == curve(aggregate, key)
    summaries = {metric.key: metric.value for metric in aggregate.metrics if metric.step == 0}
    strongest = result.attack.epsilons[-1]
    assert summaries["clean_accuracy"] == curve(aggregate, "robust_accuracy")[0]
    assert summaries[f"accuracy_at_{strongest:g}"] == curve(aggregate, "robust_accuracy")[-1]


def test_trainings_are_drawn_by_epoch(benchmark: Benchmark, benchmark_root: Path) -> None:
    by_name = {entry.name: entry for entry in records(benchmark, benchmark_root)}
    training = by_name["cnn · training · seed 1"]
    history = benchmark.training["cnn"][1]["history"]
    assert curve(training, "validation_accuracy") == [epoch["validation_accuracy"] for epoch in history]
    assert curve(training, "final_test_accuracy") == [benchmark.training["cnn"][1]["accuracy"]["test"]]


def test_views_ask_for_what_the_records_hold(benchmark: Benchmark, benchmark_root: Path) -> None:
    """A misspelt key would show as an empty chart."""
    held = {
        entry.tags["level"]: {metric.key for metric in entry.metrics} for entry in records(benchmark, benchmark_root)
    }
    found = views(benchmark.params)
    assert [entry.key for entry in found] == ["overview", "attack-fgsm", "attack-adef", "training"]
    for entry in found:
        level = entry.filter.split("tags.level = '")[1].split("'")[0]
        asked = {key for chart in entry.charts for key in (*chart.keys, chart.x) if key}
        asked |= {column.split("`")[1] for column in entry.columns if column.startswith("metrics.")}
        assert asked <= held[level]


def test_values_that_are_not_finite_are_left_out(benchmark: Benchmark, benchmark_root: Path) -> None:
    """A median size exists only if half of the images fell; MLflow would draw infinity as 1.8e308."""
    result = benchmark.results["cnn"]["fgsm"]
    rows = result.rows.assign(success=False)
    robust = replace(result, rows=rows, outcomes=statistics.outcomes(rows, result.attack.epsilons))
    untouched = replace(benchmark, results={**benchmark.results, "cnn": {"fgsm": robust}})
    by_name = {entry.name: entry for entry in records(untouched, benchmark_root)}
    keys = {metric.key for metric in by_name["cnn · fgsm"].metrics}
    assert "median_minimal_size" not in keys
    assert "area_under_curve" in keys


def test_flat() -> None:
    nested = {"model": {"kind": "cnn", "solver": {"rtol": None}}, "seeds": (0, 1)}
    assert flat(nested) == {"model.kind": "cnn", "model.solver.rtol": "None", "seeds": "0, 1"}


def test_the_stage_publishes_once_and_says_so(
    uri: str,
    benchmark_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(benchmark_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "stage")
    caplog.set_level(logging.INFO)
    stage.main()
    assert caplog.messages[-1].endswith("25 runs added, 0 unchanged, 0 no longer current")
    (tmp_path / "reports/summary.md").write_text("another summary")
    stage.main()
    assert caplog.messages[-1].endswith("1 runs added, 24 unchanged, 1 no longer current")
    names = list(tracking.links(tracking.connect(uri), ""))
    assert names[0] == "Robust accuracy: all attacks"
    assert names[-1] == "Report"


@pytest.fixture
def dead_port() -> int:
    return free_port()


def test_a_server_that_is_down_loses_nothing(
    benchmark_root: Path, dead_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(benchmark_root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{dead_port}")
    stage.main()
    assert caplog.messages == [
        f"MLflow at http://127.0.0.1:{dead_port} not reachable: nothing lost, run `make publish` later"
    ]


def test_a_server_that_goes_away_is_unreachable(experiment: Experiment, dead_port: int) -> None:
    from mlflow import MlflowException

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("connection refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.client, "log_batch", fail)
        with pytest.raises(UnreachableError):
            publish(replace(experiment, uri=f"http://127.0.0.1:{dead_port}"), record("a"))
        with pytest.raises(UserError, match="connection refused") as caught:
            publish(experiment, record("a"))
        assert not isinstance(caught.value, UnreachableError), "a database cannot go away"


@pytest.fixture
def refusing_server() -> Iterator[str]:
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_refuses_is_not_down(refusing_server: str) -> None:
    """It wants a password, which MLflow's own error will say; nobody listens at port 9."""
    tracking._probe(refusing_server)
    with pytest.raises(tracking.UnreachableError):
        tracking._probe("http://127.0.0.1:9")


def test_an_empty_address_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking.tracking_uri() == "sqlite:///mlflow.db"


def test_a_taken_port_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ui"])
    with socket.socket() as listener:
        listener.bind((ui.HOST, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setenv("MLFLOW_PORT", str(taken))
        assert ui.port() not in (taken, 0)
    monkeypatch.setattr(sys, "argv", ["ui", "fivethousand"])
    with pytest.raises(UserError, match="fivethousand"):
        ui.port()


def test_an_empty_store_has_no_pages(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="nothing is published"):
        ui.show(experiment, "http://127.0.0.1:5000")


def test_only_tracking_and_its_registry_import_mlflow_and_only_when_needed() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipeline").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(name.partition(".")[0] == "mlflow" for name in imported(node))
    }
    assert importers == {"pipeline/registry.py", "pipeline/tracking.py"}
    program = "import sys, pipeline.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def test_a_store_that_could_not_be_made_is_made_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after a few of MLflow's tables: a file that MLflow could never open again."""
    from mlflow.store.db import utils
    from sqlalchemy import Engine, text
    from sqlalchemy.exc import OperationalError

    def half(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE _alembic_tmp_jobs (id INTEGER)"))
        raise OperationalError("CREATE TABLE more", {}, Exception("database or disk is full"))

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", half)
        patch.setattr(utils, "_upgrade_db", half)
        with pytest.raises(UserError, match="disk is full"):
            tracking.connect(tracking.STORE)
    assert not Path("mlflow.db").exists()
    (tmp_path / ".mlflow.killed.tmp").mkdir()
    assert tracking.connect(tracking.STORE).client.search_experiments()
    assert not list(tmp_path.glob(".mlflow.*.tmp"))
