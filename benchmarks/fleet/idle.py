"""A role that computes nothing: what a call of it takes is Ray's and ours."""

import time

import numpy as np
import ray

from rlpipe.data.flow import FinishReason, GroupRequest, Sampling, VersionSpan
from rlpipe.rollout.records import trajectory
from rlpipe.rollout.worker import Slice
from rlpipe.runtime.ray_host import Host


class Idle:
    """Has some finished responses to hand over, or nothing."""

    def __init__(self, responses: int, tokens: int) -> None:
        request = GroupRequest("g", "p", np.zeros(32, np.int32), (0,) * responses, Sampling(tokens, 1.0, ()))
        column = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), [VersionSpan(0, 0)], FinishReason.STOP
        self._slice = Slice([trajectory(request, i, *column) for i in range(responses)], 1, 0.0)

    def nothing(self) -> None:
        """Answered at once."""

    def advance(self, seconds: float) -> Slice:
        """A slice of responses, after so long."""
        time.sleep(seconds)
        return self._slice


class LeanHost(Host):
    """A host that does not set torch's threads: with torch imported, 32 of them would not fit on a small machine."""

    @ray.method(concurrency_group="role")
    def build(self, name: str, role: type, arguments: tuple, *_: object) -> None:
        self._roles[name] = role(*arguments)


RemoteLeanHost = ray.remote(concurrency_groups={"role": 1, "alive": 1})(LeanHost)
