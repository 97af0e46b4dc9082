"""Everything of vLLM that differs between 0.26 (GPU) and 0.32 (CPU), or that is not its public interface.

Requests go straight to vLLM's engine core, in this process: tokens in and tokens out need neither its tokenizer nor its
detokenising, per-token output processor.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpipe.models.load import resolve_dtype
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.records import Limits

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives in the hosting process, which steps it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are the host's to set
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one both builds have
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_BLOCK_SIZE = 32
"""KV cache tokens per block. Prompts share whole blocks only: vLLM's 128 on CPU would share next to nothing."""
PROBE_SEATS = 8
"""Places in the batch that requests cannot take, so that probes need not wait for a response to end."""
MAX_BATCHED_TOKENS = 8192
"""Tokens of one forward pass; longer prefills are done in chunks."""


class VllmCore:
    """vLLM's scheduler and model, stepped by hand."""

    def __init__(self, spec: EngineSpec) -> None:
        prepare_environment()
        quiet_imports()
        with host_kept():
            from vllm.v1.engine.core_client import InprocClient
            from vllm.v1.executor import Executor

            config = _engine_args(spec).create_engine_config()
            try:
                self._client = InprocClient(config, Executor.get_class(config), log_stats=False)
            except ValueError as error:
                raise ValueError(_with_our_names(str(error))) from error
        self.hf_config = config.model_config.hf_config
        self.limits = Limits(config.model_config.max_model_len, config.model_config.get_vocab_size())
        self._arrivals = count()
        self._is_cpu = config.device_config.device_type == "cpu"
        if self._is_cpu:
            _rank_without_compiling()

    def add(
        self,
        request_id: str,
        tokens: list[int],
        params: "SamplingParams",
        lora: "LoRARequest | None" = None,
        first: bool = False,
    ) -> None:
        """Queue a request, in order of arrival; `first` ones before all others."""
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=tokens,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=float(next(self._arrivals)),
            lora_request=lora,
            cache_salt=None,
            data_parallel_rank=None,
            priority=-1 if first else 0,
        )
        self._client.add_request(request)

    def step(self) -> "list[EngineCoreOutput]":
        """One forward pass; one output per request that got a token."""
        return self._client.get_output().outputs

    def abort(self, request_ids: list[str]) -> None:
        self._client.abort_requests(request_ids)

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights. Hugging Face names; repacks what vLLM keeps packed."""
        self._client.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        if self._is_cpu:
            self._client.collective_rpc(repack_embeddings)

    def load_adapter(self, request: "LoRARequest") -> None:
        """Load the adapter from the request's folder, in place of the one with the same id."""
        self._client.add_lora(request)

    def close(self) -> None:
        """End the engine: a process can start another one only then."""
        self._client.shutdown()

    def forget_cache(self) -> None:
        """Use nothing computed so far again: the prefix cache is emptied, and running requests compute their keys and
        values again before their next token."""
        if not self._client.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM could not empty its prefix cache; the engine would mix weight versions")


def prepare_environment() -> None:
    """vLLM reads its environment when imported and when an engine starts."""
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would override kv_cache_gib


def quiet_imports() -> None:
    """What vLLM's imports say of names they merely pass by, and of a Triton that no CPU build has."""
    warnings.filterwarnings(
        "ignore",
        message=r"`torch\.distributed\.reduce_op` is deprecated",
        category=FutureWarning,
        module=r"vllm\.triton_utils\.dispatcher$",
    )
    logging.getLogger("torch._library.triton").addFilter(_not_about_triton)


def _not_about_triton(record: logging.LogRecord) -> bool:
    return record.getMessage() != "Triton not available, find_triton_kernels = []"


@contextmanager
def host_kept() -> Iterator[None]:
    """Start an engine without its side effects on the process: vLLM seeds every global generator, replaces
    torch.set_num_threads by a function that does nothing, binds the process's memory to one NUMA node, and sets
    variables that child processes would inherit."""
    environment = dict(os.environ)
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.ops._C.init_cpu_memory_env = lambda nodes: None  # what binds memory
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        for name in {k for k in os.environ if not k.startswith("VLLM_")} - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def repack_embeddings(worker: Any) -> None:
    """Pack embeddings and output head again from their present weights; runs in vLLM's worker.

    Reloading packs a layer when its own weights come. An output head tied to the embedding gets none of its own and
    keeps multiplying by what was packed before.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, VocabParallelEmbedding):  # also the class of output heads
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _engine_args(spec: EngineSpec) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    memory = (
        {"kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30), "block_size": CPU_BLOCK_SIZE}
        if on_cpu
        else {"gpu_memory_utilization": spec.gpu_memory_utilization}
    )
    # vLLM takes 8, 16, 32, … as the highest rank; adapters of any rank below fit.
    highest_rank = 2 ** max(3, (spec.lora_rank - 1).bit_length()) if spec.lora_rank else None
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": highest_rank} if highest_rank else {}
    return EngineArgs(
        model=spec.model,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        load_format="safetensors",  # "auto" opens pickles where there are no safetensors
        skip_tokenizer_init=True,
        generation_config="vllm",  # not the model folder's top-p and penalties
        dtype=str(resolve_dtype(spec.dtype)).removeprefix("torch."),
        seed=spec.seed,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs + PROBE_SEATS,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        enforce_eager=on_cpu,  # compiling takes longer there than it saves
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",  # of the tempered distribution, the one sampled from
        scheduling_policy="priority",
        async_scheduling=False,  # a token returned by a step was sampled in it, so version boundaries are exact
        distributed_executor_backend="uni",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **memory,
        **lora,
    )


def _with_our_names(message: str) -> str:
    return (
        f"vLLM could not start: {message}\nIf memory is short: the KV cache is set by rollout.kv_cache_gib on CPU and "
        "rollout.gpu_memory_utilization on a GPU, the longest sequence by rollout.max_model_len."
    )


def _rank_without_compiling() -> None:
    """vLLM compiles the function that ranks each sampled token, which takes seconds at the first request; nobody here
    reads the rank."""
    from vllm.v1.sample import sampler

    sampler.batched_count_greater_than = lambda logprobs, chosen: (logprobs >= chosen).sum(-1)
