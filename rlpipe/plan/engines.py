"""Memory of rollout engines, and how many sequences their KV cache holds."""

from dataclasses import dataclass

from rlpipe.plan.architecture import Architecture
from rlpipe.plan.processes import CONTEXT, MIB, ON_HOST
from rlpipe.plan.usage import Parts, Usage

BATCHED_TOKENS = 8192
"""Positions of one forward pass of vLLM, at the most (`rlpipe.rollout.vllm_compat`)."""
PREFILLED_TOKENS = 16384
"""The same of the transformers engine (`rlpipe.rollout.wave`)."""
GRAPHS = 1024 * MIB
"""What vLLM's CUDA graphs take: taken to be so, not measured here."""
VLLM = 1500 * MIB
"""A process with vLLM imported on a CPU and no model."""
PLAIN = 800 * MIB
"""The same with transformers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """An engine."""

    shapes: Architecture
    parameters: int
    width: int
    vllm: bool
    parts: int
    """GPUs that it is split over."""
    max_num_seqs: int
    whole: int
    """Tokens of the longest sequence."""
    utilization: float
    """Share of a GPU that vLLM may take."""
    gpu_bytes: int
    """Memory of its GPU; 0 on a CPU."""
    cache_gib: float
    """KV cache of vLLM on a CPU."""
    sleeps: bool
    """Whether it makes room while others train."""
    keeps_base: bool
    """Whether its weights wait in host memory then, as beneath a served adapter; else they are published again."""

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers, over all of its GPUs."""
        return 2 * self.shapes.layers * self.shapes.key_value * self.width

    @property
    def weights(self) -> int:
        """On each GPU."""
        return self.width * self.parameters // self.parts

    @property
    def cache(self) -> int:
        """Bytes of the KV cache on each GPU; below 0 where there is no room for any."""
        if not self.vllm:
            return self.max_num_seqs * self.whole * self.token_bytes
        if not self.gpu_bytes:
            return int(self.cache_gib * 2**30)
        return int(self.utilization * self.gpu_bytes) - self.weights - self.work - CONTEXT

    @property
    def work(self) -> int:
        """Of one forward pass: the widest layer, and the logits of the running sequences in float32, twice."""
        tokens = BATCHED_TOKENS if self.vllm else PREFILLED_TOKENS
        layer = tokens * self.width * (3 * self.shapes.feed_forward + 4 * self.shapes.hidden) // self.parts
        return layer + 2 * 4 * self.max_num_seqs * self.shapes.vocabulary

    @property
    def sequences(self) -> int:
        """Of the greatest length that the cache holds."""
        return max(0, self.cache * self.parts // (self.token_bytes * self.whole))


def engine(role: Generator) -> Usage:
    """Of one process, or with tensor parallelism one GPU, of an engine."""
    parts: Parts = {"weights": role.weights, "KV cache": max(role.cache, 0), "activations": role.work}
    if not role.gpu_bytes:
        parts |= {"process": VLLM if role.vllm else PLAIN}
        return Usage(moments={"generation": parts}, idle=parts)
    parts |= {"CUDA context": CONTEXT} | ({"CUDA graphs": GRAPHS} if role.vllm else {})
    asleep: Parts = {"CUDA context": CONTEXT + GRAPHS}
    host: Parts = {"process": ON_HOST} | ({"weights": role.weights} if role.sleeps and role.keeps_base else {})
    return Usage(moments={"generation": parts}, idle=asleep if role.sleeps else parts, host=host, loading=role.weights)
