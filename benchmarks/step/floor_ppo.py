"""The floor under a PPO step: every forward and backward that it must do, one after the other, each with all threads.

    generate   decode on a static cache
    score      the reward model, over prompts and responses
    prepare    the reference's and the policy's log-probabilities, the critic's values; then advantages (GAE)
    train      forward, backward and AdamW step of the policy, and of the critic

The policy's log-probabilities before the update are needed as the KL penalty stands in the reward. Axis names: bare.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from step import bare, decode
from step.watch import Watch
from step.work import LEARNING_RATE, SEED, Case, classifier_of, draw_prompts
from step.worker import Turns

KL, LAMBDA = 0.02, 0.95


@dataclass(frozen=True, slots=True)
class Models:
    """The five models of PPO, and the engine's copy of the policy."""

    engine: Any
    policy: Any
    reference: Any
    reward_model: Any
    critic: Any


def run(case: Case, folder: Path, turns: Turns) -> None:
    models = _load(folder)
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        for model in (models.policy, models.critic)
    ]
    torch.manual_seed(SEED)
    step = 0
    turns.ready(dtype="float32", threads=torch.get_num_threads(), positions_per_micro_batch=bare.MICRO_BATCH_POSITIONS)
    while True:
        prompts = [prompt.tokens for prompt in draw_prompts(folder, (step + 1) * case.prompts)[-case.prompts :]]
        watch = Watch()
        tokens_BT, logprobs_BT = decode.generate(models.engine, prompts, case.group, case.new_tokens)
        watch.lap("generate")
        ids_BT, mask_BT, _ = bare.padded(prompts, tokens_BT, logprobs_BT, case.group)
        rewards_B = _scores(models.reward_model, ids_BT, mask_BT)
        watch.lap("score")
        batch = _prepared(models, ids_BT, mask_BT, rewards_B)
        watch.lap("prepare")
        _train(models, *optimizers, ids_BT, mask_BT, *batch)
        watch.lap("train")
        step += 1
        turns.done(watch.parts, [tokens_BT.shape[1]] * tokens_BT.shape[0])


def _load(folder: Path) -> Models:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    def language_model(attention: str = "sdpa") -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()

    def classifier() -> Any:
        path = classifier_of(folder)
        return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()

    return Models(language_model(decode.ATTENTION), language_model(), language_model(), classifier(), classifier())


@torch.no_grad()
def _scores(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The head's output at each sequence's last token, [B]."""
    scores = []
    for ids, mask in bare.micro_batches(ids_BT, mask_BT):
        hidden_BTH = model.model(input_ids=ids, use_cache=False).last_hidden_state
        last_B = mask.cumsum(1).argmax(1)
        scores.append(model.score(hidden_BTH[torch.arange(len(ids)), last_B])[:, 0])
    return torch.cat(scores)


def _values(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The value of the state in which each response token was chosen, [N]."""
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return model.score(hidden_BTH[:, :-1][mask_BT[:, 1:].bool()])[:, 0]


@torch.no_grad()
def _prepared(models: Models, ids_BT: Tensor, mask_BT: Tensor, rewards_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """old_BT, advantages_BT and returns_BT; 0 outside of responses."""
    reference_BT, old_BT, values_BT = (torch.zeros_like(mask_BT) for _ in range(3))
    for ids, mask, *outs in bare.micro_batches(ids_BT, mask_BT, reference_BT, old_BT, values_BT):
        found = bare.response_logprobs(models.reference, ids, mask), bare.response_logprobs(models.policy, ids, mask)
        for out_BT, found_N in zip(outs, (*found, _values(models.critic, ids, mask)), strict=True):
            out_BT[mask.bool()] = found_N
    advantages_BT = _gae(rewards_B, KL * (old_BT - reference_BT), values_BT, mask_BT)
    returns_BT = (advantages_BT + values_BT) * mask_BT
    kept = advantages_BT[mask_BT.bool()]
    return old_BT, (advantages_BT - kept.mean()) / (kept.std() + 1e-8) * mask_BT, returns_BT


def _gae(rewards_B: Tensor, penalty_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Without discount; the reward stands on the last response token."""
    last_BT = mask_BT.cumsum(1) * mask_BT == mask_BT.sum(1, keepdim=True)
    rewards_BT = rewards_B[:, None] * last_BT - penalty_BT
    advantages_BT, running_B, next_B = torch.zeros_like(mask_BT), torch.zeros(len(mask_BT)), torch.zeros(len(mask_BT))
    for t in reversed(range(mask_BT.shape[1])):
        inside_B = mask_BT[:, t]
        running_B = inside_B * (rewards_BT[:, t] + next_B - values_BT[:, t] + LAMBDA * running_B)
        next_B = inside_B * values_BT[:, t]
        advantages_BT[:, t] = running_B
    return advantages_BT


def _train(
    models: Models,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    ids_BT: Tensor,
    mask_BT: Tensor,
    old_BT: Tensor,
    advantages_BT: Tensor,
    returns_BT: Tensor,
) -> None:
    tokens = mask_BT.sum()
    for ids, mask, old, advantages in bare.micro_batches(ids_BT, mask_BT, old_BT, advantages_BT):
        logprobs_N = bare.response_logprobs(models.policy, ids, mask)
        loss = bare.clipped_loss(logprobs_N, bare.of_responses(old, mask), bare.of_responses(advantages, mask))
        (loss / tokens).backward()
    bare.step(models.policy, policy_optimizer)
    for ids, mask, returns in bare.micro_batches(ids_BT, mask_BT, returns_BT):
        errors_N = _values(models.critic, ids, mask) - bare.of_responses(returns, mask)
        (0.5 * errors_N.square().sum() / tokens).backward()
    bare.step(models.critic, critic_optimizer)
