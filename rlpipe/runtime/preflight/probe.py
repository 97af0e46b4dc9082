"""A process on a node: it looks around, lets others call it, and shakes hands as training ranks do."""

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from datetime import timedelta

import ray

from rlpipe.runtime.local import free_port
from rlpipe.runtime.preflight.look import Seen, Task, look, mark

_CALL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """What a process with a GPU reserved sees of it."""

    reserved: int
    """How many Ray has given it."""
    visible: int
    """How many torch sees; 0 if torch has no use of them at all."""
    torch: str
    """What torch was built for."""


class Probe:
    """The actor. It is asked one thing at a time; calls of others are taken in by a thread."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._node, self._address = context.get_node_id(), ray.util.get_node_ip_address()
        self._server: socket.socket | None = None

    def look(self, task: Task) -> Seen:
        return look(task, self._node, self._address)

    def tidy(self, task: Task) -> None:
        """Remove what `look` has written: only this node may see it."""
        with contextlib.suppress(OSError):
            mark(task.run_dir, self._node).unlink(missing_ok=True)

    def listen(self) -> tuple[str, int]:
        """Where others can call."""
        self._server = socket.create_server((self._address, 0))
        threading.Thread(target=self._answer, args=(self._server,), daemon=True).start()
        return self._server.getsockname()

    def _answer(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                calling, _ = server.accept()
                calling.close()

    def call(self, others: dict[str, tuple[str, int]]) -> dict[str, str]:
        """Those of the others that cannot be reached, with the reason."""
        found: dict[str, str] = {}
        threads = [threading.Thread(target=_call, args=(name, where, found)) for name, where in others.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def meeting_point(self) -> tuple[str, int]:
        return self._address, free_port()

    def warm(self) -> None:
        """Import what `shake` needs, which may take long on a cold disk and says nothing of the network."""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import torch.distributed  # noqa: F401

        from rlpipe.training import distributed  # noqa: F401

    def shake(self, index: int, world: int, address: str, port: int, seconds: float) -> str:
        """One all-reduce over all probes, with what ranks of training use: gloo, and NCCL where this process has a GPU.
        What went wrong; empty if the sum is right."""
        import torch
        import torch.distributed as dist

        from rlpipe.training.distributed import Rank, device_of, meet

        rank = Rank(index, world, 0, address, port)
        device = device_of(rank)
        try:
            meet(rank, device, timedelta(seconds=seconds))
            number = torch.full((1,), float(index + 1), device=device)
            dist.all_reduce(number)
        except Exception as error:  # whatever torch, gloo or NCCL raise: it is the finding
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        right = world * (world + 1) / 2
        return "" if number.item() == right else f"the sum over all nodes is {number.item():g} and not {right:g}"

    def gpu(self) -> GpuSeen:
        import torch

        given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return GpuSeen(len(given), visible, f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU")


def _call(name: str, where: tuple[str, int], found: dict[str, str]) -> None:
    try:
        socket.create_connection(where, timeout=_CALL_SECONDS).close()
    except OSError as error:
        found[name] = error.strerror or str(error)


RemoteProbe = ray.remote(num_cpus=0, max_restarts=0)(Probe)
