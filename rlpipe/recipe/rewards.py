"""What a response is worth."""

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlpipe.recipe.base import PythonFunction, Strict


class ExactReward(Strict):
    """1 if the response, stripped of spaces around it, equals the answer column; else 0."""

    kind: Literal["exact"]
    """Compares the response with the answer column."""
    name: str = "exact"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    answer_column: str = "answer"
    """Column of the data that holds the reference answer."""


class MathReward(Strict):
    """1 if Math-Verify finds the response's final answer equal to the reference answer; else 0."""

    kind: Literal["math"]
    """Has Math-Verify compare the response's final answer with the reference."""
    name: str = "math"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    answer_column: str = "answer"
    """Column of the data that holds the reference answer."""
    answer_after: str | None = None
    """The reference answer is what follows this mark in the column, for example `####` in GSM8K."""
    deadline: PositiveFloat = 5.0
    """Seconds one answer may take before its process is killed and the row is a failure."""
    processes: PositiveInt = 1
    """Verifier processes."""


class PythonReward(Strict):
    """A function with TRL's reward signature: `f(prompts, completions, **columns) -> list[float | None]`."""

    kind: Literal["python"]
    """Calls a function of yours."""
    name: str
    """Under which it is reported; each reward of a mix needs its own."""
    function: PythonFunction
    """`path/to/file.py:function` (relative to the recipe) or `package.module:function`."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    deadline: PositiveFloat = 60.0
    """Seconds one batch call may take."""
    options: dict[str, float | int | str | bool] = {}
    """Further keyword arguments of the function."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        if not re.fullmatch(r"(.+\.py|[\w.]+):[^\W\d]\w*", function):
            raise ValueError(f"expected `path/to/file.py:function` or `package.module:function`, found `{function}`")
        return function


Reward = Annotated[ExactReward | MathReward | PythonReward, Field(discriminator="kind")]


class RewardMix(Strict):
    """A weighted sum of rewards."""

    mix: Annotated[list[Reward], Field(min_length=1)]
    """The rewards of each response, added up by weight."""
    max_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of a step's responses whose reward may fail before the run stops; failures never count as 0."""

    @model_validator(mode="after")
    def _told_apart(self) -> "RewardMix":
        first = {reward.name: i for i, reward in reversed(list(enumerate(self.mix)))}
        twice = next((i for i, reward in enumerate(self.mix) if first[reward.name] < i), None)
        if twice is not None:
            name = self.mix[twice].name
            raise ValueError(f"mix.{twice}.name={name} and mix.{first[name]}.name={name} are the same; change one")
        if not any(reward.weight for reward in self.mix):
            weights = ", ".join(f"mix.{i}.weight=0" for i in range(len(self.mix)))
            raise ValueError(f"{weights}: with every weight 0 nothing would be learned")
        return self
