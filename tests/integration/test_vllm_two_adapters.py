"""What docs/serving.md promises: vLLM answers for several adapters of one base in one batch, each as PEFT does."""

import numpy as np
import pytest
import tiny_models
from peft import LoraConfig, get_peft_model
from tiny_models import adapter_payload, request, teacher_forced

from rlpipe.pipelines.export import export
from rlpipe.rollout.vllm_compat import prepare_environment, quiet_imports

pytestmark = pytest.mark.integration
RANKS = {"maths": 4, "stories": 5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """Each adapter on a base of its own, as PEFT has it, and the folder that `rlpipe export` made of it."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, rank) in enumerate(RANKS.items()):
        config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        made[name] = get_peft_model(tiny_models.load(base), config)
        adapter_payload(made[name], seed, folder / f"trained-{name}")
        export(str(folder / f"trained-{name}"), folder / name, None, adapter_only=True, force=False)
    return made, folder


def test_two_adapters_and_the_base_in_one_batch(base, adapted):
    prepare_environment()
    quiet_imports()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    models, folder = adapted
    llm = LLM(str(base), dtype="float32", enforce_eager=True, enable_lora=True, max_loras=2, max_lora_rank=8,
              max_num_seqs=8, kv_cache_memory_bytes=50 << 20, disable_log_stats=True)  # fmt: skip
    tokens = request(0, prompt_length=30).prompt_tokens
    asked = [None, *(LoRARequest(name, number, str(folder / name)) for number, name in enumerate(RANKS, 1))]
    outputs = llm.generate(
        [{"prompt_token_ids": tokens.tolist()}] * 3,
        SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True),
        lora_request=asked,
        use_tqdm=False,
    )
    answers = [output.outputs[0] for output in outputs]
    for answer, model in zip(answers, [tiny_models.load(base), *models.values()], strict=True):
        logprobs = [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]
        expected = teacher_forced(model, tokens, np.array(answer.token_ids))
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
