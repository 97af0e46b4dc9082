"""A judge on engines: its probabilities are the model's own."""

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoTokenizer

from rlpipe.data.flow import Failure
from rlpipe.rewards.fleet import Fleet
from rlpipe.rewards.judging.local import Local
from rlpipe.rewards.judging.question import Choice, Question
from rlpipe.rewards.reward import Allowance
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.local import LocalHandle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def fleet(folder):
    spec = EngineSpec("transformers", str(folder), "float32", (tiny_models.END,), version=0)
    return Fleet("judge", [[LocalHandle("judge 0", RolloutWorker(spec))]], None, 0)


def judge(folder, fleet, max_length=200, least_mass=0.0):
    return Local("tiny", fleet, AutoTokenizer.from_pretrained(folder), max_length, least_mass)


def question(text, options=("A", "B")):
    return Question(text, ({"role": "user", "content": text},), options, 0)


def by_hand(folder, text, option):
    """Log-probability of the option behind the question, from one forward pass of the model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), tiny_models.load(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    end = tokenizer.encode(option, add_special_tokens=False)
    with torch.no_grad():
        logprobs = model(torch.tensor([asked + end])).logits.log_softmax(-1)[0]
    return sum(float(logprobs[len(asked) + i - 1, token]) for i, token in enumerate(end))


def test_probabilities_are_those_of_the_model_also_of_options_of_several_tokens(folder, fleet):
    asked = [question("27+58: 85 or 75?"), question("Is it kind?", ("yes", "no", "maybe"))]
    found = judge(folder, fleet).ask(asked, Allowance(60))
    for one, choice in zip(asked, found, strict=True):
        exact = np.exp([by_hand(folder, one.messages[0]["content"], option) for option in one.options])
        assert choice.mass == pytest.approx(exact.sum(), rel=1e-4)
        assert choice.probabilities == pytest.approx(exact / exact.sum(), rel=1e-4)
        assert sum(choice.probabilities) == pytest.approx(1.0)


def test_a_judge_that_would_say_something_else_is_a_failure(folder, fleet):
    [mass] = [choice.mass for choice in judge(folder, fleet).ask([question("x")], Allowance(60))]
    assert isinstance(judge(folder, fleet, least_mass=mass * 0.9).ask([question("x")], Allowance(60))[0], Choice)
    [failure] = judge(folder, fleet, least_mass=mass * 1.1).ask([question("x")], Allowance(60))
    assert failure.kind == "outside_choice" and "A or B have a probability of" in failure.message


def test_a_question_that_is_too_long_fails_alone(folder, fleet):
    long = "z" * 60
    found = judge(folder, fleet, max_length=40).ask([question("a"), question(long), question("b")], Allowance(60))
    assert [type(answer) for answer in found] == [Choice, Failure, Choice]
    assert found[1].kind == "too_long" and "the judge takes 40 at most" in found[1].message
    alone = judge(folder, fleet).ask([question("a"), question("b")], Allowance(60))
    assert [found[0], found[2]] == alone, "and the others are answered as without it"


def test_nothing_is_asked_where_nothing_fits(folder, fleet):
    [failure] = judge(folder, fleet, max_length=3).ask([question("a")], Allowance(60))
    assert failure.kind == "too_long"
