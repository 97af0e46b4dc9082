"""One Ray for all integration tests of a session."""

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray."""
    import local_ray
    import ray

    local_ray.start()
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
