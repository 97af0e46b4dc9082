"""Drawing prompts: each once per epoch, in an order of its own, resumable anywhere. And the seeds of samples."""

import json

import numpy as np
import pytest

from rlpipe.data.cursor import PromptCursor
from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError
from rlpipe.data.seeds import sample_seed


def prompts(count):
    return [Prompt(f"p{i}", np.array([i], dtype=np.int32), str(i)) for i in range(count)]


def ids(drawn):
    return [(epoch, prompt.prompt_id) for epoch, prompt in drawn]


def test_order_is_this_one():
    assert ids(PromptCursor(prompts(4), seed=0).draw(8)) == [
        (0, "p0"), (0, "p2"), (0, "p3"), (0, "p1"),
        (1, "p3"), (1, "p2"), (1, "p0"), (1, "p1"),
    ]  # fmt: skip


@pytest.mark.parametrize("step", [1, 3, 7, 20])
def test_every_prompt_exactly_once_per_epoch_whatever_the_step(step):
    cursor = PromptCursor(prompts(10), seed=3)
    drawn = [pair for _ in range(40) for pair in ids(cursor.draw(step))]
    for epoch in range(len(drawn) // 10):
        part = drawn[10 * epoch : 10 * epoch + 10]
        assert {e for e, _ in part} == {epoch}
        assert len({p for _, p in part}) == 10


@pytest.mark.parametrize("before", range(0, 25, 3))
def test_resumed_draws_equal_uninterrupted_ones(before):
    whole = ids(PromptCursor(prompts(10), seed=3).draw(40))
    first = PromptCursor(prompts(10), seed=3)
    first.draw(before)
    state = json.loads(json.dumps(first.state()))
    second = PromptCursor(prompts(10), seed=3)
    second.load(state)
    assert ids(second.draw(40 - before)) == whole[before:]


def test_seed_and_epoch_decide_the_order():
    orders = {tuple(p for _, p in ids(PromptCursor(prompts(20), seed=seed).draw(20))) for seed in range(5)}
    cursor = PromptCursor(prompts(20), seed=0)
    orders |= {tuple(p for _, p in ids(cursor.draw(20))) for _ in range(5)}
    assert len(orders) == 9  # seed 0, epoch 0 is in both


@pytest.mark.parametrize("other", [PromptCursor(prompts(9), seed=3), PromptCursor(prompts(10), seed=4)])
def test_a_state_of_other_prompts_or_another_seed_is_refused(other):
    with pytest.raises(DataError, match="not those of the checkpoint"):
        other.load(PromptCursor(prompts(10), seed=3).state())


def test_no_prompts_is_an_error():
    with pytest.raises(DataError, match="no training prompts"):
        PromptCursor([], seed=0)


def test_sample_seeds_are_these():
    assert sample_seed(0, "train-0-771f7134", 0, 0) == 6613681512981212421
    assert sample_seed(0, "train-0-771f7134", 0, 1) == 1475056051728506052
    assert sample_seed(7, "train-0-771f7134", 2, 3) == 2095412324546477483


def test_sample_seeds_differ_and_fit_a_signed_64_bit_integer():
    seeds = {sample_seed(r, f"p{p}", e, i) for r in range(3) for p in range(20) for e in range(3) for i in range(8)}
    assert len(seeds) == 3 * 20 * 3 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
