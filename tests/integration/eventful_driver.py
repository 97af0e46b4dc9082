"""A driver on a cluster of Ray's to which everything happens that metrics tell of; it stays until its input ends."""

import logging
import sys
from pathlib import Path

import ray

from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.run import _warnings_to
from rlpipe.runtime.ray_metrics import RayMetrics

RUN = "demo/grpo"
ENGINE = {"name": "engine[1]", "node": "10.0.0.7", "tokens_per_second": 812.5, "most_outstanding_tokens": 4096}
STEP = {"reward": 0.25, "reward/exact": 0.5, "mismatch/abs": 1e-7, "step_seconds": 4.0, "tokens_per_second": 250.0}


def happen(log: EventLog) -> None:
    with log.phase("train", step=1):
        pass
    log.metrics(1, STEP)
    log.metrics(2, STEP | {"reward": float("nan")})
    log.emit("engines", step=2, engines=[ENGINE])
    log.evaluation(2, {"accuracy": 0.5, "pass@4": 0.875}, samples=[])
    log.fault("a view stopped")
    log.fault("the run failed", fatal=True)
    with _warnings_to(log):
        logging.getLogger("rlpipe.anything").warning("look at this")
        for name in ("engine[0]", "engine[1]"):
            logging.getLogger("rlpipe.rollout.pool").warning("%s is lost", name, extra={"lost": name})


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level="error")
    happen(EventLog(Storage(Path(sys.argv[1])), views=[RayMetrics(RUN)]))
    sys.stdin.read()
