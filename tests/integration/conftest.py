"""One Ray for all integration tests of a session."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray with more logical CPUs than the machine has, so that small roles always fit."""
    import ray

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Role classes of these tests are imported by the processes that host them.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pair(ray_cluster):
    """Two processes for the ranks of a role."""
    import ray
    from rank_pair import Pair

    pair = Pair()
    yield pair
    for worker in pair.workers:
        ray.kill(worker)
