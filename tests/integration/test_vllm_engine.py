"""vLLM's engine against plain forwards of the same weights, and the proof of publishes against engines that fail."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import END, request, teacher_forced

from rlpipe.data.flow import FinishReason, Trajectory, VersionSpan
from rlpipe.rollout import vllm_workers
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.vllm_engine import VllmEngine
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import WeightsRejected
from rlpipe.weights.probes import choose_probes
from rlpipe.weights.verify import Verifier, WeightSyncError

pytestmark = pytest.mark.integration
PROBES = choose_probes([request(0).prompt_tokens, request(1).prompt_tokens], tiny_models.VOCABULARY, longest=128)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return tiny_models.load(folder)


@pytest.fixture(scope="module")
def shared(folder):
    return start(folder)


@pytest.fixture
def engine(shared, model):
    """The one engine of this module, serving the folder's weights as version 0."""
    shared.publish(0, pack(model.named_parameters()))
    return shared


def start(folder, **settings) -> VllmEngine:
    defaults = {"dtype": "float32", "eos_token_ids": (END,), "version": 0, "max_num_seqs": 16, "kv_cache_gib": 0.05}
    return VllmEngine(EngineSpec("vllm", str(folder), **{**defaults, **settings}))


def drain(engine: VllmEngine) -> dict[tuple[str, int], Trajectory]:
    finished = []
    while engine.health().outstanding:
        finished += engine.step()
    return {(t.group_id, t.sample_index): t for t in finished}


def check(verifier: Verifier, engine: VllmEngine, weights, version: int):
    """What a run does after every step: publish, and compare what the engine answers with what the trainer does."""
    payload = pack(weights.named_parameters())
    receipt = engine.publish(version, payload)
    expected = [teacher_forced(weights, tokens[:1], tokens[1:]) for tokens in PROBES]
    return verifier.check("rollout[0]", version, payload.digest, receipt.digest, expected, engine.probe(PROBES))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(engine, model, temperature):
    engine.submit([request(i, prompt_length=5 + 20 * i, temperature=temperature) for i in range(4)])
    for t in drain(engine).values():
        expected = teacher_forced(model, t.prompt_tokens, t.response_tokens, temperature)
        np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=1e-5)


def test_greedy_is_the_likeliest_token(engine, model):
    engine.submit([request(i, samples=1, temperature=0.0) for i in range(3)])
    for t in drain(engine).values():
        ids = torch.from_numpy(t.prompt_tokens.astype(np.int64))[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert t.response_tokens.tolist() == expected[0, ids.shape[1] :].tolist()
        np.testing.assert_allclose(
            t.behaviour_logprobs, teacher_forced(model, t.prompt_tokens, t.response_tokens), atol=1e-5
        )


def test_a_sample_depends_on_its_own_seed_only(engine):
    """Alone, and among more groups than the engine has places for."""
    alone = {}
    for i in range(5):
        engine.submit([request(i, prompt_length=4 + 9 * i)])
        alone |= drain(engine)
    engine.submit([request(i, prompt_length=4 + 9 * i) for i in range(5)])
    together = drain(engine)
    assert alone.keys() == together.keys()
    assert all(together[key].response_tokens.tolist() == alone[key].response_tokens.tolist() for key in alone)
    assert len({tuple(t.response_tokens) for t in alone.values()}) > 15


def test_stop_tokens_end_a_response_and_belong_to_it(engine):
    stops = tuple(range(2, 80))
    engine.submit([request(0, samples=16, max_new_tokens=30, stop_token_ids=stops)])
    finished = drain(engine).values()
    for t in finished:
        *body, last = t.response_tokens.tolist()
        assert not {*stops, END} & set(body)
        assert t.finish_reason == (FinishReason.STOP if last in (*stops, END) else FinishReason.LENGTH)
        assert len(t.behaviour_logprobs) == len(t.response_tokens)
    assert FinishReason.STOP in {t.finish_reason for t in finished}


def test_every_publish_arrives(engine, model, folder):
    verifier = Verifier(tolerance=1e-3)
    for version in range(1, 5):
        weights = tiny_models.scramble(tiny_models.load(folder), seed=version)
        assert check(verifier, engine, weights, version).largest_difference < 2e-5


def test_publish_amid_a_response_is_a_boundary_in_its_versions(engine, model, folder):
    """Before the boundary exactly the old policy, after it exactly the new one; waiting requests see only the new."""
    other = tiny_models.scramble(tiny_models.load(folder), seed=5)
    engine.submit([request(i, prompt_length=6 + 30 * i, max_new_tokens=14) for i in range(5)])
    finished = [t for _ in range(6) for t in engine.step()]
    engine.publish(3, pack(other.named_parameters()))
    probed = engine.probe(PROBES)  # while requests run and wait
    late = drain(engine).values()
    assert late and all(t.versions == (VersionSpan(0, 0),) for t in finished)
    starts = {t.versions for t in late}
    assert starts == {(VersionSpan(0, 0), VersionSpan(6, 3)), (VersionSpan(0, 3),)}
    for t in late:
        boundary = t.versions[-1].first_token
        old = teacher_forced(model, t.prompt_tokens, t.response_tokens)
        new = teacher_forced(other, t.prompt_tokens, t.response_tokens)
        expected = np.concatenate([old[:boundary], new[boundary:]])
        np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=2e-5)
    for tokens, answer in zip(PROBES, probed, strict=True):
        np.testing.assert_allclose(answer, teacher_forced(other, tokens[:1], tokens[1:]), atol=2e-5)


def test_a_publish_of_the_same_weights_changes_no_token(engine, model):
    engine.submit([request(i) for i in range(4)])
    undisturbed = drain(engine)
    engine.submit([request(i) for i in range(4)])
    finished = [t for _ in range(4) for t in engine.step()]
    engine.publish(1, pack(model.named_parameters()))
    for t in [*finished, *drain(engine).values()]:
        assert t.response_tokens.tolist() == undisturbed[t.group_id, t.sample_index].response_tokens.tolist()


def test_an_engine_that_keeps_its_old_output_head_is_caught(engine, folder, model, monkeypatch):
    """vLLM's own fault with tied embeddings on CPU: the bytes arrive, the head goes on with what it packed before."""
    monkeypatch.setattr(vllm_workers, "repack_embeddings", lambda worker: None)
    weights = tiny_models.scramble(tiny_models.load(folder), seed=8)
    if model.config.tie_word_embeddings:
        with pytest.raises(WeightSyncError, match=r"differ from the trainer's by .* nats"):
            check(Verifier(tolerance=1e-3), engine, weights, version=9)
    else:
        assert check(Verifier(tolerance=1e-3), engine, weights, version=9).passed


def test_an_engine_that_does_not_apply_what_it_received_is_caught(engine, folder, model, monkeypatch):
    verifier = Verifier(tolerance=1e-3)
    check(verifier, engine, model, version=1)
    monkeypatch.setattr(engine._core, "load_weights", lambda tensors: None)
    weights = tiny_models.scramble(tiny_models.load(folder), seed=8)
    with pytest.raises(WeightSyncError, match=r"rollout\[0\], weight version 2: .*The bytes arrived"):
        check(verifier, engine, weights, version=2)


def test_a_stale_engine_is_caught_below_the_tolerance(engine, folder, model, monkeypatch):
    """A step so small that old weights still answer within the tolerance."""
    verifier = Verifier(tolerance=1e-3)
    check(verifier, engine, model, version=1)
    monkeypatch.setattr(engine._core, "load_weights", lambda tensors: None)
    weights = tiny_models.load(folder)
    with torch.no_grad():
        weights.model.norm.weight.mul_(1.0 + 2e-4)
    with pytest.raises(WeightSyncError, match="exactly those of the version before"):
        check(verifier, engine, weights, version=2)


def test_aborted_groups_are_never_handed_over(engine):
    engine.submit([request(i, max_new_tokens=20) for i in range(6)])
    early = [t for _ in range(3) for t in engine.step()]
    engine.abort(["g1", "g5"])
    groups = {t.group_id for t in early} | {group for group, _ in drain(engine)}
    assert groups == {"g0", "g2", "g3", "g4"}


def test_requests_that_cannot_be_served_are_refused_by_name(engine):
    with pytest.raises(ValueError, match=r"group g0 .* exceed the engine's max_model_len 256"):
        engine.submit([request(0, max_new_tokens=300)])
    with pytest.raises(ValueError, match=r"group g0: vLLM cannot sample at temperature 0\.001"):
        engine.submit([request(0, temperature=0.001)])
    with pytest.raises(ValueError, match="has token 999, the model knows 0 to 261"):
        engine.probe([np.array([1, 999], np.int32)])
    assert engine.health().outstanding == 0


def test_too_little_memory_is_explained_in_the_recipes_terms(folder):
    with pytest.raises(ValueError, match=r"rollout\.kv_cache_gib"):
        start(folder, kv_cache_gib=1e-5)


def test_payloads_that_do_not_fit_are_refused(engine, model):
    some = dict(model.named_parameters())
    some.pop("model.norm.weight")
    with pytest.raises(WeightsRejected, match=r"missing model\.norm\.weight"):
        engine.publish(1, pack(some.items()))
    assert engine.health().version == 0


def test_no_key_or_value_of_old_weights_is_used_again(engine, folder):
    """The same prompt, long enough to be in the prefix cache, before and after a publish."""
    long = request(0, prompt_length=100, max_new_tokens=4)
    for version in (1, 2, 3):
        weights = tiny_models.scramble(tiny_models.load(folder), seed=version)
        engine.publish(version, pack(weights.named_parameters()))
        engine.submit([long])
        for t in drain(engine).values():
            expected = teacher_forced(weights, t.prompt_tokens, t.response_tokens)
            np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=2e-5)


def test_starting_an_engine_leaves_its_process_as_it_was(folder):
    before = torch.set_num_threads, torch.get_num_threads(), dict(os.environ)
    torch.manual_seed(7)
    np.random.seed(7)
    start(folder)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert np.random.rand() == np.random.RandomState(7).rand()
    assert " bind:" not in Path("/proc/self/numa_maps").read_text()
    added = os.environ.keys() - before[2].keys()
    assert (torch.set_num_threads, torch.get_num_threads()) == before[:2]
    assert all(name.startswith("VLLM_") for name in added)


def test_an_engine_without_adapters_says_what_to_do(engine):
    with pytest.raises(WeightsRejected, match="start it with lora_rank"):
        engine.publish(1, pack([], adapter_config={"r": 8}))
