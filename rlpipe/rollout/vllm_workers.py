"""What runs in vLLM's workers, which hold the model: in the engine's own process, or with tensor parallelism in one
process for each GPU. Each function gets vLLM's worker first."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from rlpipe.weights.packing import tensors_of
from rlpipe.weights.payload import TensorEntry


def begin_reload(worker: Any) -> None:
    """New weights come, in Hugging Face's names and shapes, in as many `load_bucket` as the sender likes."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    with _configured(worker):
        initialize_layerwise_reload(worker.model_runner.get_model())


def load_bucket(worker: Any, entries: Sequence[TensorEntry], bucket: np.ndarray) -> None:
    """These tensors of a payload, which lie in this bucket; a worker takes its part of each."""
    with _configured(worker):
        worker.model_runner.get_model().load_weights(tensors_of(entries, bucket))


def end_reload(worker: Any) -> None:
    """All have come: what vLLM keeps packed is packed again."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
    from vllm.platforms import current_platform

    with _configured(worker):
        finalize_layerwise_reload(worker.model_runner.get_model(), worker.model_runner.model_config)
    if current_platform.is_cpu():
        repack_embeddings(worker)


def _configured(worker: Any) -> AbstractContextManager[None]:
    """As vLLM's own reload has it: some layers look for the configuration in a global."""
    from vllm.config import set_current_vllm_config

    return set_current_vllm_config(worker.vllm_config)


def repack_embeddings(worker: Any) -> None:
    """Pack embeddings and output head again from their present weights.

    Reloading packs a layer when its own weights come. An output head tied to the embedding gets none of its own and
    keeps multiplying by what was packed before.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, VocabParallelEmbedding):  # also the class of output heads
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
