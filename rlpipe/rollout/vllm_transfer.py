"""vLLM's own weight-transfer engines as this project uses them, for 0.26 and 0.32 alike.

Weights are packed into buffers on both sides. 0.26 is told of that with each update, 0.32 once at the beginning.
"""

from dataclasses import fields
from typing import Any

from rlpipe.weights.direct import BUCKET_BYTES, BUFFERS, Part, Transport, Wire


def configured(transport: Transport | None) -> dict[str, Any]:
    """What an engine has to be started with."""
    if transport is None:
        return {}
    from vllm.config import WeightTransferConfig

    return {"weight_transfer_config": WeightTransferConfig(backend=transport)}


def joining(wire: Wire, workers: int) -> dict[str, Any]:
    """What `init_weight_transfer_engine` takes for NCCL: the policy is rank 0, the workers come after it."""
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

    info = {
        "master_address": wire.address,
        "master_port": wire.port,
        "rank_offset": 1,
        "world_size": 1 + workers,
    }
    return info | _known(NCCLWeightTransferInitInfo, _packing("nccl"))


def opening() -> dict[str, Any]:
    """The same for IPC, which needs no meeting."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo

    return _known(IPCWeightTransferInitInfo, {"packed": True})


def arriving(transport: Transport, part: Part) -> dict[str, Any]:
    """What `update_weights` takes."""
    info = {
        "names": [tensor.name for tensor in part.tensors],
        "dtype_names": [tensor.dtype for tensor in part.tensors],
        "shapes": [list(tensor.shape) for tensor in part.tensors],
    }
    if part.handles is not None:
        info |= {"ipc_handles": part.handles, "tensor_sizes": [tensor.nbytes for tensor in part.tensors]}
    return info | _known(_update_info(transport), _packing(transport))


def _update_info(transport: Transport) -> type:
    if transport == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        return NCCLWeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo

    return IPCWeightTransferUpdateInfo


def _packing(transport: Transport) -> dict[str, Any]:
    sizes = {"packed_buffer_size_bytes": BUCKET_BYTES, "packed_num_buffers": BUFFERS}
    return {"packed": True} | (sizes if transport == "nccl" else {})


def _known(kind: type, settings: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in settings.items() if name in names}
