"""What every function of the online family does with nothing, and with rubbish under the mask."""

import math

import pytest
import torch

from rlpipe.algorithms.cispo import cispo
from rlpipe.algorithms.clip_rewards import clip_rewards
from rlpipe.algorithms.corrections import (
    icepop_mask,
    importance_weights,
    sequence_mask,
    truncated_importance_weights,
    worst_token_mask,
)
from rlpipe.algorithms.dual_clip import dual_clip
from rlpipe.algorithms.explained_variance import value_sums
from rlpipe.algorithms.gae import discounted_returns, gae
from rlpipe.algorithms.group_advantages import group_advantages
from rlpipe.algorithms.groups import group_statistics, has_signal
from rlpipe.algorithms.gspo import gspo
from rlpipe.algorithms.kl_in_reward import kl_in_reward, kl_penalty
from rlpipe.algorithms.mismatch import mismatch_sums
from rlpipe.algorithms.overlong import soft_overlong_penalty, truncation_penalty, without_truncated
from rlpipe.algorithms.policy_gradient import policy_gradient
from rlpipe.algorithms.ppo_clip import ppo_clip
from rlpipe.algorithms.reinforce_plus_plus import reinforce_plus_plus, reinforce_plus_plus_baseline
from rlpipe.algorithms.rloo import rloo
from rlpipe.algorithms.value_loss import value_loss
from rlpipe.algorithms.whiten import whiten

# Each takes tensors [B, T]: x is what has the gradient, y and a are others, m is the mask.
UNMASKED = {
    "ppo_clip": lambda x, y, a, m: ppo_clip(x, y, a, 0.2, 0.2),
    "dual_clip": lambda x, y, a, m: dual_clip(x, y, a, 0.2, 0.2, 3.0),
    "dual_clip_unbounded": lambda x, y, a, m: dual_clip(x, y, a, 0.2, 0.2, math.inf),
    "cispo": lambda x, y, a, m: cispo(x, y, a, 0.2, 0.2),
    "policy_gradient": lambda x, y, a, m: policy_gradient(x, a),
    "value_loss": lambda x, y, a, m: value_loss(x, y, a, 0.2),
    "value_loss_unclipped": lambda x, y, a, m: value_loss(x, y, a, None),
}
MASKED = {
    "gspo": lambda x, y, a, m: gspo(x, y, a, m, 0.2, 0.2),
    "mismatch_sums": lambda x, y, a, m: mismatch_sums(x, y, m),
    "value_sums": lambda x, y, a, m: value_sums(x, y, m),
    "importance_weights": lambda x, y, a, m: importance_weights(x, y, m),
    "truncated_importance_weights": lambda x, y, a, m: truncated_importance_weights(x, y, m, 1.1),
    "icepop_mask": lambda x, y, a, m: icepop_mask(x, y, m, 0.9, 1.1),
    "sequence_mask": lambda x, y, a, m: sequence_mask(x, y, m, 0.9, 1.1),
    "worst_token_mask": lambda x, y, a, m: worst_token_mask(x, y, m, 0.4, 2.5),
    "gae": lambda x, y, a, m: gae(torch.where(m > 0, a, 0.0), x, m, 0.9, 0.8),
    "discounted_returns": lambda x, y, a, m: discounted_returns(torch.where(m > 0, a, 0.0), m, 0.9),
    "reinforce_plus_plus": lambda x, y, a, m: reinforce_plus_plus(torch.where(m > 0, a, 0.0), m, 0.9),
    "whiten": lambda x, y, a, m: whiten(x, m),
    "whiten_unshifted": lambda x, y, a, m: whiten(x, m, shift_mean=False),
    "kl_penalty": lambda x, y, a, m: kl_penalty(x, y, m, 0.1, "k3"),
    "kl_in_reward": lambda x, y, a, m: kl_in_reward(
        torch.where(m.sum(-1) > 0, 1.0, math.nan), kl_penalty(x, y, m, 0.1, "k3"), m
    ),
}
# Each takes rewards, groups and validity [B].
ON_GROUPS = {
    "group_advantages": lambda r, g, v: group_advantages(r, g, v, scale_by_std=True),
    "dr_grpo": lambda r, g, v: group_advantages(r, g, v, scale_by_std=False),
    "rloo": rloo,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "group_statistics": group_statistics,
    "has_signal": has_signal,
    "whiten": lambda r, g, v: whiten(r, v),
}
RUBBISH = [math.nan, math.inf, -math.inf, 1e30]


def tensors(result):
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, tuple) else [result]


def gradient_of(outputs, x):
    """The gradient of the sum of all outputs that have one; 0 if none has."""
    total = sum((o.sum() for o in outputs if o.requires_grad), start=0.0 * x.detach().nan_to_num(0, 0, 0).sum())
    return torch.autograd.grad(total, x)[0] if total.requires_grad else torch.zeros_like(x)


@pytest.mark.parametrize("name", UNMASKED | MASKED)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 3)])
def test_empty_and_fully_masked_input(name, shape):
    """Empty batch, empty sequences, and a batch of which nothing is the policy's."""
    x = torch.zeros(shape, requires_grad=True)
    outputs = tensors((UNMASKED | MASKED)[name](x, torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)))
    assert all(not output.any() for output in outputs)  # NaN counts as any
    assert not gradient_of(outputs, x).any()


@pytest.mark.parametrize("name", MASKED)
def test_a_fully_masked_batch_of_rubbish_gives_zero(name):
    x = torch.full((2, 3), math.nan, requires_grad=True)
    rubbish = torch.full((2, 3), math.inf)
    outputs = tensors(MASKED[name](x, rubbish, rubbish, torch.zeros(2, 3)))
    assert all(not output.any() for output in outputs)
    assert not gradient_of(outputs, x).any()


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_changes_nothing(name, rubbish):
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 7, generator=generator) < 0.6).float()
    mask[2] = 0.0
    clean = [0.3 * torch.randn(6, 7, generator=generator) for _ in range(3)]
    dirty = [torch.where(mask > 0, values, rubbish) for values in clean]
    results = []
    for x, y, a in (clean, dirty):
        outputs = tensors(MASKED[name](x.requires_grad_(), y, a, mask))
        results.append([output.detach() for output in outputs] + [gradient_of(outputs, x)])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after) and after.isfinite().all()
        if after.shape == mask.shape:
            assert not after[mask == 0].any()


@pytest.mark.parametrize("name", UNMASKED | MASKED)
def test_outputs_are_finite(name):
    """Also where the policies are up to e^20 apart, and at advantages of 0."""
    generator = torch.Generator().manual_seed(1)
    x, y = (10 * torch.randn(2, 8, 9, generator=generator)).clamp(-10, 10)
    advantages = torch.randint(-1, 2, (8, 9), generator=generator).float()
    outputs = tensors((UNMASKED | MASKED)[name](x.requires_grad_(), y, advantages, torch.ones(8, 9)))
    assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("name", UNMASKED | {"gspo": MASKED["gspo"]})
def test_losses_have_finite_gradients(name):
    generator = torch.Generator().manual_seed(1)
    x, y = (10 * torch.randn(2, 8, 9, generator=generator)).clamp(-10, 10)
    advantages = torch.randint(-1, 2, (8, 9), generator=generator).float()
    loss, clipped = (UNMASKED | MASKED)[name](x.requires_grad_(), y, advantages, torch.ones(8, 9))
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()
    assert set(clipped.unique().tolist()) <= {0.0, 1.0} and not clipped.requires_grad


@pytest.mark.parametrize("name", ON_GROUPS)
def test_groups_of_nothing(name):
    empty = torch.zeros(0)
    assert all(output.shape == (0,) for output in tensors(ON_GROUPS[name](empty, empty.long(), empty.bool())))


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("name", ON_GROUPS)
def test_a_failed_rewards_value_is_never_read(name, rubbish):
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.randn(24, generator=generator), torch.arange(6).repeat(4)
    valid = torch.rand(24, generator=generator) < 0.6
    for some in (valid, torch.zeros(24).bool()):
        clean, dirty = (tensors(ON_GROUPS[name](r, groups, some)) for r in (rewards, rewards.where(some, rubbish)))
        for before, after in zip(clean, dirty, strict=True):
            assert torch.equal(before, after) and after.isfinite().all()


def test_shaping_of_nothing():
    empty = torch.zeros(0)
    for result in (
        soft_overlong_penalty(empty, 10, 5),
        truncation_penalty(empty, empty.bool(), 1.0),
        without_truncated(empty.bool(), empty.bool()),
        clip_rewards(empty, -1.0, 1.0),
    ):
        assert result.shape == (0,)
