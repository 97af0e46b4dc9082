"""Judges: language models that say which response is better, or how good one is."""

from typing import Annotated, Literal

from pydantic import Field

from rlpipe.recipe.base import PathOrHubId, Strict
from rlpipe.recipe.constitution import ConstitutionFile
from rlpipe.recipe.judging import By


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
    constitution: ConstitutionFile | None = None
    """A file of principles, of which one is drawn for each prompt and shown to the judge as `{principle}`."""
    orders: Literal["both", "one"] = "both"
    """Show the two responses of a comparison in both orders and take the mean, or in one that is drawn: half the
    questions, and a judge that prefers what stands first adds noise."""
    least_mass: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that the judge must give to the options together; with less it would answer something else, which is
    a failure and no preference."""
    seed: int = 0
    """Decides which principle a prompt gets, which order is drawn, and what a judge that samples says."""
