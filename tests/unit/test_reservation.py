"""What processes reserve: as asked on a cluster, and what there is on a machine of the run's own."""

import pytest
import ray

from rlpipe.recipe.training import Resources
from rlpipe.runtime.reservation import OWN_MACHINE, added, bundle, fitted


@pytest.fixture
def cluster(monkeypatch):
    def of(**resources):
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)

    return of


def test_auto_is_a_gpu_where_there_are_gpus(cluster):
    cluster(CPU=2.0)
    assert bundle(Resources()) == {"CPU": 0.5}
    cluster(CPU=2.0, GPU=1.0)
    assert bundle(Resources()) == {"CPU": 0.5, "GPU": 1.0}


def test_an_engine_that_is_split_takes_all_its_gpus_in_one_bundle(cluster):
    cluster(CPU=2.0, GPU=8.0)
    assert bundle(Resources(), 4) == {"CPU": 0.5, "GPU": 4.0}
    assert bundle(Resources(gpus=0), 4) == {"CPU": 0.5}
    cluster(CPU=2.0)
    assert bundle(Resources(), 4) == {"CPU": 0.5}


def test_two_ranks_and_their_engine_have_one_bundle_together():
    rank, engine = {"CPU": 0.1, "GPU": 1.0}, {"CPU": 0.2}
    assert added([rank, rank, engine]) == {"CPU": 0.4, "GPU": 2.0}


def test_five_roles_share_the_two_cores_of_a_laptop(cluster):
    cluster(CPU=2.0, **{OWN_MACHINE: 1.0})
    assert fitted([{"CPU": 0.5}] * 5) == [{"CPU": 0.4}] * 5


def test_what_fits_is_left_as_asked(cluster):
    cluster(CPU=2.0, **{OWN_MACHINE: 1.0})
    assert fitted([{"CPU": 0.5}] * 4) == [{"CPU": 0.5}] * 4


def test_shares_are_numbers_that_ray_takes_and_never_more_than_there_is(cluster):
    cluster(CPU=4.0, **{OWN_MACHINE: 1.0})
    assert fitted([{"CPU": 6.0}, {"CPU": 1.0}, {"CPU": 0.5}]) == [{"CPU": 3.0}, {"CPU": 0.5333}, {"CPU": 0.2666}]


def test_gpus_are_never_shared_out(cluster):
    cluster(CPU=1.0, GPU=1.0, **{OWN_MACHINE: 1.0})
    assert fitted([{"CPU": 1.0, "GPU": 1.0}] * 2) == [{"CPU": 0.5, "GPU": 1.0}] * 2


def test_on_a_cluster_of_others_the_recipe_s_word_stands(cluster):
    cluster(CPU=2.0)
    assert fitted([{"CPU": 0.5}] * 5) == [{"CPU": 0.5}] * 5
