"""What Ray Train's errors are to the user: a process that is gone, one that hangs, or a fault of data and code."""

import pytest
from ray import cloudpickle
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from rlpipe.data.records import DataError
from rlpipe.pipelines.offline.failures import Launch, TrainingFailed, explained
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import tracebacks
from rlpipe.runtime.handle import DeadlineExceeded, RoleDied

LAUNCH = Launch("SFT", 2, Resources(), 1, Deadlines())


def raised_by_a_task(cause):
    """As `ray.get` raises what a task raised, here the controller's call of a worker."""
    return RayTaskError("run", "Traceback ...", cause, "ray::Worker", 1, "127.0.0.1").as_instanceof_cause()


def across_processes(error):
    """As the driver gets the controller's error: without the cause and the context that Python noted."""
    return cloudpickle.loads(cloudpickle.dumps(error))


@pytest.mark.parametrize(
    "failure",
    [
        ActorDiedError(),
        NodeDiedError("the node is gone"),
        OutOfMemoryError("killed by the node's memory monitor"),
        WorkerCrashedError(),
        raised_by_a_task(ActorDiedError()),
        WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize."),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_death_that_the_controller_meets_is_a_dead_rank(failure):
    found = explained(across_processes(ControllerError(failure)), LAUNCH)
    assert type(found) is RoleDied
    assert str(found).startswith(f"A rank of SFT training died: {str(failure).strip()[:20]}")


def test_a_controller_that_dies_itself_is_a_death_too():
    assert type(explained(ActorDiedError(), LAUNCH)) is RoleDied


@pytest.mark.parametrize("failure", [ValueError("no such option"), raised_by_a_task(KeyError("column"))])
def test_any_other_error_of_the_controller_is_no_death(failure):
    found = explained(across_processes(ControllerError(failure)), LAUNCH)
    assert type(found) is TrainingFailed
    assert str(found).startswith("SFT training failed: Training failed due to controller error")


def test_a_constructor_that_raised_is_no_death():
    raised = RayTaskError("__init__", "Traceback ...", ValueError("x"), "ray::Worker", 1, "127.0.0.1", actor_id="ab")
    assert type(explained(ControllerError(ActorDiedError(raised)), LAUNCH)) is TrainingFailed


def test_of_several_ranks_the_one_that_died_is_named():
    dead = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    lost = RuntimeError("[gloo] Connection closed by peer")
    found = explained(WorkerGroupError("...", {0: lost, 1: dead}), LAUNCH)
    assert (type(found), found.who) == (RoleDied, "SFT[1]")
    assert str(found) == "Rank 1 of SFT training died: The actor died unexpectedly before finishing this task."
    assert str(explained(WorkerGroupError("...", {0: lost}), LAUNCH)).startswith("A rank other than 0 of SFT")


def test_a_rank_that_hangs_a_fault_of_data_and_a_fault_of_code():
    hung = WorkerHealthCheckTimeoutError("A worker health check has been hanging for 600 seconds.")
    assert type(explained(WorkerGroupError("...", {1: hung}), LAUNCH)) is DeadlineExceeded
    assert str(explained(WorkerGroupError("...", {1: DataError("d.jsonl, line 7")}), LAUNCH)) == "d.jsonl, line 7"
    code = explained(WorkerGroupError("...", {1: ZeroDivisionError("by zero")}), LAUNCH)
    assert type(code) is TrainingFailed
    assert str(code) == "SFT training failed on rank 1: ZeroDivisionError: by zero"
    unsent = WorkerHealthCheckFailedError("A worker health check failed.", raised_by_a_task(TypeError("no pickle")))
    assert type(explained(WorkerGroupError("...", {1: unsent}), LAUNCH)) is TrainingFailed


def test_what_a_rank_raised_is_told_with_its_line_its_rank_and_its_node():
    with (
        pytest.raises(ValueError, match="by design") as raised,
        tracebacks.kept(lambda: "on node 10.0.0.7, in process 12"),
    ):
        raise ValueError("by design")
    failures = {0: RuntimeError("Connection closed by peer"), 1: raised.value}
    told = str(explained(across_processes(WorkerGroupError("", failures)), LAUNCH))
    assert told.startswith("SFT training failed on rank 1, on node 10.0.0.7, in process 12.\nTraceback (most")
    assert told.splitlines()[-2:] == ['    raise ValueError("by design")', "ValueError: by design"]
    assert told.count("Traceback") == 1
