"""Judges: language models that say which response is better, or how good one is."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.base import FilePath, PathOrHubId, Strict
from rlpipe.recipe.model import Dtype
from rlpipe.recipe.training import Resources, Threads


class EngineJudge(Strict):
    """A local model on engines of its own. What it prefers is read from its probabilities of the options."""

    kind: Literal["engine"]
    """A model that this run starts."""
    path: PathOrHubId
    """Its folder in Hugging Face format, a hub id, or `${stages.NAME.model}`."""
    trust_remote_code: bool = False
    """Run the Python code that comes with it; as `model.trust_remote_code`."""
    dtype: Dtype = "auto"
    """Computation type; auto is float32 on CPU and bfloat16 on GPU."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """vLLM, or the reference engine on plain transformers."""
    engines: PositiveInt = 1
    """Engines that share the questions."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one node that each vLLM engine splits the model over."""
    max_model_len: PositiveInt | None = None
    """Longest question in tokens; a longer one is a failure. The model's own limit if absent."""
    max_num_seqs: PositiveInt = 256
    """Sequences an engine works on at once."""
    questions_per_call: PositiveInt = 128
    """Questions, at most, that an engine gets at a time, of the groups that wait; a group is never divided."""
    kv_cache_gib: PositiveFloat = 1.0
    """KV cache of a vLLM engine on CPU, in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a GPU's memory a vLLM engine may take."""
    max_restarts: NonNegativeInt = 3
    """How often in a row a new process takes the place of an engine that died or hung, before the run gives up."""
    threads: Threads = 0
    resources: Resources = Resources()
    """What each engine reserves."""

    @model_validator(mode="after")
    def _can_be_split(self) -> "EngineJudge":
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} splits a model over GPUs, which engine={self.engine} cannot; "
                "take engine=vllm, or leave tensor_parallel out"
            )
        return self


By = EngineJudge
"""Who is asked."""


class JudgeReward(Strict):
    """What a language model says: how many of a prompt's other responses it finds worse, or how good it finds one."""

    kind: Literal["judge"]
    """Asks a language model."""
    name: str = "judge"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    by: By
    """Who is asked."""
    template: PathOrHubId = "compare"
    """What is asked: `compare` (which of two responses is better; the component is the mean probability of being the
    better one, over all other responses to the prompt), `grade` (is it a good response), or a YAML file of your own."""
    constitution: FilePath | None = None
    """A file of principles, of which one is drawn for each prompt and shown to the judge as `{principle}`."""
    orders: Literal["both", "one"] = "both"
    """Show the two responses of a comparison in both orders and take the mean, or in one that is drawn: half the
    questions, and a judge that prefers what stands first adds noise."""
    least_mass: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that the judge must give to the options together; with less it would answer something else, which is
    a failure and no preference."""
    seed: int = 0
    """Decides which principle a prompt gets, which order is drawn, and what a judge that samples says."""
