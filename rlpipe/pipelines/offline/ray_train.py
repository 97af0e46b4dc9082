"""Running a training function on Ray Train: in the driver's process (its local mode), or as ranks on the cluster."""

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rlpipe.pipelines.offline.failures import Launch, explained
from rlpipe.pipelines.offline.progress import Channel, LocalProgress, Progress, RemoteProgress, Report
from rlpipe.recipe import secrets
from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import DeadlineExceeded, NotStarted, RoleDied
from rlpipe.runtime.threads import set_threads

if TYPE_CHECKING:
    from rlpipe.pipelines.offline.ranks import Ranks

TrainFunction = Callable[[Any, Progress], None]
_POLL_SECONDS = 0.2
_FETCHING_SECONDS = 60.0
_CHANNEL_SECONDS = 2 * _FETCHING_SECONDS
"""How long a rank waits for the channel: longer than the driver, who is the one to tell that it does not answer."""


def run_local(train: TrainFunction, job: Any, launch: Launch, report: Report) -> None:
    """Run `train` here, in Ray Train's local mode; a breakpoint in it stops the world."""
    with _environment_restored():
        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)  # left by a stage before; Ray Train would take them for torchrun's
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        def train_here(_: dict[str, Any]) -> None:
            set_threads(launch.threads, sharing=1)
            train(job, LocalProgress(report))

        logging.getLogger("ray.train").setLevel(logging.WARNING)  # it announces its local mode
        TorchTrainer(train_here, train_loop_config={}, scaling_config=ScalingConfig(num_workers=0)).fit()


def run_remote(train: TrainFunction, job: Any, launch: Launch, report: Report) -> None:
    """Run `train` as `launch.ranks` processes on the cluster that Ray is connected to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from rlpipe.pipelines.offline.ranks import Ranks

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    channel = ray.remote(num_cpus=0, scheduling_strategy=here)(Channel).remote(secrets.of(launch.secrets))
    with tempfile.TemporaryDirectory(prefix="rlpipe-train-") as scratch, _train_settings(launch.deadlines):
        fit, ranks = _Fit(_trainer(train, job, launch, channel, scratch)), Ranks(channel, launch)
        try:
            _follow(fit, ranks, channel, launch, report)
        except BaseException:
            ranks.end()
            fit.finished(wait_seconds=10)  # Ray Train clears up the rest
            raise
        finally:
            ray.kill(channel)


class _Fit:
    """`TorchTrainer.fit` in a thread of its own: the driver goes on reporting, and Ctrl-C stays ours."""

    def __init__(self, trainer: Any) -> None:
        self.error: BaseException | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._run, name="ray-train-fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the driver's own thread
            self.error = error

    def finished(self, wait_seconds: float) -> bool:
        self._thread.join(wait_seconds)
        return not self._thread.is_alive()


def _trainer(train: TrainFunction, job: Any, launch: Launch, channel: Any, scratch: str) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from rlpipe.runtime.ray_host import kept_with_place
    from rlpipe.runtime.reservation import bundle, fitted

    each, *_ = fitted([bundle(launch.resources)] * launch.ranks)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {} if "GPU" in each else {"DS_ACCELERATOR": "cpu"}

    def train_remotely(config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        # Waited for: a rank that comes up after its attempt was given up finds no channel, and ends.
        me = context.get_world_rank(), ray.get_runtime_context().current_actor
        joined = config["channel"].join.remote(*me)
        secrets.take(ray.get(joined, timeout=_CHANNEL_SECONDS), launch.secrets)
        set_threads(launch.threads, context.get_local_world_size())
        with kept_with_place(), secrets.hidden_in_errors():
            train(config["job"], RemoteProgress(config["channel"], speaks=context.get_world_rank() == 0))
        # Calls of one process arrive in order: after this one, all that was told is there for the driver's last fetch.
        ray.get(config["channel"].put.remote("its end", None), timeout=_CHANNEL_SECONDS)

    return TorchTrainer(
        train_remotely,
        train_loop_config={"job": job, "channel": channel},
        scaling_config=ScalingConfig(num_workers=launch.ranks, use_gpu="GPU" in each, resources_per_worker=each),
        run_config=RunConfig(
            name="train",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _follow(fit: _Fit, ranks: "Ranks", channel: Any, launch: Launch, report: Report) -> None:
    """Report until training ends; raise if it fails, does not start, or says nothing for too long."""
    last_sign, doing = time.monotonic(), None
    while True:
        finished = fit.finished(_POLL_SECONDS)
        metrics, sign = _fetch(channel, launch)
        for step, values in metrics:
            report(step, values)
        if sign is not None:
            last_sign, doing = time.monotonic(), sign
        if finished:
            break
        if late := _late(launch, doing, time.monotonic() - last_sign):
            overdue = NotStarted if doing is None else DeadlineExceeded
            raise overdue(f"{late}\n{ranks.surroundings()}", launch.name)
        if doing is not None:  # what imports and loads may be silent for long
            ranks.require_life()
    if fit.error is not None:
        raise explained(fit.error, launch) from fit.error


def _fetch(channel: Any, launch: Launch) -> tuple[list[tuple[int, dict[str, float]]], str | None]:
    import ray

    try:
        return ray.get(channel.fetch.remote(), timeout=_FETCHING_SECONDS)
    except ray.exceptions.RayError as error:
        between = f"The process between the ranks of {launch.name} training and the driver"
        raise RoleDied(f"{between} died, or does not answer: {error}", launch.name) from None


def _late(launch: Launch, doing: str | None, silent_seconds: float) -> str:
    """What a training that is silent for too long is waited for; empty for one that is not."""
    phase = "start" if doing is None else "train"
    allowed = getattr(launch.deadlines, phase)
    if doing is None:
        allowed += launch.deadlines.placement
    if silent_seconds <= allowed:
        return ""
    what = "its processes to start" if doing is None else f"a sign of life after {doing}"
    return (
        f"The driver waited {silent_seconds:.0f} s for {launch.name} training ({launch.ranks} ranks): {what} "
        f"(deadlines.{phase}={getattr(launch.deadlines, phase):g})."
    )


@contextlib.contextmanager
def _train_settings(deadlines: Deadlines) -> Iterator[None]:
    """Ray Train takes these from the driver's environment only."""
    with _environment_restored():
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(deadlines.placement)
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        # A process more that tells of nodes which are to be taken away, to training functions that ask; ours do not.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        yield


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
