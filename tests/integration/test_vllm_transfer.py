"""What this project tells vLLM's weight-transfer engines is what the installed vLLM takes."""

from itertools import count

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import END, request

from rlpipe.rollout import vllm_transfer
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.vllm_compat import prepare_environment, quiet_imports
from rlpipe.rollout.vllm_engine import VllmEngine
from rlpipe.training.direct import Sender
from rlpipe.training.distributed import Rank
from rlpipe.weights.direct import BUCKET_BYTES, Arrived, Part, Shape, Wire

pytestmark = pytest.mark.integration

PROBE = np.arange(5, 40, dtype=np.int32)
PART = Part((Shape("w", "bfloat16", (2, 3), 12),), {"GPU-1": ("handle",)})


@pytest.fixture(scope="module", autouse=True)
def vllm():
    prepare_environment()
    quiet_imports()


def test_both_sides_of_nccl_cut_the_stream_alike():
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

    joining = NCCLWeightTransferInitInfo(**vllm_transfer.joining(Wire("10.0.0.1", 1234, "token"), workers=2))
    assert (joining.master_address, joining.master_port, joining.rank_offset, joining.world_size) == (
        "10.0.0.1", 1234, 1, 3,
    )  # fmt: skip
    arriving = NCCLWeightTransferUpdateInfo(**vllm_transfer.arriving("nccl", Part(PART.tensors)))
    assert (arriving.names, arriving.dtype_names, arriving.shapes) == (["w"], ["bfloat16"], [[2, 3]])
    told = joining if hasattr(joining, "packed") else arriving  # 0.26 is told with each update
    assert told.packed and told.packed_buffer_size_bytes == BUCKET_BYTES and told.packed_num_buffers == 2


def test_ipc_is_told_where_each_tensor_lies():
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo

    opening = IPCWeightTransferInitInfo(**vllm_transfer.opening())
    arriving = IPCWeightTransferUpdateInfo(**vllm_transfer.arriving("ipc", PART))
    assert arriving.ipc_handles == {"GPU-1": ("handle",)} and arriving.tensor_sizes == [12]
    assert (opening if hasattr(opening, "packed") else arriving).packed


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_vllm_knows_the_transport(transport):
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    config = vllm_transfer.configured(transport)["weight_transfer_config"]
    assert config.backend in WeightTransferEngineFactory._registry
    assert vllm_transfer.configured(None) == {}


def test_vllm_serves_what_it_has_taken_in_part_by_part(tmp_path, monkeypatch):
    """As from a GPU, with a buffer in this process's memory in place of one on the GPU."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

    buffers = {}

    class FromMemory(IPCWeightTransferEngine):
        def update_weights(self, update_info):  # which waits for a GPU at its end
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info):
            dtypes = [getattr(torch, name) for name in update_info.dtype_names]
            packed = buffers[update_info.ipc_handles["here"][0]]
            named = unpack_tensor(packed, update_info.names, update_info.shapes, dtypes, update_info.tensor_sizes)
            # vLLM puts a layer together when all of it is there, and the buffer is used again before.
            self.model.load_weights([(name, tensor.clone()) for name, tensor in named])

    monkeypatch.setitem(WeightTransferEngineFactory._registry, "memory", lambda: FromMemory)
    config = {"weight_transfer_config": WeightTransferConfig(backend="memory")}
    monkeypatch.setattr(vllm_transfer, "configured", lambda transport: config)
    folder = tiny_models.save_model(tmp_path, tied=False)  # tied heads are packed again for payloads alone
    spec = EngineSpec("vllm", str(folder), "float32", (END,), 0, kv_cache_gib=0.05, transport="ipc", sleeps=True)
    engine, model = VllmEngine(spec), tiny_models.load(folder)
    try:
        for version in (1, 2):
            tiny_models.scramble(model, seed=version)
            engine.sleep()
            with pytest.raises(NotCurrent):
                engine.submit([request(0)])
            send(model, engine, buffers)
            assert engine.publish(version, Arrived()).digest is None
            with torch.no_grad():
                expected = tiny_models.teacher_forced(model, PROBE[:1], PROBE[1:])
            np.testing.assert_allclose(engine.probe([PROBE])[0], expected, atol=1e-4)
            assert engine.health().version == version
    finally:
        engine.close()


def send(model, engine, buffers) -> None:
    """What a rank does on a GPU."""
    sender = Sender(Rank(), bucket_bytes=1 << 15)
    parameters = dict(model.named_parameters())
    for index in count():
        part = sender.part(model, index, keep=False)
        if part is None:
            break
        tensors = [parameters[shape.name].detach() for shape in part.tensors]
        buffers["buffer"] = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
        engine.take(Part(part.tensors, {"here": ("buffer",)}))
    assert index > 4
