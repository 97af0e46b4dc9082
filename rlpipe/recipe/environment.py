"""What answers the policy between its turns."""

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from rlpipe.recipe.base import PythonFunction, SecretName, Strict
from rlpipe.recipe.critique import ConstitutionEnvironment
from rlpipe.recipe.rewards import EnvironmentReward, RewardMix


class SingleTurn(Strict):
    """No environment: the first response is the whole answer."""

    kind: Literal["single_turn"]
    """One response per prompt."""


class Calculator(Strict):
    """Works out what the policy writes between `<calc>` and `</calc>`, until a turn has no such call."""

    kind: Literal["calculator"]
    """A tool that does arithmetic."""
    max_turns: PositiveInt = 4
    """Turns of the policy at most, the answer included."""
    role: Literal["tool", "user"] = "tool"
    """Who answers in the chat template; `user` for one that has no tool."""


class GuessNumber(Strict):
    """Holds the number in the row's column `answer`, and answers a guess with `higher` or `lower`."""

    kind: Literal["guess_number"]
    """A game: find the number that the environment holds."""
    max_turns: PositiveInt = 6
    """Guesses; whoever has not found the number with the last one has lost."""
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The reward is 1 for a number found, less by this for every guess after the first, and 0 for a game lost. A price
    for guesses rewards luck: it was learned more slowly with one."""

    @model_validator(mode="after")
    def _finding_is_worth_it(self) -> "GuessNumber":
        if self.discount * (self.max_turns - 1) >= 1:
            raise ValueError(
                f"discount={self.discount:g} makes the last of max_turns={self.max_turns} guesses worth nothing; "
                f"keep it below {1 / (self.max_turns - 1):.3g}"
            )
        return self


class PythonEnvironment(Strict):
    """A class of yours with `reset` and `step`, in processes of its own."""

    kind: Literal["python"]
    """A class of yours."""
    implementation: PythonFunction
    """`path/to/file.py:Class` (relative to the recipe) or `package.module:Class`."""
    max_turns: PositiveInt = 8
    """Turns of the policy at most."""
    processes: PositiveInt = 1
    """Processes that take steps side by side."""
    batch: PositiveInt = 1
    """Episodes that one call of a process answers at most: `async` methods then wait side by side, and a method
    `step_batch(states, responses)` gets all of them at once."""
    options: dict[str, float | int | str | bool] = {}
    """Keyword arguments of the class."""
    secrets: list[SecretName] = []
    """Environment variables with keys that the class needs; no others reach it."""

    @field_validator("implementation")
    @classmethod
    def _names_a_class(cls, name: str) -> str:
        if not re.fullmatch(r"(.+\.py|[\w.]+):[^\W\d]\w*", name):
            raise ValueError(f"expected `path/to/file.py:Class` or `package.module:Class`, found `{name}`")
        return name


Environment = Annotated[
    SingleTurn | Calculator | GuessNumber | ConstitutionEnvironment | PythonEnvironment,
    Field(discriminator="kind"),
]


def turns_of(environment: Environment) -> int:
    """Turns of the policy at most."""
    return 1 if isinstance(environment, SingleTurn) else environment.max_turns


def check_requests(environment: Environment, data: object) -> None:
    """Raise ValueError where requests made for a chat template would stand in plain text without any marks."""
    plain = getattr(data, "chat", True) is False
    if plain and isinstance(environment, ConstitutionEnvironment) and environment.requests_version != "own":
        raise ValueError(
            "data.chat=false puts the requests of environment.kind=constitution behind the answer as they are; give "
            "environment.critique_request and environment.revision_request with the marks that your text has between "
            'speakers (for example "\n\nHuman: {principle} …\n\nAssistant:")'
        )


def check_rewards(environment: Environment, rewards: RewardMix) -> None:
    """Raise ValueError where a reward asks for what the environment never says."""
    if not isinstance(environment, SingleTurn | Calculator | ConstitutionEnvironment):
        return
    for i, reward in enumerate(rewards.mix):
        if isinstance(reward, EnvironmentReward):
            raise ValueError(
                f"rewards.mix.{i}.kind=environment takes the reward that the environment gives, and "
                f"environment.kind={environment.kind} gives none; choose another reward or environment"
            )
