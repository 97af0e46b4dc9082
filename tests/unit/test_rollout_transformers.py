"""The reference engine against plain forwards of the same model."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import END, request, teacher_forced
from transformers import AutoTokenizer

from rlpipe.data.flow import FinishReason, GroupRequest, Sampling, Trajectory, VersionSpan
from rlpipe.rollout import transformers_engine
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Payload, WeightsRejected


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return tiny_models.load(folder)


def spec(folder: Path, **settings) -> EngineSpec:
    defaults = {"dtype": "float32", "eos_token_ids": (END,), "version": 0}
    return EngineSpec("transformers", str(folder), **{**defaults, **settings})


@pytest.fixture
def engine(folder):
    return TransformersEngine(spec(folder, max_num_seqs=64))


def drain(engine: TransformersEngine) -> dict[tuple[str, int], Trajectory]:
    finished = []
    while engine.health().outstanding:
        finished += engine.step()
    return {(t.group_id, t.sample_index): t for t in finished}


def tokens_of(trajectories: dict[tuple[str, int], Trajectory]) -> dict[tuple[str, int], list[int]]:
    return {key: t.response_tokens.tolist() for key, t in trajectories.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(engine, model, temperature):
    engine.submit([request(i, prompt_length=5 + 3 * i, temperature=temperature) for i in range(4)])
    for t in drain(engine).values():
        expected = teacher_forced(model, t.prompt_tokens, t.response_tokens, temperature)
        np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=1e-5)


def test_greedy_equals_generate(engine, model):
    engine.submit([request(i, samples=1, max_new_tokens=20, temperature=0.0) for i in range(3)])
    for t in drain(engine).values():
        ids = torch.from_numpy(t.prompt_tokens.astype(np.int64))[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        assert t.response_tokens.tolist() == expected[0, ids.shape[1] :].tolist()


def test_a_sample_depends_on_its_own_seed_only(engine):
    """Other groups of other lengths beside it, waves, dropped rows: the same tokens, and again the same."""
    alone = {}
    for i in range(6):
        engine.submit([request(i, prompt_length=4 + i, max_new_tokens=5 + 4 * i)])
        alone |= tokens_of(drain(engine))
    for places in (64, 7, 2):
        engine._max_num_seqs = places
        engine.submit([request(i, prompt_length=4 + i, max_new_tokens=5 + 4 * i) for i in range(6)])
        assert tokens_of(drain(engine)) == alone
    assert len(set(map(tuple, alone.values()))) > 20


def test_groups_join_while_others_run(engine, model):
    engine.submit([request(0, max_new_tokens=16)])
    finished = [t for _ in range(5) for t in engine.step()]
    engine.submit([request(1, max_new_tokens=3)])
    finished += drain(engine).values()
    assert len(finished) == 8
    for t in finished:
        np.testing.assert_allclose(
            t.behaviour_logprobs, teacher_forced(model, t.prompt_tokens, t.response_tokens), atol=1e-5
        )


def test_stop_tokens_end_a_response_and_belong_to_it(engine):
    stops = tuple(range(2, 80))
    engine.submit([request(0, samples=16, max_new_tokens=30, stop_token_ids=stops)])
    finished = drain(engine)
    for t in finished.values():
        *body, last = t.response_tokens.tolist()
        assert not {*stops, END} & set(body)
        assert t.finish_reason == (FinishReason.STOP if last in (*stops, END) else FinishReason.LENGTH)
        assert len(t.behaviour_logprobs) == len(t.response_mask) == len(t.response_tokens)
        assert t.response_mask.all()
    assert FinishReason.STOP in {t.finish_reason for t in finished.values()}


def test_length_ends_the_others(engine):
    engine.submit([request(0, max_new_tokens=1), request(1, max_new_tokens=6)])
    finished = drain(engine).values()
    lengths = {t.group_id: len(t.response_tokens) for t in finished if t.finish_reason == FinishReason.LENGTH}
    assert lengths == {"g0": 1, "g1": 6}


def test_publish_amid_a_response_is_a_boundary_in_its_versions(engine, model, folder):
    """Before the boundary exactly the old policy, after it exactly the new one."""
    other = tiny_models.scramble(tiny_models.load(folder), seed=5)
    engine.submit([request(i, prompt_length=6 + i, max_new_tokens=14) for i in range(3)])
    finished = [t for _ in range(6) for t in engine.step()]
    receipt = engine.publish(3, payload := pack(other.named_parameters()))
    assert (receipt.version, receipt.digest) == (3, payload.digest)
    late = drain(engine).values()
    assert late and all(t.versions == (VersionSpan(0, 0),) for t in finished)
    for t in late:
        assert t.versions == (VersionSpan(0, 0), VersionSpan(6, 3))
        old = teacher_forced(model, t.prompt_tokens, t.response_tokens)
        new = teacher_forced(other, t.prompt_tokens, t.response_tokens)
        np.testing.assert_allclose(t.behaviour_logprobs, np.concatenate([old[:6], new[6:]]), atol=1e-5)
        assert np.abs(old - new).mean() > 0.1


def test_a_publish_of_the_same_weights_changes_no_token(engine, model):
    engine.submit([request(i) for i in range(4)])
    undisturbed = tokens_of(drain(engine))
    engine.submit([request(i) for i in range(4)])
    finished = [t for _ in range(4) for t in engine.step()]
    engine.publish(1, pack(model.named_parameters()))
    finished += drain(engine).values()
    assert tokens_of({(t.group_id, t.sample_index): t for t in finished}) == undisturbed


def test_two_publishes_between_steps_leave_one_boundary(engine, model):
    engine.submit([request(0, max_new_tokens=4)])
    engine.step()
    for version in (1, 2):
        engine.publish(version, pack(model.named_parameters()))
    assert {t.versions for t in drain(engine).values()} == {(VersionSpan(0, 0), VersionSpan(1, 2))}


def test_many_probes_are_answered_a_few_at_a_time(engine, monkeypatch):
    probes = [np.arange(10, 10 + n, dtype=np.int32) for n in (5, 20, 3, 9, 2)]
    together = engine.probe(probes)
    monkeypatch.setattr(transformers_engine, "LOGITS_AT_ONCE", 2 * 20 * 262)
    widths = []
    monkeypatch.setattr(engine, "_probed", lambda rows, own=engine._probed: widths.append(len(rows)) or own(rows))
    for alone, before in zip(engine.probe(probes), together, strict=True):
        np.testing.assert_allclose(alone, before, atol=1e-5)
    assert widths == [2, 2, 1]


def test_probe_answers_for_the_published_weights_while_requests_run(engine, model, folder):
    probes = [np.arange(10, 30, dtype=np.int32), np.array([7, 9], np.int32)]
    other = tiny_models.scramble(tiny_models.load(folder), seed=6)
    engine.submit([request(0)])
    engine.step()
    for version, weights in enumerate((model, other, model), start=1):
        engine.publish(version, pack(weights.named_parameters()))
        for tokens, answer in zip(probes, engine.probe(probes), strict=True):
            np.testing.assert_allclose(answer, teacher_forced(weights, tokens[:1], tokens[1:]), atol=1e-5)
    assert len(drain(engine)) == 4


def test_aborted_groups_are_never_handed_over(engine):
    engine._max_num_seqs = 8
    engine.submit([request(i, max_new_tokens=20) for i in range(4)])
    early = [t for _ in range(3) for t in engine.step()]
    engine.abort(["g1", "g3"])
    groups = {t.group_id for t in early} | {group for group, _ in drain(engine)}
    assert groups == {"g0", "g2"}


def test_an_engine_of_unknown_version_serves_nothing_until_published_to(folder, model):
    engine = TransformersEngine(spec(folder, version=None))
    with pytest.raises(NotCurrent, match="publish to it first"):
        engine.submit([request(0)])
    with pytest.raises(NotCurrent, match="publish to it first"):
        engine.probe([np.array([1, 2], np.int32)])
    engine.publish(8, pack(model.named_parameters()))
    engine.submit([request(0)])
    assert {t.versions for t in drain(engine).values()} == {(VersionSpan(0, 8),)}


def test_requests_that_do_not_fit_are_refused_by_name(engine):
    with pytest.raises(ValueError, match=r"group g0 .*9 prompt tokens \+ max_new_tokens 300 exceed .* 256"):
        engine.submit([request(0, max_new_tokens=300)])
    assert engine.health().outstanding == 0


def test_tokens_the_model_does_not_know_are_refused(engine):
    with pytest.raises(ValueError, match="has token 999, the model knows 0 to 261"):
        engine.probe([np.array([1, 999], np.int32)])


def test_payloads_that_do_not_fit_are_refused(engine, model):
    some = dict(model.named_parameters())
    some.pop("model.norm.weight")
    with pytest.raises(WeightsRejected, match=r"missing model\.norm\.weight"):
        engine.publish(1, pack(some.items()))
    with pytest.raises(WeightsRejected, match="start it with lora_rank"):
        engine.publish(1, Payload("adapter", (), (), "", {}))
    assert engine.health().version == 0


def test_sliding_windows_are_refused_instead_of_ignored(tmp_path, folder):
    config = tiny_models.load(folder).config
    config.update({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0})
    torch.manual_seed(0)
    type(tiny_models.load(folder))(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding window of 32 tokens"):
        TransformersEngine(spec(tmp_path))


def test_a_real_model_answers_as_generate_does():
    """A pretrained Llama, from the test data."""
    if "RLPIPE_TEST_DATA" not in os.environ:
        pytest.skip("RLPIPE_TEST_DATA is not set: no pretrained model to test with")
    folder = Path(os.environ["RLPIPE_TEST_DATA"]) / "models" / "stories260K"
    model, tokenizer = tiny_models.load(folder), AutoTokenizer.from_pretrained(folder)
    engine = TransformersEngine(spec(folder, eos_token_ids=(1,)))
    prompts = [tokenizer(text).input_ids for text in ("Once upon a time", "Lily and her dog went to the park. They")]
    for i, ids in enumerate(prompts):
        tokens = np.array(ids, np.int32)
        engine.submit([GroupRequest(f"g{i}", f"p{i}", tokens, (1,), Sampling(40, 0.0, ()))])
        engine.submit([GroupRequest(f"s{i}", f"p{i}", tokens, (1, 2, 3), Sampling(40, 0.8, ()))])
    for (group, _), t in drain(engine).items():
        if group.startswith("g"):
            ids = torch.from_numpy(t.prompt_tokens.astype(np.int64))[None]
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
            assert t.response_tokens.tolist() == expected[0, ids.shape[1] :].tolist()
        else:
            expected = teacher_forced(model, t.prompt_tokens, t.response_tokens, temperature=0.8)
            np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=2e-5)
