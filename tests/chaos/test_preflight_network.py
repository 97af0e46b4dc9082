"""Preflight on a node that Ray reaches and training ranks would not."""

import contextlib

import pytest
from link import HERE, NAMESPACE, THERE, far_network
from nodes import SOON, Nodes

from rlpipe.recipe.training import Resources
from rlpipe.runtime.preflight.failed import PreflightFailed
from rlpipe.runtime.preflight.survey import survey
from rlpipe.runtime.preflight.wanted import Demand, Wanted

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(300)]


def test_a_handshake_over_the_wrong_network_is_told_of(tmp_path):
    """The far node names its loopback to gloo: Ray gets through, and training would hang."""
    train = Demand("training", 2, Resources(cpus=0.5, gpus=0.0), "train", trains=True)
    with far_network(), contextlib.closing(Nodes(SOON, HERE)) as cluster:
        cluster.join(1)
        cluster.join_from(NAMESPACE, THERE, GLOO_SOCKET_IFNAME="lo")
        with pytest.raises(PreflightFailed) as failed:
            survey(Wanted([[train]], tmp_path, 40.0), lambda check, seconds: None)
    [check] = failed.value.failed
    assert check.name == "handshake"
    assert "could not add up a number" in check.detail and "GLOO_SOCKET_IFNAME" in check.fix
