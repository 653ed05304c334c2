"""MLflow: imported here and in ``registry`` alone, and late, because the import takes seconds.

What a run shall hold is a ``Record``; ``publish`` makes the store hold exactly the given records as its current runs.
A record that is there already is left alone, so that publishing twice adds nothing twice, and one that was only
half written counts for nothing. Pages of the user interface are stored beside the runs as saved views (``View``).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from filelock import FileLock

from pipeline import registry
from pipeline.errors import UserError
from pipeline.files import digest, sha256
from pipeline.registry import Model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STORE = "sqlite:///mlflow.db"
ARTIFACTS = Path("mlartifacts")

LIVE = "live_training"  # tag with the key of a training that tells of itself while it goes on (``pipeline.live``)

_METRICS_PER_CALL = 1000  # MLflow's limit
_VIEW_TAG = "mlflow.sharedViewState."  # where MLflow's pages look for saved views
_OWN_VIEWS = "benchmark-"  # saved views of users are left alone

# MLflow sends usage statistics to its makers, and tries for four minutes to reach a server, unless told otherwise.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


class UnreachableError(UserError):
    """No server answers at the tracking address."""


@dataclass(frozen=True)
class Metric:
    """A value of a run; values of one key at several steps are a curve."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run holds.

    Attributes:
        name: shown in every list and legend.
        note: description in Markdown.
        tags: what runs are found and filtered by.
        params: configuration, flat.
        metrics: curves and summaries; all finite.
        artifacts: folder of the run ("" for the top) to files.
        model: registered with the run as a version.
        live: key of the training whose live run becomes this one.
    """

    name: str
    note: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Sequence[Metric]
    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    model: Model | None = None
    live: str | None = None

    @property
    def hash(self) -> str:
        """Equal for records that would be equal runs: everything above, files by their contents."""
        files = {
            folder: [(path.name, sha256(path)) for path in paths] for folder, paths in sorted(self.artifacts.items())
        }
        values = [self.name, self.note, dict(self.tags), dict(self.params), [asdict(m) for m in self.metrics], files]
        return digest(values if self.model is None else [*values, self.model.content])


@dataclass(frozen=True)
class Chart:
    """Lines of the metrics ``keys``, one line style each, against the metric ``x`` (None: against the step)."""

    keys: tuple[str, ...]
    x: str | None


@dataclass(frozen=True, kw_only=True)
class View:
    """A page of MLflow: the runs that a filter finds, and the charts above them.

    Attributes:
        key: identifies it in links.
        name: shown under "Saved views".
        filter: MLflow search expression.
        charts: in the order shown.
        columns: tags and metrics of the table, such as ``tags.model``.
    """

    key: str
    name: str
    filter: str
    charts: tuple[Chart, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How many runs a publication added, found unchanged, and took out of the current ones."""

    added: int
    unchanged: int
    retired: int

    def __str__(self) -> str:
        return f"{self.added} runs added, {self.unchanged} unchanged, {self.retired} no longer current"


@dataclass(frozen=True)
class Experiment:
    """An open store."""

    uri: str
    client: MlflowClient
    id: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        """What the registry knows it by."""
        return self.id, self.name


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or STORE


def is_server(uri: str) -> bool:
    """Whether the address is a server's, and not a database's."""
    return uri.startswith(("http://", "https://"))


def experiment_name() -> str:
    """``MLFLOW_EXPERIMENT_NAME``: benchmarks that share a server need names of their own."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ode-robustness"


def connect(uri: str) -> Experiment:
    """Open the store and its experiment; both are made if they do not exist.

    Raises:
        UnreachableError: ``uri`` is a server's, and nothing answers within five seconds.
        UserError: the store refuses.
    """
    if is_server(uri):
        _probe(uri)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if uri == STORE:
        _skip_fsync()
    with _explained(uri), FileLock("mlflow.db.lock") if uri == STORE else nullcontext():  # making its tables is no race
        if uri == STORE:
            _make_store(Path("mlflow.db"))
        return _open(uri)


def _make_store(path: Path) -> None:
    """Have MLflow make its tables elsewhere: after a kill or a full disk, nothing can open half of them again."""
    from mlflow import MlflowClient

    if path.exists():
        return
    for left in Path().glob(".mlflow.*.tmp"):  # by the dead: the living hold the lock
        shutil.rmtree(left, ignore_errors=True)
    # Another name each time, because MLflow remembers a store by its address, be it broken or gone.
    with TemporaryDirectory(prefix=".mlflow.", suffix=".tmp", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        made = Path(folder) / path.name
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments()
        made.replace(path)


def _open(uri: str) -> Experiment:
    from mlflow import MlflowClient

    client, name = MlflowClient(tracking_uri=uri), experiment_name()
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if is_server(uri) else ARTIFACTS.resolve().as_uri()
        return Experiment(uri, client, client.create_experiment(name, artifact_location=location), name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return Experiment(uri, client, found.experiment_id, name)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """MLflow's errors as one line: the server is gone, or what it says."""
    from mlflow import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # a full disk comes through MLflow unwrapped

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        if is_server(uri):
            _probe(uri)
        raise UserError(f"MLflow at {uri}: {' '.join(str(error).split())}") from error


def _probe(uri: str) -> None:
    try:
        urllib.request.urlopen(uri, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # an answer, be it a refusal
    except OSError as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):
            raise UnreachableError(f"MLflow at {uri} not reachable") from error


def _skip_fsync() -> None:
    """Thousands of commits without waiting for the disk: what a power failure destroys is published again."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")


def publish(experiment: Experiment, records: Iterable[Record], *, benchmark: str, origin: Mapping[str, str]) -> Outcome:
    """Make the records the current runs (tag ``current``) of the experiment.

    Args:
        benchmark: tag that groups them; runs that are there already join the group.
        origin: tags for the runs added now that say where they come from and make no record another one.

    Raises:
        UnreachableError: the server went away; publishing again completes what this began.
        UserError: the store refuses.
    """
    wanted = {record.hash: record for record in records}
    with _explained(experiment.uri):
        stored = _stored(experiment)
        missing = [hash_ for hash_ in wanted if hash_ not in stored]
        for hash_ in missing:
            _add(experiment, wanted[hash_], hash_, {"benchmark": benchmark, **origin})
        retired = _update_current(experiment, stored, wanted.keys(), benchmark)
        _end_live(experiment)
        current = experiment.client.search_runs(
            [experiment.id], "tags.current = 'true' and tags.level = 'architecture'"
        )
        registry.mark(experiment.client, experiment.key, {run.info.run_id for run in current})
    return Outcome(len(missing), len(wanted) - len(missing), retired)


def _stored(experiment: Experiment) -> dict[str, list[Run]]:
    """Complete runs by the hash of their record; what a killed publication left behind is deleted."""
    stored: dict[str, list[Run]] = {}
    for run in _runs(experiment):
        if run.data.tags.get("complete") == "true":
            stored.setdefault(run.data.tags["results_hash"], []).append(run)
        elif "results_hash" in run.data.tags:  # or it is a user's own
            registry.forget(experiment.client, experiment.key, run.info.run_id)
            experiment.client.delete_run(run.info.run_id)
    return stored


def _update_current(experiment: Experiment, stored: Mapping[str, list[Run]], wanted: Set[str], benchmark: str) -> int:
    """Of the runs stored before, one of each wanted hash is current; returns how many ceased to be."""
    retired = 0
    for hash_, runs in stored.items():
        for position, run in enumerate(runs):
            current = hash_ in wanted and position == 0
            if (run.data.tags.get("current") == "true") != current:
                experiment.client.set_tag(run.info.run_id, "current", str(current).lower())
                retired += not current
            if current and run.data.tags.get("benchmark") != benchmark:
                experiment.client.set_tag(run.info.run_id, "benchmark", benchmark)
    return retired


def _runs(experiment: Experiment) -> Iterator[Run]:
    token = None
    while True:
        page = experiment.client.search_runs([experiment.id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _add(experiment: Experiment, record: Record, hash_: str, origin: Mapping[str, str]) -> None:
    """Tag ``complete`` is set when all else is stored; a run without it does not count."""
    from mlflow import entities

    client, now = experiment.client, int(time.time() * 1000)
    tags = {**record.tags, **origin, "mlflow.note.content": record.note, "results_hash": hash_}
    run_id = _live_run(experiment, record)
    told: set[tuple[str, int]] = set()
    if run_id is None:
        run_id = client.create_run(experiment.id, tags=tags, run_name=record.name).info.run_id
    else:
        keys = {metric.key for metric in record.metrics}
        told = {(metric.key, metric.step) for key in keys for metric in client.get_metric_history(run_id, key)}
        client.log_batch(run_id, tags=[entities.RunTag(key, value) for key, value in tags.items()])
    params = [entities.Param(key, value) for key, value in record.params.items()]
    metrics = [
        entities.Metric(metric.key, metric.value, now, metric.step)
        for metric in record.metrics
        if (metric.key, metric.step) not in told
    ]
    client.log_batch(run_id, metrics[:_METRICS_PER_CALL], params)
    for start in range(_METRICS_PER_CALL, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics[start : start + _METRICS_PER_CALL])
    for folder, paths in record.artifacts.items():
        for path in paths:
            client.log_artifact(run_id, str(path), folder or None)
    if record.model is not None:
        registry.register(client, experiment.key, record.model, run_id, {**record.tags, **origin})
    client.set_terminated(run_id)
    client.log_batch(run_id, tags=[entities.RunTag("current", "true"), entities.RunTag("complete", "true")])


def _live_run(experiment: Experiment, record: Record) -> str | None:
    """The run that the record's training told of itself, if it is no record's yet."""
    if record.live is None:
        return None
    found = experiment.client.search_runs([experiment.id], f"tags.{LIVE} = '{record.live}'")
    return next((run.info.run_id for run in found if "results_hash" not in run.data.tags), None)


def _end_live(experiment: Experiment) -> None:
    """What no record has taken was of a training that ended in nothing, or of other parameters."""
    client = experiment.client
    for run in client.search_runs([experiment.id], f"tags.{LIVE} != '' and tags.current = 'true'"):
        if "results_hash" not in run.data.tags:
            client.set_tag(run.info.run_id, "current", "false")
            client.set_terminated(run.info.run_id, "KILLED")


def describe(experiment: Experiment, note: str, views: Sequence[View]) -> None:
    """Store the experiment's description and its saved views; of the views stored earlier only these remain.

    Raises:
        UnreachableError: the server has gone.
        UserError: the store refuses.
    """
    with _explained(experiment.uri):
        _describe(experiment, note, views)


def _describe(experiment: Experiment, note: str, views: Sequence[View]) -> None:
    client = experiment.client
    stored = client.get_experiment(experiment.id).tags
    wanted = {"mlflow.note.content": note, "mlflow.experimentKind": "custom_model_development"}
    wanted |= {_VIEW_TAG + _OWN_VIEWS + view.key: _envelope(view, -i) for i, view in enumerate(views)}
    for key, value in wanted.items():
        if stored.get(key) != value:
            client.set_experiment_tag(experiment.id, key, value)
    for key in stored:
        if key.startswith(_VIEW_TAG + _OWN_VIEWS) and key not in wanted:
            client.delete_experiment_tag(experiment.id, key)


def links(experiment: Experiment, base: str) -> dict[str, str]:
    """Names and addresses of the stored views and of the report, on the server at ``base``."""
    client, runs = experiment.client, f"{base.rstrip('/')}/#/experiments/{experiment.id}/runs"
    # Without the workflow MLflow may show its pages for language models.
    workflow = {"workflowType": "machine_learning"}
    tags = client.get_experiment(experiment.id).tags
    saved = {key: json.loads(value) for key, value in tags.items() if key.startswith(_VIEW_TAG + _OWN_VIEWS)}
    found = {}
    for key, view in sorted(saved.items(), key=lambda item: -item[1]["createdAt"]):
        query = {"viewStateShareKey": key.removeprefix(_VIEW_TAG), "compareRunsMode": "CHART"}
        found[view["name"]] = f"{runs}?{urlencode(query | workflow)}"
    for run in client.search_runs([experiment.id], "tags.level = 'report' and tags.current = 'true'"):
        found["Report"] = f"{runs}/{run.info.run_id}/artifacts/index.html?{urlencode(workflow)}"
    return found


def _envelope(view: View, order: int) -> str:
    """A saved view as MLflow's pages store it (their ``savedViewEnvelope.ts``); they list the newest first."""
    text = json.dumps(_page_state(view), separators=(",", ":"), ensure_ascii=False)
    state = "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return json.dumps({"name": view.name, "createdAt": order, "updatedAt": order, "state": state}, ensure_ascii=False)


def _page_state(view: View) -> dict[str, Any]:
    """Their ``ExperimentPageUIState`` and search facets; what is absent is taken from their defaults."""
    section = f"{view.key}-charts"
    columns = min(len(view.charts), 3)
    return {
        "searchFilter": view.filter,
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": list(view.columns),
        "compareRunSections": [
            {"uuid": section, "name": view.name, "display": True, "isReordered": True, "columns": columns}
        ],
        "compareRunCharts": [_card(chart, f"{view.key}-{i}", section) for i, chart in enumerate(view.charts)],
        "isAccordionReordered": True,
    }


def _card(chart: Chart, uuid: str, section: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": "LINE",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "metricKey": chart.keys[0],
        "selectedMetricKeys": list(chart.keys),
        "xAxisKey": "step" if chart.x is None else "metric",
        "selectedXAxisMetricKey": chart.x or "",
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
    }
