"""Events as metrics of Ray. That they are scraped so from a node is in tests/integration/test_slurm.py."""

import logging
from types import SimpleNamespace

import pytest

from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import RoleDied
from rlpipe.runtime.ray_metrics import counters, gauges, metric_name


def test_an_engine_that_is_lost_is_counted(caplog):
    """The pool says which, for `restarts_total`."""
    handle = SimpleNamespace(name="engine[0]", begun=True)
    pool = EnginePool({"policy": [handle]}, SimpleNamespace(rollout=1.0, placement=1.0, publish=1.0), max_restarts=1)
    with caplog.at_level(logging.WARNING, "rlpipe"):
        pool._lose(pool._seats["policy"][0], RoleDied("it was killed", "engine[0]"))
    assert [record.lost for record in caplog.records] == ["engine[0]"]


def test_events_that_are_not_counted_say_nothing():
    for event in ({"kind": "note", "message": "x"}, {"kind": "progress", "says": "1/2"}, {"kind": "run_started"}):
        assert [*gauges(event), *counters(event)] == []


@pytest.mark.parametrize(
    ("name", "exported"),
    [("mismatch/abs", "rlpipe_mismatch_abs"), ("evaluation/pass@1", "rlpipe_evaluation_pass_at_1")],
)
def test_names(name, exported):
    assert metric_name(name) == exported
