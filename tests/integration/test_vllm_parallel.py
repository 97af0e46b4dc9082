"""An engine that is split over two processes, as over two GPUs: here both on the CPU."""

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import END, request, teacher_forced

from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.vllm_engine import VllmEngine
from rlpipe.weights.packing import pack

pytestmark = [pytest.mark.integration, pytest.mark.soak]

PROBES = [np.arange(6, 40, dtype=np.int32), np.arange(90, 120, dtype=np.int32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder):
    engine = VllmEngine(
        EngineSpec("vllm", str(folder), "float32", (END,), 0, max_num_seqs=16, kv_cache_gib=0.05, tensor_parallel=2)
    )
    yield engine
    engine.close()


def test_it_answers_with_the_weights_that_were_published_last(engine, folder):
    """Whatever they are cut into: small buckets, so that a layer comes in several."""
    model = tiny_models.load(folder)
    for version in range(3):
        payload = pack(model.named_parameters(), bucket_bytes=1 << 14)
        assert len(payload.buckets) > 4
        assert engine.publish(version, payload).digest == payload.digest
        for tokens, answered in zip(PROBES, engine.probe(PROBES), strict=True):
            with torch.no_grad():
                logits_TV = model(torch.from_numpy(tokens)[None].long()).logits[0]
            expected = logits_TV[:-1].log_softmax(-1).gather(-1, torch.from_numpy(tokens[1:]).long()[:, None])[:, 0]
            np.testing.assert_allclose(answered, expected.numpy(), atol=1e-4)
        tiny_models.scramble(model, seed=version + 1)


def test_what_it_samples_has_the_log_probabilities_it_says(engine, folder):
    model = tiny_models.load(folder)
    engine.publish(9, pack(model.named_parameters()))
    engine.submit([request(0)])
    finished = []
    while engine.health().outstanding:
        finished += engine.step()
    assert len(finished) == 4
    for trajectory in finished:
        with torch.no_grad():
            expected = teacher_forced(model, trajectory.prompt_tokens, trajectory.response_tokens)
        np.testing.assert_allclose(trajectory.behaviour_logprobs, expected, atol=1e-4)
