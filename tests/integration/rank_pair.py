"""Two ranks of a role in Ray actors, for the tests that two train and answer as one does."""

import os
import sys
from pathlib import Path

import ray
import torch

from rlpipe.runtime.local import free_port
from rlpipe.training.distributed import Rank

HERE = Path(__file__).parent


class Worker:
    """One process that is a rank of one role after the other."""

    def build(self, role: type, spec: object, rank: Rank) -> None:
        torch.set_num_threads(1)
        self.role = role(spec, rank)

    def call(self, method: str, *args):
        return getattr(self.role, method)(*args)


class Pair:
    """The two, and the port where they meet."""

    def __init__(self) -> None:
        # The workers unpickle `Worker` by importing this file.
        path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
        options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}}}
        self.workers = [ray.remote(Worker).options(**options).remote() for _ in range(2)]
        self.port = free_port()

    def build(self, role: type, spec: object) -> None:
        ranks = [Rank(i, 2, 0, "127.0.0.1", self.port) for i in range(2)]
        ray.get([w.build.remote(role, spec, r) for w, r in zip(self.workers, ranks, strict=True)], timeout=300)

    def call(self, method: str, *arguments: list):
        """Each argument is a list with one value per rank."""
        per_rank = zip(*arguments, strict=True) if arguments else [(), ()]
        return ray.get([w.call.remote(method, *a) for w, a in zip(self.workers, per_rank, strict=True)], timeout=300)
