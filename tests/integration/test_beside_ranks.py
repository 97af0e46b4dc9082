"""Processes that live on the GPUs of others, on a Ray that believes it has four."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.soak]

SCRIPT = """
import os
import sys

import ray

import local_ray
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime.handle import Within, results
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import RoleSpec
from roles_beside import Sees

local_ray.start(num_gpus=4)
within = Within("train", 60)


def seen(handles):
    return results([handle.call(within, Sees.devices) for handle in handles])


def role(name, count, **settings):
    few = Resources(cpus=0.1)
    return RoleSpec(name, Sees, lambda seat: (name,), count, few, 1, "train", **settings)


runtime = RayRuntime(Deadlines())
started = runtime.start([role("engine", 2, again=("engine",), gpus=2, beside="policy"), role("policy", 4)])
started.ready()
policy, engine = started.handles["policy"], started.handles["engine"]
ours, theirs = seen(policy), seen(engine)
assert sorted(ours) == ["0", "1", "2", "3"], ours
assert theirs == [",".join(ours[:2]), ",".join(ours[2:])], (ours, theirs)
assert ray.available_resources().get("GPU", 0) == 0

built = results([handle.call(within, Sees.built) for handle in [*policy, *engine]])
assert max(built[:2]) < built[4] and max(built[2:4]) < built[5], "an engine is built when its ranks are"

engine[1].restart().result()
assert seen(engine)[1] == theirs[1]
runtime.stop()
print("all are where they should be")
"""


def test_engines_see_the_gpus_of_their_ranks_and_reserve_none():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}\n{SCRIPT}"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all are where they should be" in done.stdout
