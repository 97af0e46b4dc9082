"""Every type that flows through the online loop.

Axis names used throughout the project:
    B  sequences of a batch      N  tokens of a batch, sequences end to end
    T  positions of a padded micro-batch      V  vocabulary

A log-probability is stored at the index of the token it belongs to: `logprobs_N[t] = log p(token_t | tokens before t)`.
Prompt positions hold 0 and have mask 0.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from rlpipe.recipe.secrets import hide

Tokens = np.ndarray
"""One-dimensional int32 array of token ids."""


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TURNS = "turns"
    """The environment would have gone on, but the policy had all its turns."""


class VersionSpan(NamedTuple):
    """From response token `first_token` on, tokens were sampled by weight version `version`."""

    first_token: int
    version: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. Temperature 0 is greedy. Nothing else reshapes the distribution."""

    max_new_tokens: int
    temperature: float
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem: its tokens, its text as the tokenizer's template rendered it, and the row's other columns."""

    prompt_id: str
    tokens: Tokens
    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] | None = None
    """The conversation, for whoever renders it with another template; None where the prompt is plain text."""


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """Ask for `len(seeds)` responses to one prompt; sample i is drawn with seeds[i]."""

    group_id: str
    prompt_id: str
    prompt_tokens: Tokens
    seeds: tuple[int, ...]
    sampling: Sampling
    conversation: str = ""
    """Requests with the same one go to the same engine, which has what they begin with in its cache; empty for a
    request that nothing continues."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sampled response; with an environment, from the policy's first turn to its last.

    response_mask is 1 where the policy wrote the token and 0 where an environment did. The last token is the policy's.
    behaviour_logprobs are the engine's own, of the tempered distribution it sampled from; 0 where masked.
    """

    group_id: str
    prompt_id: str
    sample_index: int
    prompt_tokens: Tokens
    response_tokens: Tokens
    response_mask: np.ndarray
    behaviour_logprobs: np.ndarray
    versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    """Of the last turn."""
    episode: "Episode | None" = None
    """None without an environment."""


@dataclass(frozen=True, slots=True)
class Score:
    """A reward that could be computed, with its named components (unweighted)."""

    value: float
    components: dict[str, float]
    details: str = ""
    """How components came about that a judge gave, by their names, as JSON; empty without one."""

    @property
    def judged(self) -> bool:
        """Whether somebody said what the response is worth; see `rewards.mix.UNJUDGED`."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True)
class Failure:
    """A reward that could not be computed; never trained on, never a 0."""

    kind: str
    message: str

    def __post_init__(self) -> None:
        # It is stored and shown, and whoever raised it may have named a key.
        object.__setattr__(self, "message", hide(self.message))


Outcome = Score | Failure


@dataclass(frozen=True, slots=True)
class Said:
    """One message, for rewards and for people."""

    role: str
    text: str
    note: str = ""
    """Where it comes from, for provenance: an environment says so of its messages, where there is something to say."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What a trajectory of several turns has besides its tokens."""

    starts: tuple[int, ...]
    """First response token of each turn of the policy."""
    ends: tuple[int, ...]
    """First response token after each turn of the policy; what lies between two turns is the environment's."""
    replies: tuple[Said, ...]
    """What the environment said after each turn but the last, without the marks of the chat template."""
    outcome: Outcome | None
    """The environment's own: a reward, a failure, or nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """All responses to one lease of a prompt, scored: the unit the ledger completes and the loop trains on."""

    group_id: str
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    completions: tuple[str, ...]
    """Decoded responses, for rewards and for people; never tokenised again. With an environment, the last turns."""
    outcomes: tuple[Outcome, ...]
    conversations: tuple[tuple[Said, ...], ...] = ()
    """With an environment: each response as messages, from the policy's first turn on; its completion is the last."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Trajectories as flat arrays. Sequence b is tokens_N[offsets_B1[b]:offsets_B1[b + 1]], prompt first."""

    tokens_N: np.ndarray
    offsets_B1: np.ndarray
    mask_N: np.ndarray
    """1.0 where the policy wrote the token, else 0.0."""
    behaviour_logprobs_N: np.ndarray
    advantages_N: np.ndarray | None = None
    """From here on: what the trainer fills in, in the order of the loop; None until then, or where nobody needs it."""
    old_logprobs_N: np.ndarray | None = None
    """The trainer's log-probabilities before the first update on this batch; None if there is only that one."""
    reference_logprobs_N: np.ndarray | None = None
    values_N: np.ndarray | None = None
    """The critic's value of the state in which each response token was chosen, before the first update on this batch;
    0 elsewhere. In reward units, like the returns."""
    returns_N: np.ndarray | None = None
    """What the critic learns to foresee at each response token; 0 elsewhere."""
    weights_N: np.ndarray | None = None
    """What each token's loss counts in the optimizer step that it belongs to: the step's loss is a sum with these
    weights, over all micro-batches and ranks. 0 where masked."""

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets_B1)

    @property
    def columns_N(self) -> dict[str, np.ndarray]:
        """The arrays with one number per token, by name; those that are filled in."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name.endswith("_N"))
        return {name: values_N for name, values_N in named if values_N is not None}


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of one optimizer step: the micro-batches, each a list of sequences of `batch`.

    Every rank has the same number of micro-batches; one that has fewer sequences gets empty lists, which take part in
    the collectives with a loss of 0. `kl_coefficient` is the present weight of the KL penalty, in runs that have one.
    """

    batch: TokenBatch
    micro_batches: tuple[tuple[int, ...], ...]
    kl_coefficient: float = 0.0
