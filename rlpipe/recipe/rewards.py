"""What a response is worth."""

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from rlpipe.recipe.addresses import check_address
from rlpipe.recipe.base import PathOrHubId, PythonFunction, SecretName, Strict
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.model import Dtype
from rlpipe.recipe.roles import FrozenRole

Tag = Annotated[str, Field(pattern=r"^[\w-]+$")]
"""The name of a tag, without its brackets."""


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
    answer_after: str | None = None
    """Of column and response, only what follows the last such mark counts, for example `####` in GSM8K."""
    inside: Tag | None = None
    """Of the response, only what stands in the last such tag counts; `answer` for `<answer>…</answer>`."""


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
    secrets: list[SecretName] = []
    """Environment variables with keys that the function needs, such as that of a judge's API; no others reach it."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        if not re.fullmatch(r"(.+\.py|[\w.]+):[^\W\d]\w*", function):
            raise ValueError(f"expected `path/to/file.py:function` or `package.module:function`, found `{function}`")
        return function


class RegexReward(Strict):
    """1 if the pattern is found in the response, else 0; with `group`, 1 if that group equals the answer column."""

    kind: Literal["regex"]
    """Looks for a regular expression of Python's `re`."""
    name: str = "regex"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    pattern: str
    """The expression; flags are written in it, for example `(?s)` to let `.` match line ends."""
    full_match: bool = False
    """Whether it must match the whole response; otherwise the first place where it is found counts."""
    group: int | str | None = None
    """Number or name of a group that must equal the answer column, spaces around both aside."""
    answer_column: str = "answer"
    """Column of the data that holds the reference answer; read only with `group`."""
    deadline: PositiveFloat = 1.0
    """Seconds one response may take before the process is killed and the row is a failure."""

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _has_the_group(self) -> "RegexReward":
        compiled = re.compile(self.pattern)
        groups = [*range(compiled.groups + 1), *compiled.groupindex]
        if self.group is not None and self.group not in groups:
            raise ValueError(f"group={self.group} is not in `pattern`; it has {', '.join(map(str, groups))}")
        return self


class FormatReward(Strict):
    """1 if the response consists of the tags in order, each once, with nothing but spaces outside; else 0."""

    kind: Literal["format"]
    """Asks for a row of tags, such as `<think>…</think><answer>…</answer>`."""
    name: str = "format"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    tags: Annotated[list[Tag], Field(min_length=1)] = ["think", "answer"]
    """The tags, in their order, without brackets."""

    @field_validator("tags")
    @classmethod
    def _are_different(cls, tags: list[str]) -> list[str]:
        twice = [tag for tag in tags if tags.count(tag) > 1]
        if twice:
            raise ValueError(f"`{twice[0]}` stands twice; each tag of a response is written once")
        return tags


class CodeReward(Strict):
    """Runs the program in the response against the tests of its row, isolated from this machine."""

    kind: Literal["code"]
    """Runs the program that the response contains."""
    name: str = "code"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    tests_column: str = "tests"
    """Column with a Python snippet, a list of such, or a list of `{input, output}`."""
    credit: Literal["all", "share"] = "all"
    """`all`: 1 if every test passes, else 0; `share`: the share of tests that pass."""
    deadline: PositiveFloat = 10.0
    """Seconds, of the clock and of the processor, that one run of a program may take."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """MiB of memory that a program may take."""
    files_mb: PositiveInt = 16
    """MiB that a program may write into its folder, which is in memory."""
    output_mb: PositiveInt = 1
    """MiB that a program may print."""
    max_processes: Annotated[int, Field(ge=2)] = 16
    """Processes and threads that a program may have at once."""
    isolation: Literal["bubblewrap", "none"] = "bubblewrap"
    """`none` runs what the model writes with the rights of this user and with the network; for throw-away machines."""
    processes: PositiveInt = 2
    """Programs that run at once."""


class HttpReward(Strict):
    """What an endpoint says: it gets prompts, completions and columns, and answers `{"rewards": [number or null]}`."""

    kind: Literal["http"]
    """Asks an endpoint."""
    name: str = "http"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    url: str
    """Where to send the groups."""
    token_env: SecretName | None = None
    """Name, in capitals, of the environment variable that holds a bearer token; the token has no place in a recipe."""
    timeout: PositiveFloat = 10.0
    """Seconds one attempt may take."""
    deadline: PositiveFloat = 60.0
    """Seconds one request may take, with the attempts that are repeated and the pauses between them."""
    requests: PositiveInt = 4
    """Requests under way at once."""
    groups_per_request: PositiveInt = 1
    """Most groups in one request, of those that wait; a group is all responses to one prompt."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return check_address(url, "https://host:8000/score", "token_env")


class EnvironmentReward(Strict):
    """What the environment says that the episode was worth."""

    kind: Literal["environment"]
    """Takes the environment's own reward."""
    name: str = "environment"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    component: str | None = None
    """Which of the components that the environment names; its reward as a whole if absent."""


class ModelReward(FrozenRole):
    """The score of a reward model, such as `task: reward_model` makes: a sequence classifier with one output."""

    kind: Literal["model"]
    """Asks a reward model."""
    name: str = "model"
    """Under which it is reported; each reward of a mix needs its own."""
    weight: float = 1.0
    """Factor in the weighted sum."""
    path: PathOrHubId
    """Its folder in Hugging Face format, a hub id, or `${stages.NAME.model}`."""
    trust_remote_code: bool = False
    """Run the Python code that comes with it; as `model.trust_remote_code`."""
    dtype: Dtype = "auto"
    """Computation type; auto is float32 on CPU and bfloat16 on GPU."""
    max_length: PositiveInt | None = None
    """Longest prompt plus response in tokens; a longer one is a failure. The model's own limit if absent."""
    max_restarts: NonNegativeInt = 3
    """How often in a row another process takes the place of a replica that died or hangs, and how often that may happen
    to replicas that are asked the same, before the run gives up; the count begins anew with an answer. In RL one that
    is shared or split starts again with the training roles, for which `train.max_restarts` counts."""
    tokens_per_batch: PositiveInt = 16384
    """Token budget of one forward pass, and about that of one call for groups that wait."""


Reward = Annotated[
    ExactReward
    | MathReward
    | RegexReward
    | FormatReward
    | CodeReward
    | HttpReward
    | PythonReward
    | ModelReward
    | JudgeReward
    | EnvironmentReward,
    Field(discriminator="kind"),
]


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


def check_correct_by(name: str | None, rewards: RewardMix | None, key: str = "evaluation.correct_by") -> None:
    """Raise ValueError unless `name`, where there is one, is a reward of the mix; it stands under `key`."""
    names = [reward.name for reward in rewards.mix] if rewards else []
    if name is not None and not names:
        raise ValueError(f"{key}={name} is a reward, and there are none; give rewards, or leave it out")
    if name not in (None, *names):
        raise ValueError(f"{key}={name} is no reward of the mix; its rewards are {', '.join(names)}")


def check_nothing_shared(rewards: RewardMix) -> None:
    """Raise ValueError where a reward model of an offline task is to live in processes of the policy."""
    shared = [i for i, reward in enumerate(rewards.mix) if isinstance(reward, ModelReward) and reward.share]
    if shared:
        raise ValueError(
            f"rewards.mix.{shared[0]}.share={rewards.mix[shared[0]].share}: offline tasks have no policy processes to "
            "share; leave it out"
        )
