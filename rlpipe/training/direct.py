"""The sending side of weights that go from GPU to GPU, on one rank of the policy."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import xxhash

from rlpipe.rollout.vllm_compat import prepare_environment
from rlpipe.runtime.local import free_port
from rlpipe.training.distributed import Rank
from rlpipe.training.export import gathered
from rlpipe.training.sharding import size
from rlpipe.weights.direct import BUCKET_BYTES, BUFFERS, Described, Part, Shape, Wire, split


class Sender:
    """All weights of a model without an adapter, to engines one by one. Every call but `open_wire`, `token` and `join`
    is collective under ZeRO-3."""

    def __init__(self, rank: Rank, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._rank, self._bucket_bytes = rank, bucket_bytes
        self._groups: dict[str, tuple[str, Any]] = {}
        """By the name of the engine, the token of the wire and vLLM's communicator."""
        self._buffer: torch.Tensor | None = None

    def describe(self, model: torch.nn.Module) -> Described:
        """What the weights are now."""
        digest, shapes = xxhash.xxh3_128(), []
        for name, tensor in gathered(list(model.named_parameters())):
            shape = _shape(name, tensor)
            shapes.append(shape)
            digest.update(f"{shape.name} {shape.dtype} {shape.shape} {checksum(tensor)}\n".encode())
        return Described(tuple(shapes), f"checksum:{digest.hexdigest()}")

    def part(self, model: torch.nn.Module, index: int, keep: bool) -> Part | None:
        """The `index`-th part, in a buffer that an engine on this GPU may open until the next call; with `keep` False
        this rank only helps others to gather theirs. None after the last one."""
        groups = split(tuple(_whole_shape(n, p) for n, p in model.named_parameters()), self._bucket_bytes)
        if index >= len(groups):
            # Of an engine that others serve, the ranks here may not have been read yet.
            self._buffer = None if keep else self._buffer
            return None
        parameters = dict(model.named_parameters())
        tensors = gathered([(shape.name, parameters[shape.name]) for shape in groups[index]])
        if not keep:
            _use_up(tensors)
            return Part(groups[index], {})
        return Part(groups[index], self._filled(tensors, max(sum(t.nbytes for t in group) for group in groups)))

    def _filled(self, tensors: Iterable[tuple[str, torch.Tensor]], room: int) -> dict[str, tuple[Any, ...]]:
        from torch.multiprocessing.reductions import reduce_tensor

        device = torch.cuda.current_device()
        if self._buffer is None or self._buffer.numel() != room:
            self._buffer = torch.empty(room, dtype=torch.uint8, device=device)
        _lay_out(tensors, self._buffer)
        torch.cuda.synchronize()  # the other process knows nothing of this one's streams
        # Opened anew for each part: torch counts an opening and a closing for each.
        _, arguments = reduce_tensor(self._buffer)
        return {str(torch.cuda.get_device_properties(device).uuid): arguments}

    def open_wire(self, token: str) -> Wire:
        """This node's address, where the ranks have met, and a free port on it. Of rank 0."""
        return Wire(self._rank.master_address, free_port(), token)

    def token(self, engine: str) -> str | None:
        """Of the wire to this engine, if there is one."""
        return self._groups[engine][0] if engine in self._groups else None

    def join(self, engine: str, wire: Wire, workers: int) -> None:
        """Meet an engine's workers, as rank 0 of a NCCL group; waits for them."""
        prepare_environment()
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        where = {"master_address": wire.address, "master_port": wire.port, "world_size": 1 + workers}
        # A group with a process that is gone is let go, and not destroyed: NCCL would wait for that process.
        ours = torch.cuda.current_stream()
        try:
            self._groups[engine] = wire.token, trainer_init(where)
        finally:
            torch.cuda.set_stream(ours)  # vLLM gives the thread another one, for good

    def broadcast(self, model: torch.nn.Module, engine: str) -> None:
        """All weights, in buffers of `bucket_bytes`, to an engine that takes them at the same time."""
        tensors = gathered(list(model.named_parameters()))
        if self._rank.index != 0:
            _use_up(tensors)
            return
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            iterator=((name, tensor.detach()) for name, tensor in tensors),
            group=self._groups[engine][1],
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._bucket_bytes,
            num_buffers=BUFFERS,
        )
        torch.cuda.synchronize()


def checksum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits, taken as integers as wide as its elements: what an update changes, it changes."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.detach().view(integers[tensor.element_size()]).sum(dtype=torch.int64))


def _lay_out(tensors: Iterable[tuple[str, torch.Tensor]], buffer: torch.Tensor) -> None:
    """End to end, as `Part` says."""
    start = 0
    for _, tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        buffer[start : start + raw.numel()].copy_(raw)
        start += raw.numel()


def _use_up(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    for _ in tensors:
        pass


def _shape(name: str, tensor: torch.Tensor) -> Shape:
    return Shape(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)


def _whole_shape(name: str, parameter: torch.nn.Parameter) -> Shape:
    """As `_shape`, of a parameter that ZeRO-3 may have split."""
    shape = tuple(size(parameter))
    dtype = str(parameter.dtype).removeprefix("torch.")
    return Shape(name, dtype, shape, math.prod(shape) * parameter.element_size())
