"""Everything of vLLM that differs between 0.26 (GPU) and 0.32 (CPU), or that is not its public interface.

Requests go straight to vLLM's engine core, in this process: tokens in and tokens out need neither its tokenizer nor its
detokenising, per-token output processor.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpipe.models.load import resolve_dtype
from rlpipe.rollout import vllm_transfer, vllm_workers
from rlpipe.rollout.engine import EngineSpec, vllm_rank
from rlpipe.rollout.records import Limits
from rlpipe.weights.direct import Part, Wire
from rlpipe.weights.payload import Payload

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreOutput

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives in the hosting process, which steps it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are the host's to set
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one both builds have
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of tensor parallelism: the hosting process has threads, maybe a GPU
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
        self._transport, self._workers, self._updating = spec.transport, spec.tensor_parallel, False
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

    def load_weights(self, payload: Payload) -> None:
        """Replace all weights, in every worker. A bucket at a time: to another process it is sent."""
        rpc = self._client.collective_rpc
        rpc(vllm_workers.begin_reload)
        for number, bucket in enumerate(payload.buckets):
            rpc(vllm_workers.load_bucket, args=([e for e in payload.index if e.bucket == number], bucket))
        rpc(vllm_workers.end_reload)

    def join(self, wire: Wire) -> None:
        """Meet the policy for NCCL; waits for it."""
        self._initialise(vllm_transfer.joining(wire, self._workers))

    def take(self, part: Part) -> None:
        """Some of the weights, straight from GPUs."""
        rpc = self._client.collective_rpc
        if not self._updating:
            if self._transport == "ipc":
                self._initialise(vllm_transfer.opening())
            rpc("start_weight_update")
            self._updating = True
        try:
            rpc("update_weights", kwargs={"update_info": vllm_transfer.arriving(self._transport, part)})
        except BaseException:  # for vLLM the update is over then
            self._updating = False
            raise

    def end_update(self) -> None:
        """All of them are there."""
        self._client.collective_rpc("finish_weight_update")
        self._updating = False

    def abandon_update(self) -> None:
        """Whoever was to send the rest is gone. What the weights are then means nothing."""
        if self._updating:
            self.end_update()

    def _initialise(self, info: dict[str, Any]) -> None:
        self._client.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})

    def load_adapter(self, request: "LoRARequest") -> None:
        """Load the adapter from the request's folder, in place of the one with the same id."""
        self._client.add_lora(request)

    def sleep(self, keep_weights: bool) -> None:
        """Give back the GPU's memory: the KV cache's, and that of the weights, which are either kept in host memory
        (vLLM's level 1) or gone (level 2). On a CPU vLLM has nothing of the kind; only what was computed is forgotten.

        Straight to the executor: the engine core would abort requests, and it steps only when it is told to.
        """
        self.forget_cache()
        if not self._is_cpu:
            self._executor.sleep(1 if keep_weights else 2)

    def wake_weights(self) -> None:
        """Room for weights is there again; they are what was kept, or wait for new ones."""
        if not self._is_cpu:
            self._executor.wake_up(["weights"])

    def wake_cache(self) -> None:
        """And room for the KV cache. What is in it means nothing."""
        if not self._is_cpu:
            self._executor.wake_up(["kv_cache"])

    @property
    def _executor(self) -> Any:
        return self._client.engine_core.model_executor

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


def _engine_args(spec: EngineSpec) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    memory = (
        {"kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30), "block_size": CPU_BLOCK_SIZE}
        if on_cpu
        else {"gpu_memory_utilization": spec.gpu_memory_utilization}
    )
    highest_rank = vllm_rank(spec.lora_rank) if spec.lora_rank else None
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
        tensor_parallel_size=spec.tensor_parallel,
        # Workers are this process, or children of it: an actor of Ray reserves all their GPUs, on one node.
        distributed_executor_backend="uni" if spec.tensor_parallel == 1 else "mp",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        enable_sleep_mode=spec.sleeps and not on_cpu,  # which vLLM refuses on a CPU
        **memory,
        **lora,
        **vllm_transfer.configured(None if on_cpu else spec.transport),
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
