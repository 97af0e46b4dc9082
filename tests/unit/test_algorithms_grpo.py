"""GRPO as a whole: identities, splitting, empty input, and beside TRL's trainer."""

import pytest
import torch
from online_algorithms import algorithm
from trl_grpo import random_inputs, trl_loss

CLIPS = {"clip_low": 0.2, "clip_high": 0.28}


class Grpo:
    """The preset with a KL coefficient that does not change."""

    def __init__(self, kl_coefficient=0.0):
        self.algorithm = algorithm("grpo", loss=CLIPS, kl={"coefficient": kl_coefficient})
        self.kl_coefficient = kl_coefficient

    def loss(self, **inputs):
        return self.algorithm.loss(kl_coefficient=self.kl_coefficient, **inputs)


def grpo(**settings) -> Grpo:
    return Grpo(**settings)


def rows_of(inputs, rows):
    return {name: value[rows] for name, value in inputs.items()}


def test_on_policy_loss_and_gradient():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]]).requires_grad_()
    advantages, mask = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[1.0, 1.0, 0.0]])
    loss, sums = grpo().loss(
        logprobs_BT=logprobs, behaviour_logprobs_BT=logprobs.detach() - 0.1, advantages_BT=advantages, mask_BT=mask,
        weights_BT=mask / 4.0,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == -0.25
    assert logprobs.grad.tolist() == [[-0.125, -0.125, 0.0]]
    assert (sums["ratio"], sums["clip_fraction"], sums["policy_kl"]) == (2.0, 0.0, 0.0)
    assert sums["mismatch/abs"].item() == pytest.approx(0.2)


def test_without_old_logprobs_it_is_the_first_update():
    """Passing the trainer's own log-probabilities as old ones, or none, is the same on policy."""
    inputs = random_inputs()
    inputs["old_logprobs_BT"] = inputs["logprobs_BT"].detach()
    first, _ = grpo().loss(**inputs)
    second, _ = grpo().loss(**(inputs | {"old_logprobs_BT": None}))
    assert first == second


def test_the_gradient_does_not_depend_on_the_split():
    inputs = random_inputs()
    algorithm = grpo(kl_coefficient=0.1)
    whole = torch.autograd.grad(algorithm.loss(**inputs)[0], inputs["logprobs_BT"])[0]
    parts = [algorithm.loss(**rows_of(inputs, rows))[0] for rows in ([0], [3, 1], [2, 4, 5])]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), inputs["logprobs_BT"])[0], whole)


def test_metrics_are_sums():
    inputs = random_inputs()
    algorithm = grpo(kl_coefficient=0.1)
    whole = algorithm.loss(**inputs)[1]
    parts = [algorithm.loss(**rows_of(inputs, rows))[1] for rows in ([0, 1], [2, 3, 4, 5])]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, msg=name)


def test_kl_to_the_reference_joins_the_loss():
    inputs = random_inputs()
    plain, _ = grpo().loss(**inputs)
    loss, sums = grpo(kl_coefficient=0.1).loss(**inputs)
    torch.testing.assert_close(loss, plain + 0.1 * sums["reference_kl"] / inputs["mask_BT"].sum())


def test_a_missing_reference_is_an_error():
    algorithm = grpo(kl_coefficient=0.1)
    assert algorithm.algorithm.needs_reference and not grpo().algorithm.needs_reference
    with pytest.raises(ValueError, match="Reference"):
        algorithm.loss(**(random_inputs() | {"reference_logprobs_BT": None}))


@pytest.mark.parametrize("shape", [(1, 2), (0, 4)])
def test_nothing_to_train_on_gives_zero(shape):
    empty = torch.zeros(shape)
    logprobs = torch.zeros(shape, requires_grad=True)
    loss, sums = grpo(kl_coefficient=0.1).loss(
        logprobs_BT=logprobs, behaviour_logprobs_BT=empty, advantages_BT=empty, mask_BT=empty, weights_BT=empty,
        old_logprobs_BT=empty, reference_logprobs_BT=empty,
    )  # fmt: skip
    loss.backward()
    assert loss == 0.0 and not logprobs.grad.any() and all(value == 0.0 for value in sums.values())


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.04])
def test_equals_trl(old, kl_coefficient):
    """GRPOTrainer's own _compute_loss, with its forward pass replaced; loss_type "bnpo" is the token mean."""
    inputs = random_inputs() | ({} if old else {"old_logprobs_BT": None})
    ours, sums = grpo(kl_coefficient=kl_coefficient).loss(**inputs)
    clips = {"epsilon_low": CLIPS["clip_low"], "epsilon_high": CLIPS["clip_high"]}
    theirs, metrics = trl_loss(inputs, loss_type="bnpo", beta=kl_coefficient, **clips)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, inputs["logprobs_BT"])[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    clipped = metrics["clip_ratio/region_mean"][0]
    assert sums["clip_fraction"].item() / inputs["mask_BT"].sum().item() == pytest.approx(clipped, abs=1e-6)
