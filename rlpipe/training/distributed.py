"""Joining the ranks of a training role: one torch process group that DeepSpeed then works on.

In `--debug` the driver's process also hosts vLLM, which wants a default process group too. Both keep one that is there
already, in either order, as long as it has one rank; so here an existing group of the right size is taken as it is. But
vLLM, when its engine is shut down in this process, destroys the default group whoever made it: engines are to be shut
down after the last training call. `join` notices a group that was destroyed and starts over.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a training role, and where its processes meet."""

    index: int = 0
    world: int = 1
    local_rank: int = 0
    """Which of this node's visible GPUs the process takes."""
    master_address: str = "127.0.0.1"
    master_port: int = 0
    """A free port on rank 0's node; unused when there is one rank."""


def device_of(rank: Rank) -> torch.device:
    """The GPU of this rank, or the CPU. A process that sees one GPU, as under Ray, takes that one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank.local_rank % torch.cuda.device_count())


def join(rank: Rank, timeout_seconds: float) -> torch.device:
    """Meet the other ranks and make DeepSpeed ready; returns this rank's device.

    Collective. Raises `TimeoutError` if a rank does not come within `timeout_seconds`; the same limit then holds for
    each collective.
    """
    device = device_of(rank)
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # DeepSpeed reads it from nowhere else
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _meet_in_time(rank, device, timeout_seconds)
    elif (dist.get_rank(), dist.get_world_size()) != (rank.index, rank.world):
        raise RuntimeError(
            f"this process already is rank {dist.get_rank()} of {dist.get_world_size()} of a process group and cannot "
            f"also be rank {rank.index} of {rank.world}: host each training rank in a process of its own"
        )
    _attach_deepspeed(timedelta(seconds=timeout_seconds))
    return device


def _meet_in_time(rank: Rank, device: torch.device, timeout_seconds: float) -> None:
    try:
        meet(rank, device, timedelta(seconds=timeout_seconds))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise TimeoutError(
            f"training rank {rank.index} waited {timeout_seconds:g} s for the other {rank.world - 1} ranks at "
            f"{rank.master_address}:{rank.master_port}: they did not start, or cannot reach that address. {error}"
        ) from error


def meet(rank: Rank, device: torch.device, timeout: timedelta) -> None:
    """Make this process one rank of the default process group: gloo, and NCCL between GPUs."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if rank.world == 1:
        store = dist.HashStore()  # needs no port
    else:
        store = dist.TCPStore(rank.master_address, rank.master_port, rank.world, rank.index == 0, timeout)
    dist.init_process_group(backend, store=store, rank=rank.index, world_size=rank.world, timeout=timeout)


def _attach_deepspeed(timeout: timedelta) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch 2.13 is renaming.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    leave_out_inference_op()
    import deepspeed
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is not None and not _exists(groups._WORLD_GROUP):
        groups._release_process_group_references()
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), auto_mpi_discovery=False, timeout=timeout, verbose=False
    )


def leave_out_inference_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, which only tensor-parallel inference on CPU uses.

    To be called before DeepSpeed's first `init_distributed` in a process; saves g++ and 50 s on a fresh machine.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _exists(group: dist.ProcessGroup) -> bool:
    try:
        dist.get_process_group_ranks(group)
    except KeyError:
        return False
    return True
