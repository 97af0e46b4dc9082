"""Events as metrics of Ray. That they are scraped so from a node is in tests/integration/test_slurm.py."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest

from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime import ray_metrics
from rlpipe.runtime.handle import RoleDied
from rlpipe.runtime.ray_metrics import counters, gauges, metric_name


def test_an_engine_that_is_lost_is_counted(caplog):
    """The pool says which, for `restarts_total`."""
    handle = SimpleNamespace(name="engine[0]", begun=True)
    pool = EnginePool({"policy": [handle]}, SimpleNamespace(rollout=1.0, placement=1.0, publish=1.0), max_restarts=1)
    with caplog.at_level(logging.WARNING, "rlpipe"):
        pool._lose(pool._seats["policy"][0], RoleDied("it was killed", "engine[0]"))
    assert [record.lost for record in caplog.records] == ["engine[0]"]


def test_gauges_are_set_again_until_the_stage_is_over_and_counters_are_not(monkeypatch):
    """Ray forgets those that are not, and a step may take longer."""
    told: list[tuple[str, float]] = []
    many = threading.Event()

    class Noting:
        def __init__(self, name):
            self._name = name

        def set(self, value, tags):
            told.append((self._name, value))
            if told.count(("rlpipe_step", 3.0)) > 3:
                many.set()

        def inc(self, value, tags):
            told.append((self._name, value))

    monkeypatch.setattr(ray_metrics, "SECONDS_PER_REFRESH", 0.01)
    monkeypatch.setattr(ray_metrics, "_metric", lambda kind, sample: Noting(sample.name))
    view = ray_metrics.RayMetrics("demo")
    view({"kind": "metrics", "step": 2, "metrics": {"reward": 0.5}})
    view({"kind": "metrics", "step": 3, "metrics": {"reward": 0.75}})
    assert many.wait(10)
    view.close()
    so_far = len(told)
    assert told[-1] in [("rlpipe_step", 3.0), ("rlpipe_reward", 0.75)], "the last values"
    assert told.count(("rlpipe_steps_total", 1.0)) == 2
    time.sleep(0.05)
    assert len(told) == so_far


def test_events_that_are_not_counted_say_nothing():
    for event in ({"kind": "note", "message": "x"}, {"kind": "progress", "says": "1/2"}, {"kind": "run_started"}):
        assert [*gauges(event), *counters(event)] == []


@pytest.mark.parametrize(
    ("name", "exported"),
    [("mismatch/abs", "rlpipe_mismatch_abs"), ("evaluation/pass@1", "rlpipe_evaluation_pass_at_1")],
)
def test_names(name, exported):
    assert metric_name(name) == exported
