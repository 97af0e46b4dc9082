"""Who answers the questions that a judge is asked."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from rlpipe.recipe.addresses import check_address
from rlpipe.recipe.base import SecretName, Strict

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
