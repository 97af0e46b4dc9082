"""Prompts that leave no room for a whole response are left out, and told of."""

from types import SimpleNamespace

import numpy as np
import pytest

from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError
from rlpipe.pipelines.fitting import longest, that_fit
from rlpipe.recipe.rollout import Rollout

STAGE = SimpleNamespace(model_length=20)


def prompt(length):
    return Prompt(str(length), np.zeros(length, np.int32), "")


def test_a_prompt_may_have_what_the_longest_response_leaves(caplog):
    found = that_fit([prompt(12), prompt(13), prompt(1)], Rollout(max_new_tokens=8), STAGE)
    assert [len(one.tokens) for one in found] == [12, 1]
    assert "1 of 3 prompts are longer than 12 tokens" in caplog.text


def test_where_all_fit_nothing_is_said(caplog):
    assert len(that_fit([prompt(12)], Rollout(max_new_tokens=8), STAGE)) == 1 and caplog.text == ""
    assert that_fit([], Rollout(max_new_tokens=8), STAGE) == []


def test_where_none_fits_the_error_says_what_to_change():
    with pytest.raises(DataError, match=r"1 of 1 prompts .* Lower rollout.max_new_tokens"):
        that_fit([prompt(5)], Rollout(max_new_tokens=16), STAGE)


def test_the_smaller_of_the_recipe_s_and_the_model_s_limit_counts():
    limits = [Rollout(max_model_len=limit, max_new_tokens=8) for limit in (None, 18, 64)]
    assert [longest(rollout, STAGE) for rollout in limits] == [20, 18, 20]
