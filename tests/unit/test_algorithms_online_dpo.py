"""Online DPO: values by hand, and the gradient of the loss on pairs."""

import math

import pytest
import torch
from online_algorithms import algorithm, weights_of

from rlpipe.algorithms.online_dpo import best_and_worst, online_dpo, pair_loss

NAN = math.nan


def test_the_best_and_the_worst_of_each_group_the_first_among_equals():
    """Group 7: 2, 5, 5, 1 and a failure; group 3 is flat; group 1 has one valid reward; group 2: 0, 1."""
    rewards = [2.0, 5.0, 5.0, 1.0, NAN, 4.0, 4.0, 9.0, NAN, 0.0, 1.0]
    groups = [7, 7, 7, 7, 7, 3, 3, 1, 1, 2, 2]
    chosen, rejected = best_and_worst(torch.tensor(rewards), torch.tensor(groups), ~torch.tensor(rewards).isnan())
    assert (chosen.tolist(), rejected.tolist()) == ([10, 1], [9, 3])


def test_losses_and_slopes():
    loss, slope = pair_loss(torch.tensor([0.0, 1.5, -1.5]), 0.5, "sigmoid")
    torch.testing.assert_close(loss, torch.tensor([0.6931472, 0.3868711, 1.1368711]))
    torch.testing.assert_close(slope, torch.tensor([-0.25, -0.1604106, -0.3395894]))
    loss, slope = pair_loss(torch.tensor([0.0, 0.75, 2.0]), 0.5, "ipo")
    torch.testing.assert_close(loss, torch.tensor([1.0, 0.0625, 1.0]))
    torch.testing.assert_close(slope, torch.tensor([-2.0, -0.5, 2.0]))


def of(loss_type, **changes):
    """One pair (D = 1 and -0.5 over two tokens each, and a masked one that is NaN) and a tie."""
    inputs = {
        "rewards_B": torch.tensor([1.0, 0.0, 3.0, 3.0]),
        "groups_B": torch.tensor([0, 0, 1, 1]),
        "valid_B": torch.ones(4).bool(),
        "logprobs_BT": torch.tensor([[-1.0, -1.0, NAN], [-2.0, -1.0, NAN], [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]),
        "reference_logprobs_BT": torch.tensor([[-1.5, -1.5, 0.0], [-1.5, -1.0, 0.0], [-3.0] * 3, [-1.0] * 3]),
        "mask_BT": torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0] * 3, [1.0] * 3]),
    }
    return online_dpo(**inputs | changes, beta=0.5, loss_type=loss_type)


def test_values_of_a_pair_and_a_tie():
    """h = 1.5, so 0.1604106 each way, times 4 sequences over 1 pair."""
    found = of("sigmoid")
    a = 0.6416424
    torch.testing.assert_close(found.advantages_BT, torch.tensor([[a, a, 0], [-a, -a, 0], [0.0] * 3, [0.0] * 3]))
    torch.testing.assert_close(found.loss, torch.tensor(0.3868711))
    torch.testing.assert_close(found.implied_P2, torch.tensor([[0.5, -0.25]]))


def test_ipo_compares_means_over_tokens():
    """h = 0.75, so 0.5 each way, over 2 tokens, times 4."""
    found = of("ipo")
    torch.testing.assert_close(found.advantages_BT, torch.tensor([[1.0, 1, 0], [-1, -1, 0], [0.0] * 3, [0.0] * 3]))
    assert found.loss == pytest.approx(0.0625)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_without_a_pair_there_is_nothing_to_learn(loss_type):
    found = of(loss_type, rewards_B=torch.ones(4))
    assert not found.advantages_BT.any() and found.loss == 0 and found.implied_P2.shape == (0, 2)
    empty = of(loss_type, mask_BT=torch.zeros(4, 3), valid_B=torch.zeros(4).bool())
    assert not empty.advantages_BT.any() and empty.loss == 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_the_gradient_is_that_of_the_loss_on_pairs_however_it_is_split(loss_type):
    """Groups of 4 with a failure and a tie; each sequence a micro-batch of its own."""
    generator = torch.Generator().manual_seed(0)
    logprobs_BT, reference_BT = (-3 * torch.rand(12, 6, generator=generator) for _ in range(2))
    logprobs_BT.requires_grad_()
    lengths_B = torch.tensor([6, 3, 4, 5, 2, 6, 1, 3, 4, 4, 5, 6])
    valid_B = torch.arange(12) != 1
    mask_BT = ((torch.arange(6) < lengths_B[:, None]) & valid_B[:, None]).float()
    rewards_B = torch.tensor([0.2, 9.0, 0.7, 0.1, 1.0, 0.0, 0.5, 0.5, 2.0, 2.0, 2.0, 2.0])
    groups_B = torch.arange(12) // 4
    it = algorithm("online_dpo", advantage={"kind": "dpo", "beta": 0.3, "loss_type": loss_type})

    signal = it.signal(
        rewards_B=rewards_B, groups_B=groups_B, valid_B=valid_B, mask_BT=mask_BT, kl_coefficient=0.0,
        old_logprobs_BT=logprobs_BT.detach(), reference_logprobs_BT=reference_BT,
    )  # fmt: skip
    weights_BT = weights_of(it, mask_BT)
    for rows in torch.arange(12).split(1):
        it.loss(
            logprobs_BT=logprobs_BT[rows], behaviour_logprobs_BT=logprobs_BT[rows].detach(),
            advantages_BT=signal.advantages_BT[rows], mask_BT=mask_BT[rows], weights_BT=weights_BT[rows],
            kl_coefficient=0.0, reference_logprobs_BT=reference_BT[rows],
        )[0].backward()  # fmt: skip

    again_BT = logprobs_BT.detach().clone().requires_grad_()
    ratios_B = ((again_BT - reference_BT) * mask_BT).sum(-1) / (lengths_B if loss_type == "ipo" else 1)
    margins_P = torch.stack([ratios_B[2] - ratios_B[3], ratios_B[4] - ratios_B[5]])
    if loss_type == "sigmoid":
        loss = -torch.nn.functional.logsigmoid(0.3 * margins_P).mean()
    else:
        loss = (margins_P - 1 / 0.6).square().mean()
    loss.backward()
    torch.testing.assert_close(logprobs_BT.grad, again_BT.grad, atol=1e-6, rtol=1e-5)
    assert signal.metrics["dpo/loss"] == pytest.approx(loss.item(), rel=1e-5) and signal.metrics["dpo/pairs"] == 2
