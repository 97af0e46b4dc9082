"""Labelling: responses of a model, judged, as data to learn from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from rlpipe.recipe.base import FolderName, Strict
from rlpipe.recipe.data import Data
from rlpipe.recipe.environment import Environment, SingleTurn, check_requests, check_rewards, turns_of
from rlpipe.recipe.guidance import Specification
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.model import Model
from rlpipe.recipe.rewards import RewardMix, check_nothing_shared
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.run import Deadlines, Tracking

FIRST = "first"
"""As `labels.gold`: responses are read, and the first one is known to be the best."""


class SampledResponses(Strict):
    """The model answers each prompt."""

    kind: Literal["sampled"]
    """Has the engines of `rollout` answer."""
    count: PositiveInt = 4
    """Responses to each prompt, each with a seed of its own."""


class ReadResponses(Strict):
    """Each record has its responses."""

    kind: Literal["read"]
    """Takes them from the data; no engine is started for the model."""
    columns: Annotated[list[str], Field(min_length=1)] = ["responses"]
    """Columns that hold them, each a text, a list of texts, or messages of which the last one counts; `[chosen,
    rejected]` of preference data."""


Responses = Annotated[SampledResponses | ReadResponses, Field(discriminator="kind")]


class Labels(Strict):
    """What becomes of judged responses."""

    prompts: PositiveInt | None = None
    """Training prompts that are labelled, from the first on; all of them if absent."""
    heldout: NonNegativeInt = 256
    """Held-out prompts that are labelled, into files of their own."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Preferences of a prompt: its best response against its worst, or all of its pairs."""
    ties: Literal["drop", "keep"] = "drop"
    """Pairs that are worth the same: left out, or kept with a margin of 0 and the first of them as the chosen one."""
    tie_within: NonNegativeFloat = 0.0
    """Rewards that differ by no more count as the same."""
    good_at: float | None = None
    """Reward from which a response is a good one in the unpaired labels; if absent, one that is worth more than the
    prompt's mean by more than `tie_within` is good, one that is worth less by more than that is bad."""
    accept_at: float | None = None
    """Reward from which a prompt's best response is taken for SFT (rejection sampling); any best one if absent
    (best-of-n)."""
    gold: str | None = None
    """What labels are compared with: the name of a reward of the mix, which may have weight 0; or, with responses that
    are read, `first`: the first one is known to be the best."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the files."""
    prompts_per_commit: PositiveInt = 64
    """Prompts that become durable together, and whose failures are counted together."""


class LabelRecipe(Strict):
    """Labelling: prompts are answered, answers are judged, and what comes of it is data for SFT, DPO, KTO or a reward
    model."""

    adapter: ClassVar[None] = None
    """The model is served as it is."""

    task: Literal["label"]
    """Labelling of a model's responses."""
    name: FolderName = "labels"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of the model from scratch and of every sample."""
    model: Model
    """Whose responses are labelled; its tokenizer and chat template are used where they are read, too."""
    data: Data
    """Prompts."""
    guidance: Specification | None = None
    """What the model has in its context while it answers, and what is written lacks."""
    responses: Responses = SampledResponses(kind="sampled")
    """Where the responses come from."""
    environment: Environment = SingleTurn(kind="single_turn")
    """What answers the model between its turns. The last turn is what is judged and written."""
    rewards: RewardMix
    """Who judges: language models (`judge`), reward models (`model`), functions (`python`, `exact`, …)."""
    labels: Labels = Labels()
    """Which prompts are labelled, and what is written."""
    rollout: Rollout = Rollout()
    """Engines of the model, and how they sample."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @property
    def longest_response(self) -> int:
        """Tokens that the model may write in answer to one prompt, over all of its turns."""
        return turns_of(self.environment) * self.rollout.max_new_tokens

    @model_validator(mode="after")
    def _rewards_fit(self) -> "LabelRecipe":
        check_requests(self.environment, self.data)
        check_rewards(self.environment, self.rewards)
        check_nothing_shared(self.rewards)
        return self

    @model_validator(mode="after")
    def _gold_is_known(self) -> "LabelRecipe":
        gold, names = self.labels.gold, [reward.name for reward in self.rewards.mix]
        if gold == FIRST and isinstance(self.responses, SampledResponses):
            raise ValueError(
                "labels.gold=first says that the first response is known to be the best, which holds for responses "
                f"that are read; name a reward of the mix ({', '.join(names)}), or set responses.kind to read"
            )
        if gold not in (None, FIRST, *names):
            raise ValueError(f"labels.gold={gold} is no reward of the mix; its rewards are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> "LabelRecipe":
        compares = any(isinstance(r, JudgeReward) and r.template.startswith("compare") for r in self.rewards.mix)
        if compares and isinstance(self.responses, SampledResponses) and self.responses.count < 2:
            raise ValueError(
                "responses.count=1 leaves a judge nothing to compare; raise it, or let it grade (template: grade)"
            )
        return self

    @model_validator(mode="after")
    def _read_ones_had_their_turns(self) -> "LabelRecipe":
        if isinstance(self.responses, ReadResponses) and not isinstance(self.environment, SingleTurn):
            raise ValueError(
                f"environment.kind={self.environment.kind} takes part while a model answers, and responses.kind=read "
                "reads answers; leave one of the two out"
            )
        return self
