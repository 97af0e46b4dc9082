"""Several turns through real vLLM: what is said hangs on the seeds, and its log-probabilities are the model's own."""

from functools import partial

import numpy as np
import pytest
import tiny_models
from tiny_models import END

from rlpipe.data.flow import GroupRequest, Prompt, Sampling
from rlpipe.models.scratch import build_tokenizer
from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.environments import End, Reply
from rlpipe.rollout.environments.stage import EnvironmentStage
from rlpipe.rollout.episodes import EpisodeLimits, Episodes
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.turn_marks import TurnMarks
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.local import LocalHandle

pytestmark = pytest.mark.integration

STOPS = tuple(range(6, 60))
"""A fifth of all tokens, so that turns end early, and seldom with the template's own mark."""


class ThreeTurns:
    """Says something longer than a block of the key-value cache, twice."""

    def reset(self, columns, seed):
        return []

    def step(self, state, response):
        state.append(response.tokens)
        return End(1.0) if len(state) == 3 else Reply("go on, " * 8)

    def start(self): ...
    def ready(self): ...
    def close(self): ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def request(number: int) -> GroupRequest:
    tokens = np.arange(70 + number, 90 + number, dtype=np.int32)
    return GroupRequest(f"g{number}", "p", tokens, (number, 50 + number, 90 + number), Sampling(12, 1.0, STOPS))


def answered(subject: Episodes, requests: list[GroupRequest]) -> dict[str, tuple]:
    subject.submit("policy", requests)
    found: dict[str, tuple] = {}
    while len(found) < len(requests):
        found |= {group[0].group_id: group for group in subject.finished(5.0)}
    return found


@pytest.fixture(scope="module")
def engine(folder):
    worker = RolloutWorker(
        EngineSpec("vllm", str(folder), "float32", (END,), version=0, max_num_seqs=8, kv_cache_gib=0.05)
    )
    yield worker
    worker.close()  # tests of training follow in this process, and take its process group down


def test_alone_and_in_company_the_same_is_said(folder, engine):
    pool = EnginePool({"policy": [LocalHandle("policy[0]", engine)]}, Deadlines(), max_restarts=0)
    tokenizer = build_tokenizer()
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    prompts = {"p": Prompt("p", np.array([7], np.int32), "?")}
    with EnvironmentStage(ThreeTurns(), threads=2, seconds=5.0) as stage:
        subject = Episodes(pool, stage, prompts, TurnMarks(tokenizer, True), decode, EpisodeLimits(5, 256))
        together = answered(subject, [request(i) for i in range(5)])
        alone: dict[str, tuple] = {}
        for i in range(5):
            alone |= answered(subject, [request(i)])
    model = tiny_models.load(folder)
    for group_id, group in together.items():
        for t, other in zip(group, alone[group_id], strict=True):
            assert t.response_tokens.tolist() == other.response_tokens.tolist()
            forced = tiny_models.teacher_forced(model, t.prompt_tokens, t.response_tokens)
            np.testing.assert_allclose(t.behaviour_logprobs, forced * t.response_mask, atol=2e-5)
    assert {len(t.episode.starts) for group in together.values() for t in group} >= {3}
