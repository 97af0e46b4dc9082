"""Log-probabilities of answers, asked of several engines."""

from types import SimpleNamespace

import numpy as np
import pytest
from sample_groups import make_group

from rlpipe.pipelines.evaluating import probing
from rlpipe.runtime.local import LocalHandle

MODEL = SimpleNamespace(
    recipe=SimpleNamespace(rollout=SimpleNamespace(max_model_len=None), deadlines=SimpleNamespace(rollout=9.0)),
    model_length=32,
)
GROUPS = [make_group(["a", "b"]), make_group(["c"]), make_group(["d", "e"])]
"""Prompts and responses have two tokens each; the last one is 7 plus the sample's number."""


class Engine:
    """Says of each token its number, negative; counts the calls to it that nobody has waited for."""

    waiting = most = 0

    def probe(self, sequences):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return [-tokens[1:].astype(np.float32) for tokens in sequences]


@pytest.fixture
def engines(monkeypatch):
    found = [LocalHandle(f"engine[{i}]", Engine()) for i in range(2)]
    own = probing.results

    def waited(calls):
        for handle in found:
            handle._role.waiting = 0
        return own(calls)

    monkeypatch.setattr(probing, "results", waited)
    monkeypatch.setattr(probing, "POSITIONS", 4)  # one sequence a call
    return found


def test_no_call_waits_behind_another_so_that_a_deadline_is_one_call_s(engines):
    told = []
    found = probing.logprobs(MODEL, engines, GROUPS, told.append)
    assert [[row.tolist() for row in samples] for samples in found] == [
        [[-7.0, -8.0], [-7.0, -9.0]], [[-7.0, -8.0]], [[-7.0, -8.0], [-7.0, -9.0]],
    ]  # fmt: skip
    assert [handle._role.most for handle in engines] == [1, 1]
    assert told == ["2/5", "4/5", "5/5"]


def test_a_shorter_context_leaves_out_the_end(engines):
    short = SimpleNamespace(recipe=MODEL.recipe, model_length=4)
    [first, *_] = probing.logprobs(short, engines, GROUPS)
    assert [row.tolist() for row in first] == [[-7.0], [-7.0]]
