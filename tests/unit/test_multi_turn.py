"""Sampling and evaluation of several turns, from prompts to Parquet."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from fake_engine import FakeEngine, pool_of

from rlpipe.data.chat import render_prompts
from rlpipe.data.cursor import PromptCursor
from rlpipe.data.flow import Sampling
from rlpipe.data.source import load_records
from rlpipe.data.storage import Storage
from rlpipe.ledger.ledger import Ledger
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines import episodes
from rlpipe.pipelines.answers import Answers
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.recipe.algorithm import Schedule
from rlpipe.recipe.data import GuessNumberData
from rlpipe.recipe.environment import GuessNumber, SingleTurn
from rlpipe.recipe.rewards import EnvironmentReward, RewardMix
from rlpipe.recipe.rollout import Evaluation, Rollout
from rlpipe.recipe.run import Deadlines, Run
from rlpipe.rewards import stage as rewards

END, ASSISTANT = 1, 4
TOKENIZER = build_tokenizer()
REWARDS = RewardMix(mix=[EnvironmentReward(kind="environment", name="game")])


def bisects(request, sample):
    """Plays as it should, and ends each of its turns."""
    low, high = 0, 9
    said = TOKENIZER.decode(request.prompt_tokens, skip_special_tokens=False).split("<|assistant|>")[1:-1]
    for turn in said:
        guess, answer = turn.replace("<|end|>", " ").replace("<|user|>", " ").split()
        low, high = (int(guess) + 1, high) if answer == "higher" else (low, int(guess) - 1)
    return [*TOKENIZER(str((low + high) // 2))["input_ids"], END]


@pytest.fixture(params=[True, False], ids=["debug", "threads"])
def stage(request):
    records = load_records(GuessNumberData(kind="guess_number", largest=9, games=6, heldout=10), only_prompts=True)
    return SimpleNamespace(
        recipe=SimpleNamespace(
            environment=GuessNumber(kind="guess_number", max_turns=4, discount=0.1),
            rollout=Rollout(max_new_tokens=4),
            deadlines=Deadlines(),
            rewards=REWARDS,
            evaluation=Evaluation(correct_at=0.1, show=10),
            seed=0,
        ),
        records=records,
        prompts=render_prompts(records, TOKENIZER),
        tokenizer=TOKENIZER,
        model_length=256,
        stop_token_ids=(END,),
        events=SimpleNamespace(progress=lambda text: None),
        debug=request.param,
    )


def test_evaluation_plays_whole_games(stage):
    with (
        episodes.environment_of(stage) as environment,
        rewards.build(REWARDS, ".", Deadlines(), stage.debug) as scoring,
    ):
        rollouts = episodes.over(pool_of(FakeEngine(bisects, {END}, 3)), environment, stage)
        found = Evaluator(stage, stage.prompts[1]).run(Answers("policy", rollouts, scoring, TOKENIZER))
    assert found.metrics["accuracy"] == found.metrics["pass@1"] == 1.0
    # Of 0 to 9, bisection finds 4 at once, 1 and 7 next, then 0, 2, 5, 8, and 3, 6, 9 at last.
    assert found.metrics["turns"] == pytest.approx((1 + 2 * 2 + 4 * 3 + 3 * 4) / 10)
    assert found.metrics["reward"] == pytest.approx((1.0 + 2 * 0.9 + 4 * 0.8 + 3 * 0.7) / 10)
    assert found.metrics["length"] == pytest.approx(2 * found.metrics["turns"])  # of its own tokens
    shown = {sample["columns"]["answer"]: sample["completion"] for sample in found.samples}
    assert shown["0"] == "4\n[user: lower]\n1\n[user: lower]\n0"


def test_sampling_fills_the_ledger_and_the_rollouts(stage, tmp_path):
    ledger = Ledger(Storage(tmp_path), PromptCursor(stage.prompts[0], 0), ["game"], lease_seconds=60.0)
    with (
        episodes.environment_of(stage) as environment,
        rewards.build(REWARDS, ".", Deadlines(), stage.debug) as scoring,
    ):
        engines = [FakeEngine(bisects, {END}), FakeEngine(bisects, {END})]
        rollouts = episodes.over(pool_of(*engines), environment, stage)
        sampler = sampler_of(ledger, rollouts, scoring, prompts=3)
        sampler.generate(3)
        groups = sampler.scored(3, step=1)
        ledger.commit(1)
    served = [{request.group_id.split("/s")[0] for request in engine.requests} for engine in engines]
    assert len(served[0]) + len(served[1]) == 3 and all(served), "a group's turns are all of one engine"
    assert list(map(plain, ledger.committed(1)[0])) == list(map(plain, groups)), "what is stored is what was sampled"
    frame = pandas.read_parquet(tmp_path / "rollouts")
    assert len(frame) == 6 and (frame["reward"] == frame["reward/game"]).all()
    for _, row in frame.iterrows():
        turns = [f"{turn['role']} {turn['text']}" for turn in row["turns"]]
        assert turns[0] == "assistant 4" and turns[-1] == f"assistant {row['completion']}"
        own = row["response_tokens"][row["response_mask"] == 1]
        said = [turn["text"] for turn in row["turns"] if turn["role"] == "assistant"]
        assert TOKENIZER.decode(own) == "".join(f"{text}<|end|>" for text in said)
    metrics = sample_metrics(groups, [])
    assert metrics["turns"] == frame["turns"].map(lambda turns: (len(turns) + 1) / 2).mean()
    assert metrics["response_length"] == np.mean([mask.sum() for mask in frame["response_mask"]])


def sampler_of(ledger, rollouts, scoring, prompts):
    """Two responses each to so many prompts a step."""
    admission = Admission(Schedule(steps=1, prompts_per_step=prompts), Run())
    answers = Answers("policy", rollouts, scoring, TOKENIZER)
    return Sampler(ledger, admission, answers, scoring, Sampling(4, 1.0, ()), group_size=2, seed=0)


def plain(group):
    """A group for comparison: arrays as lists with their type, and the prompt by its id."""
    listed = lambda value: (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value  # noqa: E731
    trajectories = [[listed(getattr(t, f.name)) for f in fields(t)] for t in group.trajectories]
    return [trajectories, *(getattr(group, f.name) for f in fields(group) if f.name not in ("trajectories", "prompt"))]


def test_a_single_turn_is_the_pool_itself(stage):
    stage.recipe.environment = SingleTurn(kind="single_turn")
    pool = pool_of(FakeEngine(bisects, {END}))
    with episodes.environment_of(stage) as environment:
        assert episodes.over(pool, environment, stage) is pool
    assert episodes.longest_episode(stage) == Deadlines().rollout


def test_a_row_without_the_number_fails_and_is_reported_as_the_environments_fault(stage, tmp_path):
    for prompt in stage.prompts[0]:
        prompt.columns.clear()
    ledger = Ledger(Storage(tmp_path), PromptCursor(stage.prompts[0], 0), ["game"], lease_seconds=60.0)
    with (
        episodes.environment_of(stage) as environment,
        rewards.build(REWARDS, ".", Deadlines(), stage.debug) as scoring,
    ):
        rollouts = episodes.over(pool_of(FakeEngine(bisects, {END})), environment, stage)
        sampler = sampler_of(ledger, rollouts, scoring, prompts=2)
        sampler.generate(2)
        with pytest.raises(rewards.RewardFailed, match="4 x environment: exception"):
            sampler.scored(2, step=1)
    assert (ledger.counts()["completed"], ledger.counts()["pending"]) == (0, 2), "whoever goes on asks them again"
