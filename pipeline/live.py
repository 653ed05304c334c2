"""A training that MLflow shows while it goes on, told from a thread: the training neither waits for MLflow nor fails.

``pipeline.tracking.publish`` makes the run its own when the training is done, by the tag ``LIVE``.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipeline.tracking import LIVE, Experiment, connect, tracking_uri

logger = logging.getLogger(__name__)

METRICS = ("train_loss", "validation_loss", "validation_accuracy")
PATIENCE = 20.0  # seconds that a finished training waits for what MLflow still has to be told


class LiveRun(Callback):
    """Tells MLflow of every epoch.

    Args:
        name: of the run.
        key: of the training: what a killed one has told is gone on with.
        tags: of the run.
    """

    def __init__(self, name: str, key: str, tags: Mapping[str, str]) -> None:
        self.name, self.tags = name, {**tags, LIVE: key, "current": "true"}
        self.epochs: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._tell, name="mlflow", daemon=True)

    def on_train_start(self, trainer: pl.Trainer, _pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.thread.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(trainer.callback_metrics[name]) for name in METRICS}
        self.epochs.put((pl_module.current_epoch, metrics))

    def on_train_end(self, _trainer: pl.Trainer, _pl_module: pl.LightningModule) -> None:
        self.epochs.put(None)
        if self.thread.is_alive():
            self.thread.join(PATIENCE)

    def _tell(self) -> None:
        try:
            experiment = connect(tracking_uri())
            run_id = self._run(experiment)
            told = {metric.step for metric in experiment.client.get_metric_history(run_id, METRICS[0])}
            while (told_now := self.epochs.get()) is not None:
                epoch, metrics = told_now
                for name, value in metrics.items() if epoch not in told else ():
                    experiment.client.log_metric(run_id, name, value, step=epoch)
        except Exception as error:  # whatever MLflow's trouble is, it is none of the training's
            logger.warning("%s: MLflow does not show it live (%s)", self.name, " ".join(str(error).split())[:200])

    def _run(self, experiment: Experiment) -> str:
        """The run that a killed training of this key left, or a new one."""
        client = experiment.client
        left = client.search_runs([experiment.id], f"tags.{LIVE} = '{self.tags[LIVE]}'", max_results=1)
        run_id: str = (
            left[0] if left else client.create_run(experiment.id, run_name=self.name, tags=self.tags)
        ).info.run_id
        return run_id
