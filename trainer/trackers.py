"""The table of experiment trackers that a recipe may name under `track`: one small interface, and a class for each.

To add a tracker, write a class with the methods of Tracker and an entry in TRACKERS; a plugin registers its own:

    from conan_embedding.trainer.trackers import TRACKERS

    TRACKERS.register("aim", AimTracker)

A tracker's library is imported when a run starts; where it stores and how it logs in is up to its own environment
variables.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import yaml

from ..pipeline.needed_extras import TRACKER_EXTRAS
from ..schemas.errors import MissingExtraError
from ..schemas.registry import Registry

PROJECT = "conan-embedding"
"""The project (MLflow: experiment) of all runs, unless an environment variable of the tracker names another."""


class Tracker(Protocol):
    """Where a run's numbers go besides log.jsonl. Its methods are called one after another, in a thread of their own.

    They may raise anything: a tracker that has raised once is reported and gets no more calls.
    """

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        """Begin a run, or continue the one that an earlier call returned the id of. Returns the run's id.

        If that is not `run_id`, the run is sent the whole log. `folder` is the run's own folder, for files; `settings`
        may be nested.
        """
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add values at a step; never called twice for the same name and step."""
        ...

    def finish(self, succeeded: bool) -> None:
        """End the run once all is stored. A run that was stopped has not succeeded; it may be continued."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        if run_id is None:
            text = yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=False)
            self.writer.add_text("settings", re.sub("(?m)^", "    ", text))  # indented: a code block in Markdown
        return name

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, succeeded: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases (wandb), with its local files in the folder `wandb` of the run."""

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        import wandb

        if wandb.setup().settings.mode == "offline":
            run_id = None  # wandb resumes no run offline, and a killed one has lost what it had not written yet
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(folder),
            settings=wandb.Settings(console="off"),  # standard error is the progress bar's
        )
        self.run.config.update(dict(settings), allow_val_change=True)
        # A metric of its own as the step: wandb drops values whose step is lower than the last one it has seen.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({"step": step, **metrics})

    def finish(self, succeeded: bool) -> None:
        self.run.finish(exit_code=0 if succeeded else 1)


class MLflow:
    """A run of MLflow, on the server of MLFLOW_TRACKING_URI or in a file, as mlflow itself decides."""

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        self.client = MlflowClient()
        if run_id is not None:
            self.client.update_run(run_id, "RUNNING")
            self.run_id = run_id
            return run_id
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        self.run_id = str(self.client.create_run(place, run_name=name).info.run_id)
        values = [Param(_mlflow_name(key), str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in _flat(settings)]
        for first in range(0, len(values), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(self.run_id, params=values[first : first + MAX_PARAMS_TAGS_PER_BATCH])
        return self.run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(_mlflow_name(name), value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def finish(self, succeeded: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if succeeded else "KILLED")


class Trackio:
    """A run of Trackio, in its local database or on the Space or server that its environment variables name."""

    def start(self, name: str, settings: Mapping[str, Any], folder: Path, run_id: str | None) -> str:
        import trackio

        run_id = run_id or f"{name} {uuid4().hex[:8]}"  # runs are continued by name, so it must be of this run alone
        self.run = trackio.init(PROJECT, run_id, config=dict(settings), resume="allow", embed=False)
        return run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def finish(self, succeeded: bool) -> None:
        self.run.finish()


TRACKERS: Registry[Callable[[], Tracker]] = Registry("tracker")
TRACKERS.update({"wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio, "tensorboard": TensorBoard})


def check_trackers(names: Iterable[str], place: str) -> None:
    """Check that trackers are known and that their libraries are installed. `place` says where the recipe names them.

    Raises:
        RecipeError: a name is not registered.
        MissingExtraError: a tracker's library is not installed.
    """
    for name in names:
        TRACKERS.find(name, place)
        if name in TRACKER_EXTRAS and find_spec(name) is None:  # the library has the same name
            raise MissingExtraError(f"{place}: {name}", name)


def _mlflow_name(name: str) -> str:
    """Return a name as MLflow allows it: `ndcg@10` as `ndcg_at_10`, as mteb writes it; other characters as `_`."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield nested settings as the recipe's `--set` names them, `mixing.power`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
