"""Several models, asked the same prompts."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeFloat, Tag, field_validator, model_validator

from rlpipe.recipe.base import FilePath, FolderName, PathOrHubId, Strict
from rlpipe.recipe.benchmarks import Benchmarks
from rlpipe.recipe.data import Data, HeldOut, RecordsData
from rlpipe.recipe.environment import Environment, SingleTurn, check_requests, check_rewards
from rlpipe.recipe.guidance import Specification
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.model import Dtype, Model, PretrainedModel, ScratchModel, allow_text, expand, model_kind
from rlpipe.recipe.rewards import Reward, RewardMix, check_correct_by, check_nothing_shared
from rlpipe.recipe.rollout import Evaluation, Rollout
from rlpipe.recipe.run import Deadlines, Tracking

REFUSALS = [
    "I'm sorry", "I am sorry", "I can't", "I cannot", "I can not", "I won't", "I will not", "I'm unable", "I am unable",
    "I'm not able", "I am not able", "as an AI",
]  # fmt: skip
"""How answers begin, or go on, that do not do what was asked."""


class EvaluatedModel(Strict):
    """A model folder or hub id, as it is or with an adapter on it."""

    path: PathOrHubId
    """Local folder in Hugging Face format, hub id, or `${stages.NAME.model}`."""
    adapter: FilePath | None = None
    """Folder of a PEFT adapter of that model. Models of one `path` are asked by the same engines, one adapter after the
    other."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model; as `model.trust_remote_code` of a task that trains."""
    chat_template: FilePath | None = None
    """File with a Jinja chat template that replaces the tokenizer's own."""
    dtype: Dtype = "auto"
    """Computation type; auto is float32 on CPU and bfloat16 on GPU."""

    @property
    def pretrained(self) -> PretrainedModel:
        """The model without its adapter."""
        return PretrainedModel(**self.model_dump(exclude={"adapter"}))


AnyEvaluated = Annotated[
    Annotated[EvaluatedModel, Tag("pretrained")] | Annotated[ScratchModel, Tag("scratch")],
    Discriminator(model_kind),
    BeforeValidator(expand),
    Field(
        description="a path or hub id (`NAME: PATH` or `NAME: {path: PATH, adapter: FOLDER}`), or `{scratch: qwen2}`",
        json_schema_extra=allow_text,
    ),
]


class EvalRecipe(Strict):
    """Evaluation: the same prompts and seeds for several models, side by side."""

    task: Literal["eval"]
    """Evaluation of several models on the same prompts."""
    name: FolderName = "eval"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of every sample, of resampling, and of a model from scratch."""
    models: Annotated[dict[FolderName, AnyEvaluated], Field(min_length=1)]
    """Models by the name under which they are shown."""
    baseline: FolderName | None = None
    """The one of `models` that the others are compared with; the first if absent."""
    reference: FolderName | None = None
    """The one of `models` under which all are measured: their KL to it, and the perplexity of their answers."""
    data: Data
    """Prompts to ask, and the columns that rewards need."""
    part: Literal["heldout", "all"] = "heldout"
    """Which records are asked: those that training with the same `data` leaves out, or all that data.path holds."""
    guidance: Specification | None = None
    """A specification of which judges see the part that suits the prompt, as `{specification}` in their template; the
    models answer without it."""
    rewards: RewardMix | None = None
    """What an answer is worth; if absent nobody says so, and answers are shown side by side, with their length,
    refusals, diversity and what `judge` and `reference` say of them."""
    environment: Environment = SingleTurn(kind="single_turn")
    """What answers the models between their turns."""
    rollout: Rollout = Rollout()
    """Engines of each model."""
    evaluation: Evaluation = Evaluation()
    """How many prompts are asked, and how often; what counts as correct."""
    win_by: str | None = None
    """Name of the reward that says which of two answers to a prompt is better; the weighted sum if absent."""
    judge: JudgeReward | None = None
    """A language model that says so in their place, of the baseline's greedy answer and each other model's."""
    judge_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of what `judge` is asked that may fail before the run stops; a failure is never a tie."""
    benchmarks: Benchmarks | None = None
    """Standard benchmarks beside these prompts, by lm-evaluation-harness."""
    refusals: list[str] = REFUSALS
    """Regular expressions of refusals, found anywhere in a greedy answer, in any case and with any kind of apostrophe;
    an empty list measures none."""
    regressions: dict[str, NonNegativeFloat] = {}
    """How much worse than the baseline a model may be, by metric; a loss that is greater than that by more than chance
    would have it ends the run with exit code 1."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A difference is more than chance where the probability of one as large by chance is below this, in a paired test;
    of all regressions together, the probability of finding one where there is none."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @property
    def compared_with(self) -> str | None:
        """The baseline's name; None where there is nothing to compare."""
        return (self.baseline or next(iter(self.models))) if len(self.models) > 1 else None

    @property
    def model(self) -> Model:
        """The first one's weights."""
        first = next(iter(self.models.values()))
        return first.pretrained if isinstance(first, EvaluatedModel) else first

    @property
    def adapter(self) -> None:
        """Nothing is trained."""
        return None

    @property
    def mix(self) -> list[Reward]:
        """Those who say what an answer is worth."""
        return self.rewards.mix if self.rewards else []

    def alone(self, name: str) -> "EvalRecipe":
        """The same for one of the models."""
        return self.model_copy(update={"models": {name: self.models[name]}})

    def measured(self) -> Iterator[str]:
        """The metrics that a model can be worse in than another one."""
        if self.rewards is not None:
            yield from self.evaluation.metrics([reward.name for reward in self.mix])
        if self.rewards is not None or self.judge is not None:
            yield "win_rate"
        yield "failure_rate"
        if self.refusals:
            yield "refusals"
        if self.reference is not None:
            yield from ("reference_kl", "perplexity")

    @field_validator("refusals")
    @classmethod
    def _are_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _names_are_known(self) -> "EvalRecipe":
        for key, name in (("baseline", self.baseline), ("reference", self.reference)):
            if name is not None and name not in self.models:
                raise ValueError(f"{key}={name} is none of the models; they are {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _rewards_fit(self) -> "EvalRecipe":
        check_requests(self.environment, self.data)
        for name, key in ((self.evaluation.correct_by, "evaluation.correct_by"), (self.win_by, "win_by")):
            check_correct_by(name, self.rewards, key)
        if self.rewards is not None:
            check_rewards(self.environment, self.rewards)
            check_nothing_shared(self.rewards)
        return self

    @model_validator(mode="after")
    def _judge_compares(self) -> "EvalRecipe":
        for i, reward in enumerate(self.mix):
            if isinstance(reward, JudgeReward) and reward.template.startswith("compare"):
                raise ValueError(
                    f"rewards.mix.{i}: a judge that compares has nothing to compare a single answer with; put it under "
                    "`judge`, where it compares models, or let it grade (template: grade)"
                )
        if self.judge is None:
            return self
        if self.judge.template.startswith("grade"):
            raise ValueError(f"judge.template={self.judge.template} grades one answer; it has to compare two: compare")
        if self.win_by is not None:
            raise ValueError(f"win_by={self.win_by}: `judge` says which answer is better; leave one of the two out")
        if self.compared_with is None:
            raise ValueError("judge: there is one model, and nothing to compare its answers with; give another")
        return self

    @model_validator(mode="after")
    def _regressions_are_measured(self) -> "EvalRecipe":
        known = list(self.measured())
        asked = [metric for metric in self.regressions if not (self.benchmarks and "/" in metric)]
        odd = next((metric for metric in asked if metric not in known), None)
        if odd is not None:
            raise ValueError(f"regressions.{odd} is not measured here; what is: {', '.join(known)}")
        if self.regressions and self.compared_with is None:
            raise ValueError("regressions: there is one model, and nothing that it could be worse than; give another")
        return self

    @model_validator(mode="after")
    def _reference_can_be_asked(self) -> "EvalRecipe":
        if self.reference is not None and self.evaluation.temperature != 1:
            raise ValueError(
                f"reference={self.reference}: the KL is estimated on answers that a model draws from its own "
                f"distribution, and evaluation.temperature={self.evaluation.temperature:g} draws from another one; set "
                "it to 1, or leave reference out"
            )
        return self

    @model_validator(mode="after")
    def _has_parts(self) -> "EvalRecipe":
        if self.part == "heldout":
            return self
        if not isinstance(self.data, RecordsData):
            raise ValueError(
                f"part=all asks all records of a file, and data.kind={self.data.kind} makes its own: leave part out"
            )
        if self.data.heldout != HeldOut():
            raise ValueError("part=all asks all records of data.path; leave data.heldout out, or part")
        return self
