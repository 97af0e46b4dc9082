"""Dual clip, GSPO, CISPO, policy gradient and decoupled PPO: by hand, by identity, and beside TRL's loss."""

import math

import pytest
import torch
from trl_grpo import random_inputs, token_mean, trl_loss

from rlpipe.algorithms.aggregate import masked_sum, token_weights
from rlpipe.algorithms.cispo import cispo
from rlpipe.algorithms.correction_kinds import CORRECTIONS
from rlpipe.algorithms.dual_clip import dual_clip
from rlpipe.algorithms.gspo import gspo
from rlpipe.algorithms.policy_gradient import policy_gradient
from rlpipe.algorithms.ppo_clip import ppo_clip

CLIPS = (0.2, 0.28)


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def from_ratios(ratios):
    """Log-probabilities with a gradient, and old ones in these ratios to them."""
    logprobs = torch.full_like(torch.tensor(ratios), -1.5).requires_grad_()
    return logprobs, logprobs.detach() - torch.tensor(ratios).log()


def gradient(loss, inputs):
    return torch.autograd.grad(loss, inputs["logprobs_BT"], retain_graph=True)[0]


def ppo_inputs(inputs):
    return tuple(inputs[name] for name in ("logprobs_BT", "old_logprobs_BT", "advantages_BT"))


def assert_same(inputs, ours, theirs):
    """Two (loss, clipped) pairs: equal, and with equal gradients."""
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours[0].sum(), inputs), gradient(theirs[0].sum(), inputs))


# Dual clip


def test_dual_clip_values():
    logprobs, old = from_ratios([5.0, 5.0, 2.0, 0.5, 1.5])
    loss, clipped = dual_clip(logprobs, old, torch.tensor([-1.0, 1.0, -2.0, -1.0, 0.0]), 0.2, 0.2, bound=3.0)
    loss.sum().backward()
    expect(loss, [3.0, -1.2, 4.0, 0.8, 0.0])
    expect(clipped, [1.0, 1.0, 0.0, 1.0, 0.0])
    expect(logprobs.grad, [0.0, 0.0, 4.0, 0.0, 0.0])


def test_dual_clip_leaves_positive_advantages_to_the_first_clip():
    logprobs, old = from_ratios([1.2])
    loss, clipped = dual_clip(logprobs, old, torch.ones(1), *CLIPS, bound=1.1)
    expect(loss.detach(), [-1.2])
    assert not clipped.any()


def test_dual_clip_without_bound_is_ppo_clip():
    inputs = random_inputs()
    assert_same(inputs, dual_clip(*ppo_inputs(inputs), *CLIPS, math.inf), ppo_clip(*ppo_inputs(inputs), *CLIPS))


def test_dual_clip_bounds_a_ratio_that_overflows():
    logprobs = torch.tensor([0.0], requires_grad=True)
    loss, clipped = dual_clip(logprobs, torch.tensor([-1000.0]), torch.tensor([-2.0]), *CLIPS, bound=3.0)
    loss.sum().backward()
    expect(loss, [6.0])
    assert clipped == 1.0 and logprobs.grad == 0.0


def test_dual_clip_refuses_a_bound_that_cuts_the_ratio_of_one():
    with pytest.raises(ValueError, match="above 1"):
        dual_clip(torch.zeros(1), torch.zeros(1), torch.ones(1), *CLIPS, bound=1.0)


def test_dual_clip_equals_trl():
    """TRL calls the bound delta."""
    inputs = random_inputs()
    ours = token_mean(dual_clip(*ppo_inputs(inputs), *CLIPS, 1.4)[0], inputs["mask_BT"])
    theirs, _ = trl_loss(inputs, delta=1.4, loss_type="bnpo")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, inputs), gradient(theirs, inputs))


# GSPO


def test_gspo_values():
    """Sequence ratios: sqrt(2 * 0.5) = 1 and sqrt(4 * 1) = 2, the latter with a good and a bad advantage."""
    logprobs, old = from_ratios([[2.0, 0.5, 7.0], [4.0, 1.0, 1.0], [4.0, 1.0, 1.0]])
    advantages, mask = torch.tensor([[1.0], [1.0], [-1.0]]).expand(3, 3), torch.tensor([[1.0, 1.0, 0.0]] * 3)
    loss, clipped = gspo(logprobs, old, advantages, mask, 0.2, 0.2)
    loss.sum().backward()
    expect(loss, [[-1.0, -1.0, 0.0], [-1.2, -1.2, 0.0], [2.0, 2.0, 0.0]])
    expect(clipped, [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    expect(logprobs.grad, [[-1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 2.0, 0.0]])


def test_gspo_of_single_tokens_is_ppo_clip():
    inputs = {name: value[:, :1] for name, value in random_inputs().items() if name.endswith("_BT")}
    assert_same(inputs, gspo(*ppo_inputs(inputs), inputs["mask_BT"], *CLIPS), ppo_clip(*ppo_inputs(inputs), *CLIPS))


def test_gspo_has_the_loss_and_gradient_of_the_sequence_ratio():
    """Equation 5 of the paper, spelt out sequence by sequence and differentiated through the ratio itself."""
    inputs = random_inputs()
    logprobs, old, advantages = ppo_inputs(inputs)
    paper = []
    for row, length in enumerate(inputs["mask_BT"].sum(-1).int().tolist()):
        ratio = ((logprobs[row, :length].sum() - old[row, :length].sum()) / length).exp()
        advantage = advantages[row, 0]
        paper.append(torch.minimum(ratio * advantage, ratio.clamp(1 - 0.02, 1 + 0.03) * advantage))
    paper = -torch.stack(paper).mean()
    ours = _sequence_mean(gspo(logprobs, old, advantages, inputs["mask_BT"], 0.02, 0.03)[0], inputs["mask_BT"])
    torch.testing.assert_close(ours, paper)
    torch.testing.assert_close(gradient(ours, inputs), gradient(paper, inputs))
    assert gradient(paper, inputs).count_nonzero() not in (0, inputs["mask_BT"].sum())  # some are clipped, some not


def test_gspo_equals_trl():
    inputs = random_inputs()
    loss, clipped = gspo(*ppo_inputs(inputs), inputs["mask_BT"], 0.02, 0.03)
    ours = _sequence_mean(loss, inputs["mask_BT"])
    clips = {"epsilon_low": 0.02, "epsilon_high": 0.03}
    theirs, metrics = trl_loss(inputs, loss_type="grpo", importance_sampling_level="sequence", **clips)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, inputs), gradient(theirs, inputs))
    assert clipped.amax(-1).mean().item() == pytest.approx(metrics["clip_ratio/region_mean"][0])


def _sequence_mean(loss, mask):
    sequences = torch.arange(len(mask))[:, None].expand_as(mask)
    return masked_sum(loss, token_weights("sequence_mean", mask.flatten(), sequences.flatten()).view_as(mask))


# CISPO


def test_cispo_values():
    logprobs, old = from_ratios([0.5, 1.5, 0.5, 1.1])
    loss, clipped = cispo(logprobs, old, torch.tensor([1.0, 2.0, -1.0, 1.0]), 0.2, 0.2)
    loss.sum().backward()
    expect(loss, [1.2, 3.6, -1.2, 1.65])
    expect(clipped, [1.0, 1.0, 1.0, 0.0])
    expect(logprobs.grad, [-0.8, -2.4, 0.8, -1.1])


def test_cispo_without_lower_bound():
    logprobs, old = from_ratios([0.5, 0.01])
    loss, clipped = cispo(logprobs, old, torch.ones(2), 1.0, 0.2)
    expect(loss.detach(), [0.75, 0.015])
    assert not clipped.any()


def test_cispo_without_clipping_has_the_policy_gradient():
    """On policy REINFORCE's; off policy that of the importance-weighted objective, which is PPO's without clip."""
    inputs = random_inputs()
    off_policy, _ = cispo(*ppo_inputs(inputs), math.inf, math.inf)
    unclipped, _ = ppo_clip(*ppo_inputs(inputs), math.inf, math.inf)
    torch.testing.assert_close(gradient(off_policy.sum(), inputs), gradient(unclipped.sum(), inputs))
    logprobs, _, advantages = ppo_inputs(inputs)
    on_policy, _ = cispo(logprobs, logprobs.detach(), advantages, math.inf, math.inf)
    reinforce, _ = policy_gradient(logprobs, advantages)
    torch.testing.assert_close(on_policy, reinforce)
    torch.testing.assert_close(gradient(on_policy.sum(), inputs), gradient(reinforce.sum(), inputs))


def test_cispo_equals_trl():
    """TRL gives the upper bound itself, not its distance from 1, and has no lower one."""
    inputs = random_inputs()
    ours = token_mean(cispo(*ppo_inputs(inputs), 1.0, 0.25)[0], inputs["mask_BT"])
    theirs, _ = trl_loss(inputs, loss_type="cispo", epsilon_high=1.25)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, inputs), gradient(theirs, inputs))


# Policy gradient


def test_policy_gradient_values():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, clipped = policy_gradient(logprobs, torch.tensor([0.5, -1.0, 0.0]))
    loss.sum().backward()
    expect(loss, [0.5, -2.0, 0.0])
    expect(logprobs.grad, [-0.5, 1.0, 0.0])
    assert not clipped.any()


def test_policy_gradient_is_ppo_clips_on_policy():
    inputs = random_inputs()
    logprobs, _, advantages = ppo_inputs(inputs)
    ours, ppo = policy_gradient(logprobs, advantages), ppo_clip(logprobs, logprobs.detach(), advantages, *CLIPS)
    torch.testing.assert_close(gradient(ours[0].sum(), inputs), gradient(ppo[0].sum(), inputs))


# Decoupled PPO


def decoupled_ppo(logprobs, proximal, behaviour, advantages, mask, *clips):
    """As a recipe with `correction: {kind: decoupled}` puts it together."""
    factors, cut = CORRECTIONS["decoupled"](proximal, behaviour, mask)
    assert cut == 0
    loss, clipped = ppo_clip(logprobs, proximal, advantages, *clips)
    return factors * loss, clipped


def test_decoupled_ppo_values():
    """proximal / behaviour = 2 and policy / proximal = 1.5; the last token is the environment's."""
    logprobs, proximal = from_ratios([[1.5, 1.5, 1.5]])
    behaviour, mask = proximal - math.log(2), torch.tensor([[1.0, 1.0, 0.0]])
    loss, clipped = decoupled_ppo(logprobs, proximal, behaviour, torch.tensor([[1.0, -1.0, 1.0]]), mask, 0.2, 0.2)
    loss.sum().backward()
    expect(loss, [[-2.4, 3.0, 0.0]])
    expect(clipped * mask, [[1.0, 0.0, 0.0]])
    expect(logprobs.grad, [[0.0, 3.0, 0.0]])


def test_decoupled_ppo_with_the_behaviour_policy_as_proximal_is_ppo():
    inputs = random_inputs()
    logprobs, old, advantages = ppo_inputs(inputs)
    mask = torch.ones_like(logprobs)
    ours = decoupled_ppo(logprobs, old, old, advantages, mask, *CLIPS)
    assert_same(inputs, ours, ppo_clip(logprobs, old, advantages, *CLIPS))


def test_decoupled_ppo_equals_trl():
    """TRL multiplies the same factor in, as its correction for vLLM (uncapped here)."""
    inputs = random_inputs()
    logprobs, old, advantages = ppo_inputs(inputs)
    behaviour, mask = old - 0.3 * torch.rand_like(old), inputs["mask_BT"]
    loss, _ = decoupled_ppo(logprobs, old, behaviour, advantages, mask, *CLIPS)
    ours = token_mean(loss, mask)
    theirs, _ = trl_loss(inputs, factors_BT=torch.exp(old - behaviour), loss_type="bnpo")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, inputs), gradient(theirs, inputs))
