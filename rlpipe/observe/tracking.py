"""TensorBoard, W&B and MLflow as views of the events. Keys and addresses of servers come from the environment and are
neither read nor printed here."""

import importlib
from types import ModuleType
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.observe.events import Event, View
from rlpipe.recipe.run import Tracking

TENSORBOARD = "tensorboard"
"""Folder of a stage's directory."""


class TrackerMissing(RuntimeError):
    """The recipe asks for a tracker whose package is not installed."""


def trackers(tracking: Tracking, storage: Storage, run_name: str) -> list[View]:
    """The views that the recipe asks for. `run_name` names the run at W&B and MLflow, for example `demo/grpo`."""
    views: list[View] = []
    if tracking.tensorboard:
        views.append(TensorBoard(storage))
    if tracking.wandb:
        views.append(Wandb(tracking.wandb, run_name, storage))
    if tracking.mlflow:
        views.append(Mlflow(tracking.mlflow, run_name))
    return views


def scalars(event: Event) -> dict[str, float]:
    """The numbers of an event under the names trackers show: `accuracy` of an evaluation is `evaluation/accuracy`."""
    match event["kind"]:
        case "metrics":
            return event["metrics"]
        case "evaluation":
            return {f"evaluation/{name}": value for name, value in event["metrics"].items()}
        case "phase" if event["step"] is not None:
            return {f"phase/{event['phase']}": event["seconds"]}
        case _:
            return {}


class TensorBoard:
    """Scalars to `tensorboard/` in the run directory: `tensorboard --logdir RUN_DIR`."""

    FLUSH_SECONDS = 10

    def __init__(self, storage: Storage):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(storage.folder(TENSORBOARD)), flush_secs=self.FLUSH_SECONDS)

    def __call__(self, event: Event) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars(event).items()]
        if values:
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=event["time"], step=event["step"], summary=summary))

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One W&B run per stage; the recipe is its config."""

    def __init__(self, project: str, run_name: str, storage: Storage):
        wandb = _package("wandb", "tracking.wandb")
        folder = str(storage.local) if storage.local else None
        # By itself it records the command line as it is; `run_started` has that without credentials.
        private = wandb.Settings(x_disable_meta=True, save_code=False)
        self._run = wandb.init(project=project, name=run_name, dir=folder, settings=private)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._failed = False

    def __call__(self, event: Event) -> None:
        if event["kind"] == "run_started":
            self._run.config.update({"recipe": event["recipe"], "versions": event["versions"]})
        elif event["kind"] == "run_finished":
            self._failed = event["status"] != "completed"
        elif values := scalars(event):
            self._run.log(values | {"step": event["step"]})

    def close(self) -> None:
        self._run.finish(exit_code=int(self._failed))


class Mlflow:
    """One MLflow run per stage; the recipe's settings are its parameters. One request per step: each one waits for the
    server."""

    LONGEST_PARAMETER = 500

    def __init__(self, experiment: str, run_name: str):
        self._mlflow = _package("mlflow", "tracking.mlflow")
        self._client = self._mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        self._waiting: list[Any] = []
        self._status = "FINISHED"

    def __call__(self, event: Event) -> None:
        self._waiting += [self._metric(name, value, event) for name, value in scalars(event).items()]
        match event["kind"]:
            case "run_started":
                for name, value in _flat(event["recipe"]).items():
                    self._client.log_param(self._run_id, name, str(value)[: self.LONGEST_PARAMETER])
            case "run_finished":
                self._status = {"completed": "FINISHED", "interrupted": "KILLED"}.get(event["status"], "FAILED")
            case "metrics" | "evaluation":
                self._send()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._run_id, self._status)

    def _metric(self, name: str, value: float, event: Event) -> Any:
        known = name.replace("@", "_at_")  # MLflow's names have no `@`
        return self._mlflow.entities.Metric(known, value, int(event["time"] * 1000), event["step"])

    def _send(self) -> None:
        self._client.log_batch(self._run_id, metrics=self._waiting)
        self._waiting = []


def _package(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrackerMissing(
            f"{key} is set, but the package {name} is not installed. Install it with `pip install 'rlpipe[track]'`, "
            f"or leave {key} out."
        ) from error


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
