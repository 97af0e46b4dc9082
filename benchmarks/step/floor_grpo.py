"""The floor under generation with transformers and under GRPO: bare torch loops, nothing around them."""

import time
from pathlib import Path

import torch
from torch import Tensor

from step import bare, decode
from step.work import LEARNING_RATE, SEED, Case, draw_prompts, even_bytes
from step.worker import Turns


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
    turns.ready(dtype="float32", threads=torch.get_num_threads(), positions_per_micro_batch=bare.MICRO_BATCH_POSITIONS)
    while True:
        prompts = [prompt.tokens for prompt in draw_prompts(folder, (step + 1) * case.prompts)[-case.prompts :]]
        begin = time.perf_counter()
        tokens_BT, logprobs_BT = decode.generate(engine, prompts, case.group, case.new_tokens)
        generated = time.perf_counter()
        rewards_B = torch.tensor(even_bytes(tokenizer.batch_decode(tokens_BT)))
        prepared = time.perf_counter()
        batch = bare.padded(prompts, tokens_BT, logprobs_BT, case.group)
        _train(model, optimizer, *batch, _advantages(rewards_B, case.group))
        parts = {"generate": generated - begin, "train": time.perf_counter() - prepared}
        step += 1
        turns.done(parts, [tokens_BT.shape[1]] * tokens_BT.shape[0])


def _advantages(rewards_B: Tensor, group: int) -> Tensor:
    rewards_GS = rewards_B.view(-1, group)
    spread_G1 = rewards_GS.std(1, keepdim=True) + 1e-4
    return ((rewards_GS - rewards_GS.mean(1, keepdim=True)) / spread_G1).flatten()


def _train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ids_BT: Tensor,
    mask_BT: Tensor,
    behaviour_BT: Tensor,
    advantages_B: Tensor,
) -> None:
    for ids, mask, behaviour, advantages in bare.micro_batches(ids_BT, mask_BT, behaviour_BT, advantages_B):
        logprobs_N = bare.response_logprobs(model, ids, mask)
        each_N = bare.of_responses(advantages[:, None].expand_as(mask), mask)
        loss = bare.clipped_loss(logprobs_N, bare.of_responses(behaviour, mask), each_N)
        (loss / mask_BT.sum()).backward()
    bare.step(model, optimizer)
