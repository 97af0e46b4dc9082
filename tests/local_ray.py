"""The Ray that tests of one process share."""

import os
from pathlib import Path

import ray
import warm


def start(**resources: int) -> None:
    """With more logical CPUs than the machine has, so that small roles always fit, and workers that are forked; and
    with other `resources` that it may not have."""
    prepare()
    with warm.shared().forks_workers():
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(address="local", num_cpus=8, **options, **resources)


def prepare() -> None:
    """What must stand in the environment before any Ray is started."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Role classes of these tests are imported by the processes that host them.
    folders = [str(Path(__file__).parent / name) for name in ("integration", "chaos")]
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in folders]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *others])
