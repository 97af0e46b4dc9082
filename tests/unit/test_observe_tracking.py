"""Trackers as views of the events."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlpipe.data.storage import Storage
from rlpipe.observe import tracking
from rlpipe.observe.events import EventLog
from rlpipe.observe.tracking import TrackerMissing, trackers
from rlpipe.recipe.run import Tracking


def write_events(log, status="completed"):
    log.run_started("rl", 2, {"recipe": {"seed": 3, "model": {"path": "m"}}, "versions": {"torch": "2"}})
    with log.phase("start"):
        pass
    with log.phase("train", step=1):
        pass
    log.metrics(1, {"reward": 0.5})
    log.metrics(2, {"reward": 0.75})
    log.evaluation(2, {"accuracy": 0.25, "pass@1": 0.125}, samples=[])
    log.run_finished(status)
    log.close()


def test_tensorboard_is_on_by_default_and_reads_back(tmp_path):
    views = trackers(Tracking(), Storage(tmp_path), "run")
    assert [type(view).__name__ for view in views] == ["TensorBoard"]
    write_events(EventLog(Storage(tmp_path), views=views))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == [
        "evaluation/accuracy", "evaluation/pass@1", "phase/train", "reward",
    ]  # fmt: skip
    assert [(point.step, point.value) for point in board.Scalars("reward")] == [(1, 0.5), (2, 0.75)]
    assert [(point.step, point.value) for point in board.Scalars("evaluation/accuracy")] == [(2, 0.25)]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_names_the_key_and_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrackerMissing) as error:
        trackers(Tracking(**{"tensorboard": False, package: "project"}), Storage(tmp_path), "run")
    assert str(error.value) == (
        f"tracking.{package} is set, but the package {package} is not installed. Install it with "
        f"`pip install 'rlpipe[track]'`, or leave tracking.{package} out."
    )


def test_mlflow_gets_parameters_and_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install 'rlpipe[track]')")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_events(EventLog(Storage(tmp_path), views=[tracking.Mlflow("tests", "run")]), status="failed")
    (run,) = mlflow.MlflowClient().search_runs(["1"])
    assert run.data.params == {"seed": "3", "model.path": "m"}
    assert run.data.metrics["reward"] == 0.75
    assert run.data.metrics["evaluation/pass_at_1"] == 0.125
    assert run.info.status == "FAILED"


def test_wandb_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'rlpipe[track]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    view = tracking.Wandb("tests", "run", Storage(tmp_path))
    summary = {}
    monkeypatch.setattr(view, "close", lambda: summary.update(view._run.summary) or view._run.finish())
    write_events(EventLog(Storage(tmp_path), views=[view]))
    assert summary["reward"] == 0.75
    assert summary["evaluation/accuracy"] == 0.25
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
