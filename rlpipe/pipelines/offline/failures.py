"""What Ray Train says of a training that failed, in the terms of the recipe."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import tracebacks
from rlpipe.runtime.handle import DeadlineExceeded, RoleDied
from rlpipe.runtime.roles import PlacementError


class TrainingFailed(RuntimeError):
    """A training process raised something unforeseen; the message says which rank and what."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and how long to wait for it."""

    name: str
    """For people: `SFT`."""
    ranks: int
    resources: Resources
    threads: int
    """CPU threads of each rank; 0 shares all cores of a node among its ranks."""
    deadlines: Deadlines
    secrets: tuple[str, ...] = ()
    """Names of the variables with keys that they get."""


def explained(error: BaseException, launch: Launch) -> BaseException:
    """What to raise in the place of what `TorchTrainer.fit` raised: an error of ours as a rank raised it,
    `PlacementError`, `RoleDied` or `DeadlineExceeded` for a process that is gone or hangs, else `TrainingFailed`."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return _first_failure(error.worker_failures, launch)
    failure = error.controller_failure if isinstance(error, ControllerError) else error
    if type(failure).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
        return PlacementError(_placement_message(launch))
    if death := _death(failure):
        # Ray Train's controller met it before it asked the ranks how they are, and does not say which one it was.
        return RoleDied(f"A rank of {launch.name} training died: {str(death).strip()}", launch.name)
    return TrainingFailed(f"{launch.name} training failed: {error}")


def _death(error: BaseException) -> BaseException | None:
    """The error among `error` and its causes that tells of a process or node that is gone."""
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )

    gone = (RayActorError, WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError, ObjectLostError)
    for one in _causes(error):
        if isinstance(one, gone) and not getattr(one, "actor_init_failed", False):
            return one
        # On the way from the controller an exception loses its cause. Ray Train raises this one where an actor died, or
        # where its constructor raised, which would come again.
        startup = type(one).__name__ in ("WorkerGroupStartupFailedError", "PreemptionError")
        if startup and "error raised in its creation task" not in str(one):
            return one
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what lies behind it: as Python has it, or as Ray does when it has crossed processes."""
    seen: set[int] = set()
    following: list[object] = [error]
    while following:
        one = following.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            following += [getattr(one, "cause", None), one.__cause__]


def _first_failure(failures: dict[int, Exception], launch: Launch) -> BaseException:
    """The cause, not the other ranks' broken connections to the rank that failed."""
    rank, cause = min(failures.items(), key=lambda item: (_is_collateral(item[1]), item[0]))
    if type(cause).__module__.startswith("rlpipe."):
        return cause
    who = f"{launch.name}[{rank}]"
    if type(cause).__name__ == "WorkerHealthCheckFailedError" and _death(cause.health_check_failure):
        return RoleDied(f"Rank {rank} of {launch.name} training died: {str(cause).strip().splitlines()[-1]}", who)
    if type(cause).__name__ == "WorkerHealthCheckTimeoutError":
        return DeadlineExceeded(f"Rank {rank} of {launch.name} training hangs: {cause}", who)
    if len(failures) < launch.ranks and _is_collateral(cause):
        # Ray Train ended the others before it had noticed which one was gone.
        what = f"A rank other than {rank} of {launch.name} training died"
        return RoleDied(f"{what}: rank {rank} lost its connection. {cause}", launch.name)
    failed = f"{launch.name} training failed on rank {rank}"
    if lines := tracebacks.kept_of(cause):
        return TrainingFailed(f"{failed}, {lines}")
    return TrainingFailed(f"{failed}: {type(cause).__name__}: {cause}")


def _is_collateral(error: Exception) -> bool:
    return any(word in str(error) for word in ("Connection closed", "Connection reset", "gloo", "NCCL"))


def _placement_message(launch: Launch) -> str:
    import ray

    from rlpipe.runtime.reservation import bundle, shown

    return (
        f"The cluster did not give {launch.name} training its resources within {launch.deadlines.placement:g} s "
        f"(deadlines.placement). Asked for: {launch.ranks} x {bundle(launch.resources)} (train.ranks and "
        f"train.resources). The cluster has {shown(ray.cluster_resources())}, of which free: "
        f"{shown(ray.available_resources())}. Lower those lines, or add nodes."
    )
