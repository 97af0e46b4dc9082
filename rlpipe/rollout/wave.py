"""A batch of samples decoded together, one token each per step.

Axis names: G prompts, R rows (samples), P columns of the left-padded prompts, C columns of prompt and response,
Q query positions, V vocabulary, K stop tokens.

Prompts are padded on the left, so that every row writes its next token into the same column, and the tokens of one
step are the tokens of one index in every response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from rlpipe.data.flow import FinishReason, GroupRequest, Trajectory, VersionSpan
from rlpipe.rollout import sampling
from rlpipe.rollout.kv_cache import SlabCache
from rlpipe.rollout.records import spans_of, trajectory

PREFILL_TOKENS = 16384
"""Tokens (after padding) of one prefill forward; bounds its memory."""
KEEP_SHARE = 0.75
"""Rows are dropped from the batch once no more than this share of them is still running: dropping copies the cache."""


@dataclass(frozen=True, slots=True)
class Work:
    """Some samples of one group."""

    request: GroupRequest
    samples: range


class Rows(NamedTuple):
    """What belongs to each sample of a wave and does not change."""

    seeds_R: torch.Tensor
    temperatures_R: torch.Tensor
    limits_R: torch.Tensor
    """Longest response in tokens."""
    stops_RK: torch.Tensor
    """Tokens that end the response, filled with -1."""
    starts_R: torch.Tensor
    """Column of the prompt's first token."""

    def take(self, rows: torch.Tensor) -> "Rows":
        return Rows(*(column[rows] for column in self))


class Wave:
    """Samples admitted together. Not thread-safe; call under `torch.inference_mode`."""

    def __init__(
        self, model: PreTrainedModel, works: Sequence[Work], eos_token_ids: tuple[int, ...], version: int
    ) -> None:
        self._model = model
        self._owners = [(work.request, sample) for work in works for sample in work.samples]
        self._running = len(self._owners)
        self._alive_R = torch.ones(self._running, dtype=torch.bool, device=model.device)
        self._step = 0
        self._spans = [VersionSpan(0, version)]
        self._prefill(works, eos_token_ids)

    @property
    def running(self) -> int:
        """Samples that are not finished."""
        return self._running

    def step(self) -> list[Trajectory]:
        """Sample one token in every row; the responses it finished."""
        if self._step > 0:
            column = self._width + self._step - 1
            fed_R1 = self._tokens_RC[:, column : column + 1]
            self._logits_RV = forward(self._model, fed_R1, self._rows.starts_R, column, self._cache)
        temperatures_R, seeds_R = self._rows.temperatures_R, self._rows.seeds_R
        tokens_R, logprobs_R = sampling.draw(self._logits_RV, temperatures_R, seeds_R, self._step)
        self._tokens_RC[:, self._width + self._step] = tokens_R
        self._logprobs_RC[:, self._step] = logprobs_R
        self._step += 1
        return self._finish(sampling.is_stop(tokens_R, self._rows.stops_RK))

    def abort(self, group_ids: set[str]) -> int:
        """Forget these groups; returns the number of samples forgotten."""
        doomed = torch.tensor([request.group_id in group_ids for request, _ in self._owners], device=self._model.device)
        before = self._running
        self._alive_R &= ~doomed
        self._running = int(self._alive_R.sum())
        self._drop_finished()
        return before - self._running

    def renew(self, version: int) -> None:
        """The model's weights have changed: compute the cache again, so that from here on every token is sampled from
        exactly the new policy, and note where `version` begins. Not before the first step."""
        if self._spans[-1].first_token == self._step:
            self._spans.pop()
        self._spans.append(VersionSpan(self._step, version))
        # The token sampled last is not in the cache yet: the next step feeds it.
        cached_RC = self._tokens_RC[:, : self._width + self._step - 1]
        self._cache, _ = prefill(self._model, cached_RC, self._rows.starts_R, self._tokens_RC.shape[1])

    def _prefill(self, works: Sequence[Work], eos_token_ids: tuple[int, ...]) -> None:
        """Read every prompt once and hand its cache to each of its samples."""
        device = self._model.device
        prompts_GP, starts_G = pad_left([work.request.prompt_tokens for work in works], device)
        groups, self._width = prompts_GP.shape
        copies_G = torch.tensor([len(work.samples) for work in works], device=device)
        group_of_R = torch.arange(groups, device=device).repeat_interleave(copies_G)
        longest = max(work.request.sampling.max_new_tokens for work in works)
        cache, logits_GV = prefill(self._model, prompts_GP, starts_G, self._width)
        self._cache = cache.take(group_of_R, self._width + longest)
        self._logits_RV = logits_GV[group_of_R]
        self._tokens_RC = torch.nn.functional.pad(prompts_GP[group_of_R], (0, longest))
        self._logprobs_RC = torch.zeros(self._running, longest, device=device)
        self._rows = rows_of(self._owners, eos_token_ids, starts_G[group_of_R])

    def _finish(self, stopped_R: torch.Tensor) -> list[Trajectory]:
        done_R = self._alive_R & (stopped_R | (self._rows.limits_R <= self._step))
        rows = done_R.nonzero()[:, 0]
        if len(rows) == 0:
            return []
        finished = self._trajectories(rows, stopped_R)
        self._alive_R &= ~done_R
        self._running -= len(rows)
        self._drop_finished()
        return finished

    def _trajectories(self, rows: torch.Tensor, stopped_R: torch.Tensor) -> list[Trajectory]:
        tokens = self._tokens_RC[rows, self._width : self._width + self._step].to("cpu", torch.int32).numpy()
        logprobs = self._logprobs_RC[rows, : self._step].cpu().numpy()
        spans = spans_of(self._spans, self._step)
        reasons = [FinishReason.STOP if stop else FinishReason.LENGTH for stop in stopped_R[rows].tolist()]
        owners = [self._owners[row] for row in rows.tolist()]
        return [
            trajectory(request, sample, response, chosen, spans, reason)
            for (request, sample), response, chosen, reason in zip(owners, tokens, logprobs, reasons, strict=True)
        ]

    def _drop_finished(self) -> None:
        if self._running == 0 or self._running > KEEP_SHARE * len(self._owners):
            return
        rows = self._alive_R.nonzero()[:, 0]
        self._owners = [self._owners[row] for row in rows.tolist()]
        self._cache.keep(rows)
        self._rows, self._alive_R = self._rows.take(rows), self._alive_R[rows]
        self._tokens_RC, self._logprobs_RC = self._tokens_RC[rows], self._logprobs_RC[rows]


def rows_of(owners: Sequence[tuple[GroupRequest, int]], eos_token_ids: tuple[int, ...], starts_R: torch.Tensor) -> Rows:
    """The rows of samples, each a request and an index into its seeds."""
    settings = [request.sampling for request, _ in owners]
    stops = [list({*eos_token_ids, *s.stop_token_ids}) for s in settings]
    longest = max(map(len, stops))
    seeds = [sampling.as_int64(request.seeds[sample]) for request, sample in owners]
    device = starts_R.device
    return Rows(
        seeds_R=torch.tensor(seeds, device=device),
        temperatures_R=torch.tensor([float(s.temperature) for s in settings], device=device),
        limits_R=torch.tensor([s.max_new_tokens for s in settings], device=device),
        stops_RK=torch.tensor([row + [-1] * (longest - len(row)) for row in stops], device=device),
        starts_R=starts_R,
    )


def pad_left(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens as one int64 matrix, right-aligned, and the column where each sequence starts."""
    width = max(map(len, sequences))
    padded = np.zeros((len(sequences), width), np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[width - len(sequence) :] = sequence
    starts = [width - len(sequence) for sequence in sequences]
    return torch.from_numpy(padded).to(device), torch.tensor(starts, device=device)


def prefill(
    model: PreTrainedModel, tokens_RP: torch.Tensor, starts_R: torch.Tensor, capacity: int
) -> tuple[SlabCache, torch.Tensor]:
    """A cache with `capacity` columns filled from left-padded tokens, and the logits that follow the last one (RV)."""
    cache = SlabCache.empty(model.config.num_hidden_layers, capacity)
    rows, width = tokens_RP.shape
    size = max(1, PREFILL_TOKENS // rows)
    for start in range(0, width, size):
        logits_RV = forward(model, tokens_RP[:, start : start + size], starts_R, start, cache)
    return cache, logits_RV


def forward(
    model: PreTrainedModel, tokens_RQ: torch.Tensor, starts_R: torch.Tensor, first_column: int, cache: SlabCache
) -> torch.Tensor:
    """Feed the tokens of columns first_column onwards; the logits after the last one (RV)."""
    columns_Q = torch.arange(first_column, first_column + tokens_RQ.shape[1], device=tokens_RQ.device)
    columns_C = torch.arange(first_column + tokens_RQ.shape[1], device=tokens_RQ.device)
    out = model(
        input_ids=tokens_RQ,
        attention_mask=causal_mask(starts_R, columns_Q, columns_C),
        position_ids=(columns_Q - starts_R[:, None]).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


def causal_mask(starts_R: torch.Tensor, columns_Q: torch.Tensor, columns_C: torch.Tensor) -> torch.Tensor:
    """True where a query sees a column: its own and earlier ones of its sequence (R1QC).

    A padding column sees itself, because attention over nothing is NaN, and a NaN key spoils even a weight of 0.
    """
    earlier_QC = columns_C <= columns_Q[:, None]
    own_QC = columns_C == columns_Q[:, None]
    return ((columns_C >= starts_R[:, None, None]) & earlier_QC | own_QC)[:, None]
