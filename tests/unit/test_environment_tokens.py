"""What an environment says, on its way from the tokenizer to loss, KL and critic: read, but not learnt.

One episode of two turns through the real `Episodes`: `5<|end|>`, nine tokens of the environment, `7<|end|>`.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine, pool_of
from online_algorithms import algorithm, weights_of
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlpipe.data.flow import GroupRequest, Prompt, Sampling
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines.answers import group_of
from rlpipe.pipelines.online.batch import scored, token_batch, with_signal
from rlpipe.recipe.environment import GuessNumber as GuessRecipe
from rlpipe.recipe.rewards import EnvironmentReward
from rlpipe.rewards.environment import FromEnvironment
from rlpipe.rewards.mix import Mix
from rlpipe.rewards.reward import Allowance
from rlpipe.rollout.environments import End, Reply
from rlpipe.rollout.environments.guess_number import GuessNumber
from rlpipe.rollout.environments.stage import EnvironmentStage
from rlpipe.rollout.episodes import EpisodeLimits, Episodes
from rlpipe.rollout.turn_marks import TurnMarks

OWN = torch.tensor([*[0.0] * 6, 1.0, 1.0, *[0.0] * 9, 1.0, 1.0])
"""A prompt of 6 tokens, then the response."""


def episode(tokenizer, environment, prompt, turns, end, chat=True):
    """The group of one episode in which the policy says `turns`, scored by the environment."""
    engine = FakeEngine(lambda request, _: turns[len(engine.requests) - 1], {end})
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    stage, marks = EnvironmentStage(environment, 0, None), TurnMarks(tokenizer, chat)
    subject = Episodes(pool_of(engine), stage, {"p": prompt}, marks, decode, EpisodeLimits(4, 200))
    subject.submit("policy", [GroupRequest("g", "p", prompt.tokens, (11,), Sampling(8, 1.0, ()))])
    [trajectories] = subject.finished(5.0)
    group = group_of(prompt, trajectories, tokenizer)
    reward = FromEnvironment(EnvironmentReward(kind="environment"))
    return replace(group, outcomes=Mix([reward]).outcomes(group, {reward.name: reward.score(group, Allowance(1.0))}))


@pytest.fixture(scope="module")
def game():
    tokenizer = build_tokenizer()
    five, seven, end = (tokenizer(text)["input_ids"] for text in ("5", "7", "<|end|>"))
    chat = [{"role": "user", "content": "0-9"}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    prompt = Prompt("p", np.array(tokens, np.int32), "0-9", {"answer": "7"})
    rules = GuessNumber(GuessRecipe(kind="guess_number", max_turns=3, discount=0.25))
    return episode(tokenizer, rules, prompt, [[*five, *end], [*seven, *end]], end[0])


def on_all(values, elsewhere):
    """`values` on the policy's four tokens, and something else on all others."""
    return torch.full_like(OWN, elsewhere).masked_scatter(OWN.bool(), torch.tensor(values))


@pytest.mark.parametrize("elsewhere", [math.nan, 1e6])
def test_gae_neither_decays_nor_accumulates_across_them(game, elsewhere):
    """Reward 0.75 at the end, gamma 0.9, lambda 0.5, values 0.1 to 0.4. By hand, from the last token back:

    deltas      0.35 = 0.75 - 0.4    0.06 = 0.9 * 0.4 - 0.3    0.07 = 0.9 * 0.3 - 0.2    0.08 = 0.9 * 0.2 - 0.1
    advantages  0.35   0.06 + 0.45 * 0.35 = 0.2175   0.07 + 0.45 * 0.2175 = 0.167875   0.08 + 0.45 * 0.167875

    With the nine tokens counted the first turn's advantages would be about 0.45 ** 9 of that.
    """
    ppo = algorithm("ppo", advantage={"kind": "gae", "gamma": 0.9, "lam": 0.5, "whiten": False}, kl={"coefficient": 0})
    batch = token_batch([game], torch.tensor([True]))
    batch = replace(batch, values_N=on_all([0.1, 0.2, 0.3, 0.4], elsewhere).numpy())
    batch, _ = with_signal(batch, [game], scored([game]), ppo, 0.0)
    advantages = [0.15554375, 0.167875, 0.2175, 0.35]
    torch.testing.assert_close(torch.from_numpy(batch.advantages_N), on_all(advantages, 0.0))
    returns = [a + v for a, v in zip(advantages, [0.1, 0.2, 0.3, 0.4], strict=True)]
    torch.testing.assert_close(torch.from_numpy(batch.returns_N), on_all(returns, 0.0))


def test_a_kl_in_the_reward_is_that_of_the_policys_tokens(game):
    """k1 = old - reference = 0.1 per token of its own, at a coefficient of 0.5: what is left of 0.75 from each on."""
    kl = {"placement": "reward", "coefficient": 0.5, "estimator": "k1"}
    batch = token_batch([game], torch.tensor([True]))
    batch = replace(
        batch,
        old_logprobs_N=on_all([-1.0] * 4, 1e6).numpy(),
        reference_logprobs_N=on_all([-1.1] * 4, -1e6).numpy(),
    )
    batch, _ = with_signal(
        batch, [game], scored([game]), algorithm("grpo", advantage={"kind": "return", "whiten": False}, kl=kl), 0.5
    )
    torch.testing.assert_close(torch.from_numpy(batch.advantages_N), on_all([0.55, 0.6, 0.65, 0.7], 0.0))


@pytest.mark.parametrize("elsewhere", [0.0, math.nan, -1e6])
def test_loss_kl_and_gradient_are_those_of_the_policys_tokens(game, elsewhere):
    """-A at ratio 1, and 0.5 * k2 = 0.5 * 0.1 ** 2 / 2 to the reference, in the mean over four tokens; of the others
    neither value nor gradient."""
    subject = algorithm("grpo", kl={"placement": "loss", "coefficient": 0.5, "estimator": "k2"})
    mask = torch.from_numpy(token_batch([game], torch.tensor([True])).mask_N)
    assert torch.equal(mask, OWN)
    logprobs = on_all([-1.0] * 4, elsewhere)[None].requires_grad_()
    loss, sums = subject.loss(
        logprobs_BT=logprobs,
        behaviour_logprobs_BT=on_all([-1.0] * 4, elsewhere)[None],
        advantages_BT=on_all([2.0] * 4, elsewhere)[None],
        mask_BT=mask[None],
        weights_BT=weights_of(subject, mask[None]),
        kl_coefficient=0.5,
        reference_logprobs_BT=on_all([-1.1] * 4, -elsewhere)[None],
    )
    loss.backward()
    assert loss.item() == pytest.approx(-2.0 + 0.5 * 0.005, abs=1e-6)
    assert sums["reference_kl"].item() == pytest.approx(4 * 0.005, abs=1e-6)
    torch.testing.assert_close(logprobs.grad[0], on_all([(-2.0 + 0.5 * 0.1) / 4] * 4, 0.0))


class SaysAb:
    def reset(self, columns, seed):
        return None

    def step(self, state, response):
        return Reply("ab") if response.text.endswith("a") else End(1.0)

    def start(self): ...
    def ready(self): ...
    def close(self): ...


def merging():
    """A tokenizer that has `ab` as one token."""
    vocabulary = {"<e>": 0, "a": 1, "b": 2, "ab": 3}
    plain = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<e>")


def test_turns_are_appended_by_token_where_tokenising_again_would_merge_them():
    """The policy spells `ab` in two tokens, which a tokenizer never does, and the environment says it in one."""
    tokenizer, prompt = merging(), Prompt("p", np.array([2], np.int32), "b", {})
    group = episode(tokenizer, SaysAb(), prompt, [[1, 2, 1, 0], [2, 0]], 0, chat=False)
    [trajectory] = group.trajectories
    assert trajectory.response_tokens.tolist() == [1, 2, 1, 0, 3, 2, 0]
    assert trajectory.response_mask.tolist() == [1, 1, 1, 1, 0, 1, 1]
    assert tokenizer(tokenizer.decode(trajectory.response_tokens))["input_ids"] == [3, 1, 0, 3, 2, 0]
