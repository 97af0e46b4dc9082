"""What the floors are made of: plain torch on whole batches, cut into micro-batches of similar size.

Axis names: B samples, T positions (padded on the right), N response tokens.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CLIP = 0.2
MICRO_BATCH_POSITIONS = 4096
"""Positions of one forward and backward, padding included: of 2,048 to 16,384 about the fastest at both lengths, for
these loops and for rlpipe alike (`tokens_per_micro_batch` of grpo.yaml and ppo.yaml)."""


def padded(prompts: list, tokens_BT: Tensor, logprobs_BT: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, response mask and behaviour log-probabilities, all [B, T], of prompts with `group` responses each."""
    samples, new = tokens_BT.shape
    longest = max(map(len, prompts)) + new
    ids_BT = torch.zeros(samples, longest, dtype=torch.long)
    mask_BT, behaviour_BT = torch.zeros(samples, longest), torch.zeros(samples, longest)
    for b in range(samples):
        prompt = torch.from_numpy(prompts[b // group])
        end = len(prompt) + new
        ids_BT[b, : len(prompt)], ids_BT[b, len(prompt) : end] = prompt, tokens_BT[b]
        mask_BT[b, len(prompt) : end], behaviour_BT[b, len(prompt) : end] = 1.0, logprobs_BT[b]
    return ids_BT, mask_BT, behaviour_BT


def micro_batches(*columns: Tensor) -> Iterator[Sequence[Tensor]]:
    """The columns, whose first is [B, T], in pieces of some rows."""
    rows = max(1, MICRO_BATCH_POSITIONS // columns[0].shape[1])
    return zip(*(column.split(rows) for column in columns), strict=True)


def response_logprobs(model: torch.nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """logprobs_N of the response tokens. Padding on the right needs no attention mask."""
    written = mask_BT[:, 1:].bool()
    hidden_NH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][written]
    targets_N = ids_BT[:, 1:][written]
    return -torch.nn.functional.cross_entropy(model.lm_head(hidden_NH), targets_N, reduction="none")


def of_responses(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The values at response tokens, [N]."""
    return values_BT[mask_BT.bool()]


def clipped_loss(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor) -> Tensor:
    """PPO's loss, summed over response tokens."""
    ratio_N = (logprobs_N - old_N).exp()
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - CLIP, 1 + CLIP) * advantages_N).sum()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer step on the gradients that have been added up."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
