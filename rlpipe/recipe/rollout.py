"""Generation engines and how they sample."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.base import Strict
from rlpipe.recipe.training import Resources, Threads


class Rollout(Strict):
    """Rollout engines of one model."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vLLM, or the reference engine on plain transformers."""
    engines: PositiveInt = 1
    """Engines of the run; requests go to the one with the least to do."""
    nodes: Literal["pack", "spread"] = "pack"
    """Engines on as few nodes of the cluster as have room for them, or over as many as possible. One engine is never
    divided between nodes."""
    min_engines: PositiveInt | None = None
    """Engines that must have room for the run to start; the others start as soon as the cluster has some. All of them
    if absent."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one node that each vLLM engine splits its model over."""
    max_restarts: NonNegativeInt = 3
    """How often in a row a new process takes the place of an engine that died, hung or does not answer, before the run
    gives up; the count begins anew with what the engine finishes."""
    max_new_tokens: PositiveInt = 16
    """Longest response in tokens."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus response in tokens; the model's own limit if absent."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the trainer's log-probabilities use the same."""
    stop_token_ids: list[int] = []
    """Tokens that end a response, besides the tokenizer's end-of-sequence token."""
    max_num_seqs: PositiveInt = 256
    """Sequences an engine decodes at once."""
    kv_cache_gib: PositiveFloat = 1.0
    """KV cache of a vLLM engine on CPU, in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a GPU's memory a vLLM engine may take."""
    threads: Threads = 0
    resources: Resources = Resources()
    """What each engine reserves."""

    @model_validator(mode="after")
    def _can_be_split(self) -> "Rollout":
        parts, gpus = self.tensor_parallel, self.resources.gpus
        if parts > 1 and self.engine != "vllm":
            raise ValueError(
                f"tensor_parallel={parts} splits a model over GPUs, which engine={self.engine} cannot; take engine="
                "vllm, or leave tensor_parallel out"
            )
        if parts > 1 and gpus not in ("auto", 0, parts):
            raise ValueError(
                f"resources.gpus={gpus:g} of an engine that tensor_parallel={parts} splits over {parts} GPUs; leave "
                f"resources.gpus out, which reserves {parts} (0 is for an engine on CPU)"
            )
        return self

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> "Rollout":
        if self.max_model_len is not None and self.max_model_len <= self.max_new_tokens:
            raise ValueError(
                f"max_model_len={self.max_model_len} leaves no room for a prompt before "
                f"max_new_tokens={self.max_new_tokens}; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "Rollout":
        if self.min_engines is not None and self.min_engines > self.engines:
            raise ValueError(
                f"min_engines={self.min_engines} is more than engines={self.engines}, which is how many there are at "
                "most; lower the one or raise the other"
            )
        return self


class Evaluation(Strict):
    """Held-out evaluation at the start, every `every` steps and at the end."""

    every: PositiveInt = 25
    """Steps between evaluations."""
    prompts: PositiveInt = 256
    """Held-out prompts evaluated, greedily."""
    pass_at: list[PositiveInt] = [1, 4]
    """k of the sampled pass@k metrics."""
    samples: PositiveInt = 4
    """Sampled responses per prompt for pass@k; at least the largest k."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of pass@k."""
    correct_by: str | None = None
    """Name of the reward in the mix that says whether a response is correct, such as an exact one with weight 0 beside
    a learned one; the weighted sum if absent."""
    correct_at: float | None = 1.0
    """Reward from which a response counts as correct; null where responses are not right or wrong, only better or
    worse: then there is neither accuracy nor pass@k."""
    show: PositiveInt = 5
    """Held-out prompts whose greedy answers are shown in the terminal and the report."""

    def metrics(self, rewards: Sequence[str]) -> list[str]:
        """What is measured of held-out answers, the higher the better; `rewards` are the names of the mix."""
        judged = ["accuracy", *(f"pass@{k}" for k in self.pass_at)] if self.correct_at is not None else []
        return ["reward", *(f"reward/{name}" for name in rewards if len(rewards) > 1), *judged]

    @model_validator(mode="after")
    def _enough_samples(self) -> "Evaluation":
        if max(self.pass_at, default=0) > self.samples:
            raise ValueError(f"samples={self.samples} is too few for pass_at={self.pass_at}")
        return self
