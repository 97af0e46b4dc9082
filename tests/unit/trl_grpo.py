"""TRL's GRPO loss on tensors of ours, for the tests that compare with it."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch


def token_mean(loss_BT, mask_BT):
    """The mean over all tokens that the mask keeps."""
    return (loss_BT * mask_BT).sum() / mask_BT.sum()


def random_inputs(seed=0, rows=6, columns=10):
    """A batch as a loss takes it: ragged rows, two policies that differ, one advantage per sequence, and the weights of
    the mean over its tokens."""
    generator = torch.Generator().manual_seed(seed)

    def logprobs():
        return -torch.rand(rows, columns, generator=generator) * 2

    lengths = torch.randint(1, columns, (rows, 1), generator=generator)
    mask = (torch.arange(columns)[None] < lengths).float()
    old = logprobs()
    return {
        "logprobs_BT": (old + 0.4 * torch.randn(rows, columns, generator=generator)).requires_grad_(),
        "behaviour_logprobs_BT": old + 0.01,
        "old_logprobs_BT": old,
        "reference_logprobs_BT": logprobs(),
        "advantages_BT": torch.randn(rows, 1, generator=generator).expand(rows, columns),
        "mask_BT": mask,
        "weights_BT": mask / mask.sum(),
    }


def trl_loss(inputs, delta=None, factors_BT=None, **settings):
    """GRPOTrainer's own _compute_loss, with its forward pass replaced, and the metrics it recorded. `settings` are the
    trainer's attributes; factors_BT are what its correction for vLLM multiplies the loss with."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    fake = _trainer(inputs["logprobs_BT"], delta, use_vllm=factors_BT is not None, **settings)
    return trainer._compute_loss(fake, None, _batch(inputs, factors_BT)), fake._metrics["train"]


def _batch(inputs, factors_BT):
    nothing = torch.zeros(inputs["mask_BT"].shape[0], 0, dtype=torch.long)
    return {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros_like(inputs["mask_BT"], dtype=torch.long),
        "completion_mask": inputs["mask_BT"],
        "advantages": inputs["advantages_BT"][:, 0],
        "old_per_token_logps": inputs["old_logprobs_BT"],
        "ref_per_token_logps": inputs["reference_logprobs_BT"],
        "importance_sampling_ratio": factors_BT,
        "num_items_in_batch": inputs["mask_BT"].sum(),
    }


def _trainer(logprobs, delta, **settings):
    """What `_compute_loss` reads of the trainer."""
    defaults = {
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "importance_sampling_level": "token",
        "max_completion_length": 10,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
    }
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        **(defaults | settings),
    )
