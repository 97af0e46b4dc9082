"""Held-out evaluation, with an engine and a reward that answer at once."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure, Prompt, Score
from rlpipe.pipelines.answers import Answers
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.rollout import Evaluation, Rollout

PROMPTS = [Prompt(f"p{i}", np.array([1, i], np.int32), f"{i}+{i}=") for i in range(3)]


class Engines:
    """Hands over one group per look."""

    def submit(self, model, requests):
        self.requests = list(requests)

    def asked(self):
        return {request.group_id for request in self.requests}

    def abort(self, group_ids):
        assert not group_ids, "everything was answered"

    def finished(self, seconds, also):
        request = self.requests.pop(0)
        return [make_group(["4"] * len(request.seeds), group_id=request.group_id).trajectories]


class Rewards:
    outstanding = 0

    def __init__(self, outcome):
        self._outcome, self._groups = outcome, []

    def submit(self, group):
        self._groups.append(replace(group, outcomes=tuple(self._outcome for _ in group.trajectories)))

    def finished(self, seconds):
        groups, self._groups = self._groups, []
        return groups

    def work_off(self):
        pass


def evaluated(outcome, **settings):
    told = []
    stage = SimpleNamespace(
        recipe=SimpleNamespace(evaluation=Evaluation(**settings), rollout=Rollout(), rewards=None, seed=0),
        events=SimpleNamespace(progress=told.append),
        tokenizer=SimpleNamespace(batch_decode=lambda rows, **_: ["4"] * len(rows)),
        stop_token_ids=(1,),
    )
    answers = Answers("policy", Engines(), Rewards(outcome), stage.tokenizer)
    return Evaluator(stage, PROMPTS).run(answers), told


def test_every_prompt_is_answered_greedily_and_sampled_and_progress_is_told():
    found, told = evaluated(Score(1.0, {}), prompts=2, show=1)
    assert found.metrics == {
        "reward": 1.0, "failures": 0.0, "length": 2.0, "accuracy": 1.0, "pass@1": 1.0, "pass@4": 1.0,
    }  # fmt: skip
    assert [(sample["prompt"], sample["reward"]) for sample in found.samples] == [("0+0=", 1.0)]
    assert told == ["1/2, greedy", "2/2, greedy", "1/2, sampled", "2/2, sampled"]


def test_where_every_reward_failed_there_is_no_accuracy_but_a_count():
    found, _ = evaluated(Failure("error", "by design"))
    assert found.metrics["failures"] == 3.0
    assert all(math.isnan(found.metrics[name]) for name in ("reward", "accuracy", "pass@1", "pass@4"))


def test_one_reward_of_a_mix_may_say_what_is_right_and_each_is_told():
    learned = Score(-3.5, {"model": -3.5, "exact": 1.0})
    found, _ = evaluated(learned, correct_by="exact", pass_at=[1])
    assert found.metrics == {
        "reward": -3.5, "reward/model": -3.5, "reward/exact": 1.0, "failures": 0.0, "length": 2.0, "accuracy": 1.0,
        "pass@1": 1.0,
    }  # fmt: skip
    assert evaluated(learned, pass_at=[1])[0].metrics["accuracy"] == 0.0


def test_a_judge_that_is_not_in_the_mix_is_a_mistake_of_the_recipe():
    with pytest.raises(RecipeError, match=r"correct_by=exakt is no reward of the mix; its rewards are exact"):
        load("arithmetic/grpo", ["evaluation.correct_by=exakt"])
