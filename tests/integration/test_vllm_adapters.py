"""vLLM engines that serve adapters on fixed weights."""

import numpy as np
import pytest
import tiny_models
from peft import LoraConfig, get_peft_model
from tiny_models import END, adapter_payload, request, teacher_forced

from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.vllm_engine import VllmEngine
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import WeightsRejected
from rlpipe.weights.probes import choose_probes

pytestmark = pytest.mark.integration
PROBES = choose_probes([request(0).prompt_tokens], tiny_models.VOCABULARY, longest=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder):
    spec = EngineSpec("vllm", str(folder), "float32", (END,), 0, max_num_seqs=16, kv_cache_gib=0.05, lora_rank=5)
    engine = VllmEngine(spec)
    yield engine
    engine.close()  # tests of training follow in this process, and take its process group down


@pytest.fixture
def adapted(folder):
    config = LoraConfig(r=5, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(tiny_models.load(folder), config)


def test_it_serves_nothing_before_its_first_adapter(engine, folder):
    with pytest.raises(NotCurrent):
        engine.submit([request(0)])
    with pytest.raises(WeightsRejected, match="start it without lora_rank"):
        engine.publish(1, pack(tiny_models.load(folder).named_parameters()))


def test_every_adapter_arrives_also_in_running_requests(engine, adapted, tmp_path):
    for version in (1, 2, 3):
        sent = adapter_payload(adapted, version, tmp_path)
        assert engine.publish(version, sent).digest == sent.digest
        if version == 1:
            engine.submit([request(i, prompt_length=40) for i in range(6)])
        engine.step()
        for tokens, answer in zip(PROBES, engine.probe(PROBES), strict=True):
            np.testing.assert_allclose(answer, teacher_forced(adapted, tokens[:1], tokens[1:]), atol=5e-5)
    while engine.health().outstanding:
        for t in engine.step():
            first = t.versions[-1].first_token
            expected = teacher_forced(adapted, t.prompt_tokens, t.response_tokens)
            np.testing.assert_allclose(t.behaviour_logprobs[first:], expected[first:], atol=5e-5)
            assert t.versions[-1].version == 3
