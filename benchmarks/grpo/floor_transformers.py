"""The floor under generation with transformers and under training: bare torch loops, nothing around them."""

import time
from pathlib import Path

import torch
from torch import Tensor

from grpo import decode
from grpo.work import LEARNING_RATE, SEED, Case, draw_prompts, even_bytes
from grpo.worker import Turns

CLIP = 0.2
MICRO_BATCH_POSITIONS = 4096
"""Positions of one forward and backward, padding included: of 2,048 to 16,384 about the fastest at both lengths, for
this loop and for rlpipe alike (`tokens_per_micro_batch` of step.yaml)."""


def run(case: Case, folder: Path, turns: Turns) -> None:
    """Decode on a static cache with one prefill per group; then one forward, backward and AdamW step on the tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Two copies, as in any pipeline whose engine is not its trainer.
    engine = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=decode.ATTENTION)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    torch.manual_seed(SEED)
    step = 0
    turns.ready(dtype="float32", threads=torch.get_num_threads(), positions_per_micro_batch=MICRO_BATCH_POSITIONS)
    while True:
        prompts = [prompt.tokens for prompt in draw_prompts(folder, (step + 1) * case.prompts)[-case.prompts :]]
        begin = time.perf_counter()
        tokens_BT, logprobs_BT = decode.generate(engine, prompts, case.group, case.new_tokens)
        generated = time.perf_counter()
        rewards_B = torch.tensor(even_bytes(tokenizer.batch_decode(tokens_BT)))
        prepared = time.perf_counter()
        _train(model, optimizer, _batch(prompts, tokens_BT, logprobs_BT, rewards_B, case.group))
        parts = {"generate": generated - begin, "train": time.perf_counter() - prepared}
        step += 1
        turns.done(parts, [tokens_BT.shape[1]] * tokens_BT.shape[0])


Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Token ids, response mask, behaviour log-probabilities, all [B, T] padded on the right, and advantages [B]."""


def _batch(prompts: list, tokens_BT: Tensor, logprobs_BT: Tensor, rewards_B: Tensor, group: int) -> Batch:
    samples, new = tokens_BT.shape
    longest = max(map(len, prompts)) + new
    ids_BT = torch.zeros(samples, longest, dtype=torch.long)
    mask_BT, behaviour_BT = torch.zeros(samples, longest), torch.zeros(samples, longest)
    for b in range(samples):
        prompt = torch.from_numpy(prompts[b // group])
        end = len(prompt) + new
        ids_BT[b, : len(prompt)], ids_BT[b, len(prompt) : end] = prompt, tokens_BT[b]
        mask_BT[b, len(prompt) : end], behaviour_BT[b, len(prompt) : end] = 1.0, logprobs_BT[b]
    rewards_GS = rewards_B.view(-1, group)
    spread_G1 = rewards_GS.std(1, keepdim=True) + 1e-4
    return ids_BT, mask_BT, behaviour_BT, ((rewards_GS - rewards_GS.mean(1, keepdim=True)) / spread_G1).flatten()


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    ids_BT, mask_BT, *_ = batch
    rows = max(1, MICRO_BATCH_POSITIONS // ids_BT.shape[1])
    for micro_batch in zip(*(tensor.split(rows) for tensor in batch), strict=True):
        (_loss(model, *micro_batch) / mask_BT.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _loss(
    model: torch.nn.Module, ids_BT: Tensor, mask_BT: Tensor, behaviour_BT: Tensor, advantages_B: Tensor
) -> Tensor:
    """The clipped loss, summed over response tokens. Padding on the right needs no attention mask."""
    written = mask_BT[:, 1:].bool()
    hidden_NH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][written]
    targets_N = ids_BT[:, 1:][written]
    logprobs_N = -torch.nn.functional.cross_entropy(model.lm_head(hidden_NH), targets_N, reduction="none")
    advantages_N = advantages_B[:, None].expand_as(written)[written]
    ratio_N = (logprobs_N - behaviour_BT[:, 1:][written]).exp()
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - CLIP, 1 + CLIP) * advantages_N).sum()
