"""Who answers the questions that a judge is asked."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rlpipe.recipe.addresses import check_address
from rlpipe.recipe.base import PathOrHubId, SecretName, Strict
from rlpipe.recipe.model import Dtype
from rlpipe.recipe.training import Resources, Threads

PATH = "/chat/completions"
"""What is asked, below the base address."""


class Prices(Strict):
    """What a million tokens cost, in any currency: that of the costs that are reported."""

    prompt: NonNegativeFloat
    """Of the questions."""
    completion: NonNegativeFloat
    """Of the answers."""


class EndpointJudge(Strict):
    """A model behind an OpenAI-compatible server, asked for chat completions."""

    kind: Literal["openai"]
    """Asks an OpenAI-compatible server."""
    url: str
    """Base address of the server, such as `https://host/v1`."""
    model: str
    """The name under which the server has the model."""
    api_key_env: SecretName | None = None
    """Name, in capitals, of the environment variable that holds the key; the key has no place in a recipe."""
    probabilities: bool = True
    """Read its preference from the log-probabilities of the first token. With false, and where the server gives none,
    from what it writes: one option named is 1, the others 0. For judges that think before they answer."""
    max_tokens: PositiveInt = 8
    """Most tokens of an answer, thinking included."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Of what it writes; vLLM's log-probabilities are those before it."""
    timeout: PositiveFloat = 60.0
    """Seconds one attempt may take."""
    deadline: PositiveFloat = 300.0
    """Seconds one question may take from its first attempt on, with those that are repeated and the pauses between."""
    requests: PositiveInt = 8
    """Requests under way at once."""
    requests_per_minute: PositiveFloat | None = None
    """Rate limit: requests begin at least so far apart, those that are repeated included."""
    tokens_per_minute: PositiveFloat | None = None
    """Rate limit, of prompt and answer together."""
    prices: Prices | None = None
    """For the cost; without them it is not counted."""

    @field_validator("url")
    @classmethod
    def _is_a_base(cls, url: str) -> str:
        parts = urlsplit(check_address(url, "https://host:8000/v1", "api_key_env"))
        if parts.query or parts.fragment:
            raise ValueError("the base address takes no `?…` and no `#…`; a key belongs into `api_key_env`")
        if parts.path.rstrip("/").endswith(PATH):
            raise ValueError(f"`{PATH}` is added; expected the address before it, such as `https://host:8000/v1`")
        return url


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


By = Annotated[EngineJudge | EndpointJudge, Field(discriminator="kind")]
"""Who is asked."""
