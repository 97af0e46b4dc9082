"""QLoRA in RL: what samples is what is trained; where it is not, that is measured, and a lost adapter found."""

import dataclasses

import numpy as np
import pytest
import tiny_models
import torch
from test_online import RECIPE, REWARD, events, train
from test_online_lora import LORA as LORA_CHANGES
from test_policy import TEMPERATURE, shards, spec, train_alone, weights_of
from tiny_models import END

from rlpipe.models.load import load_causal_lm
from rlpipe.pipelines.run import FAILED, run
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.quantization import Quantization
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.merged_adapter import MergedAdapter
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.training.distributed import Rank
from rlpipe.training.export import save_pretrained
from rlpipe.training.policy import Policy
from rlpipe.training.reference import Reference, ReferenceSpec
from rlpipe.weights.probes import choose_probes
from rlpipe.weights.verify import Verifier, WeightSyncError

pytestmark = pytest.mark.integration

LORA = LoraAdapter(kind="lora", r=4, lora_alpha=16)
PROBES = choose_probes([np.arange(6, 30, dtype=np.int32)], tiny_models.VOCABULARY, longest=64)
CHANGES = (*LORA_CHANGES, "train.optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dequantized(base, tmp_path_factory):
    """What a stage writes for its engines."""
    folder = tmp_path_factory.mktemp("served") / "dequantized"
    save_pretrained(load_causal_lm(quantised(base), str(base), torch.float32), str(base), folder, writer=True)
    return folder


def quantised(base):
    return PretrainedModel(path=str(base), quantization=Quantization())


def policy_of(base, stage=0, **settings):
    return Policy(dataclasses.replace(spec(str(base), stage, adapter=LORA, **settings), model=quantised(base)), Rank())


def engine_on(folder, rank=4):
    return TransformersEngine(EngineSpec("transformers", str(folder), "float32", (END,), 0, lora_rank=rank))


def apart(engine, policy):
    """Of the probe tokens' log-probabilities, the mean absolute difference, in nats."""
    pairs = zip(engine.probe(PROBES), policy.probe(PROBES), strict=True)
    return float(np.mean(np.abs(np.concatenate([ours - theirs for ours, theirs in pairs]))))


@pytest.mark.parametrize("stage", [0, 3])
def test_after_each_publish_an_engine_answers_as_the_trainer_or_by_quantisation_apart(base, dequantized, stage):
    policy, same, original = policy_of(base, stage), engine_on(dequantized), engine_on(base)
    for version in range(4):
        payload = policy.export()
        for engine in (same, original):
            engine.publish(version, payload)
        assert apart(same, policy) < 1e-5
        assert 0.05 < apart(original, policy) < 1.0
        train_alone(policy, range(version, version + 1))


def test_merged_it_is_a_full_model_that_answers_the_same(base):
    policy, engine = policy_of(base, merge_adapter=True), engine_on(base, rank=None)
    train_alone(policy)
    payload = policy.export()
    assert payload.kind == "full" and {entry.dtype for entry in payload.index} == {"float32"}
    engine.publish(1, payload)
    assert apart(engine, policy) < 1e-5


def test_the_reference_is_the_quantised_base(base, dequantized):
    policy = policy_of(base)
    train_alone(policy)
    shard = shards(5, 1)[0]
    of_base = Reference(
        ReferenceSpec(PretrainedModel(path=str(dequantized)), str(dequantized), TEMPERATURE, "float32"), Rank()
    ).logprobs(shard)
    np.testing.assert_allclose(policy.reference_logprobs(shard), of_base, atol=1e-5)
    assert np.abs(policy.logprobs(shard) - of_base).max() > 1e-2


@pytest.mark.parametrize("stage", [0, 3])
def test_a_new_process_goes_on_bit_equal(base, stage, tmp_path):
    first = policy_of(base, stage)
    train_alone(first, range(2))
    first.save_state(str(tmp_path))
    expected = train_alone(first, range(2, 4)), first.export().digest
    second = policy_of(base, stage)
    second.load_state(str(tmp_path))
    assert (train_alone(second, range(2, 4)), second.export().digest) == expected


def test_two_ranks_train_as_one_does(base, pair):
    """Packed weights are split over the ranks, too."""
    alone = policy_of(base)
    train_alone(alone)
    pair.build(Policy, dataclasses.replace(spec(str(base), 3, adapter=LORA), model=quantised(base)))
    for seed in range(3):
        pair.call("update", shards(seed, 2))
    ours = weights_of(pair.call("export")[0])
    for name, theirs in weights_of(alone.export()).items():
        torch.testing.assert_close(ours[name], theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def answers(base):
    """(trainer's, engine's) after each of four publishes, the engine on the original base."""
    policy, engine, found = policy_of(base), engine_on(base), []
    for version in range(4):
        engine.publish(version, policy.export())
        found.append((policy.probe(PROBES), engine.probe(PROBES)))
        train_alone(policy, range(version, version + 1))
    return found


class TestVerifyingByChange:
    """On the original base, with the answers of a real trainer and engine."""

    def test_what_arrived_passes(self, answers):
        verifier = Verifier(1e-3, by_change=True)
        for version, (trainer, engine) in enumerate(answers):
            found = verifier.check("engine", version, f"d{version}", f"d{version}", trainer, engine)
            assert found.mean_difference > 0.05

    def test_it_would_not_pass_as_the_same_weights(self, answers):
        with pytest.raises(WeightSyncError, match=r"publishing\.tolerance is 0\.001"):
            Verifier(1e-3).check("engine", 0, "d", "d", *answers[0])

    def test_an_adapter_that_never_arrived_does_not(self, answers):
        """Answers a little apart, so that not just their being the same gives it away."""
        verifier, (_, stuck) = Verifier(1e-3, by_change=True), answers[0]
        verifier.check("engine", 0, "d0", "d0", *answers[0])
        with pytest.raises(WeightSyncError, match=r"since the first publish .* is not the one that was sent"):
            verifier.check("engine", 1, "d1", "d1", answers[1][0], [a + 1e-6 for a in stuck])

    def test_nor_one_that_is_scaled_wrongly(self, answers):
        verifier, (first, start) = Verifier(1e-3, by_change=True), answers[0]
        verifier.check("engine", 0, "d0", "d0", first, start)
        twice = [2 * now - before for now, before in zip(answers[2][1], start, strict=True)]
        with pytest.raises(WeightSyncError, match="missing or too much"):
            verifier.check("engine", 2, "d2", "d2", answers[2][0], twice)


@pytest.fixture
def recipe_file(base, tmp_path):
    (tmp_path / "digits.py").write_text(REWARD)
    file = tmp_path / "recipe.yaml"
    scratch = next(line for line in RECIPE.splitlines() if line.startswith("model:"))
    file.write_text(RECIPE.replace(scratch, f"model: {{path: {base}, quantization: {{load_in_4bit: true}}}}"))
    return file


def test_a_run_is_on_policy_or_says_by_how_much_it_is_not(recipe_file, tmp_path):
    same = train(recipe_file, tmp_path / "same", *CHANGES)
    original = train(recipe_file, tmp_path / "original", *CHANGES, "publishing.base=original")
    for ours, theirs in zip(same.values(), original.values(), strict=True):
        assert ours["probe_difference_max"] < 1e-4 and ours["mismatch/abs"] < 1e-4
        assert theirs["probe_difference"] > 0.05 and theirs["mismatch/abs"] > 0.01
    assert same[1]["reference_kl"] == pytest.approx(0.0, abs=1e-6) and same[3]["reference_kl"] > 1e-4
    [note] = [e["message"] for e in events(tmp_path / "same", "note") if e["message"].startswith("trainable")]
    assert note == "trainable: 8,192 of 99,264 (8.3 %), as predicted"


def test_on_the_original_base_a_lost_adapter_stops_the_run(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(MergedAdapter, "take", lambda self, payload: None)
    assert run(load(recipe_file, (*CHANGES, "publishing.base=original")), tmp_path / "run", debug=True) == FAILED
    [fault] = events(tmp_path / "run", "fault")
    assert "WeightSyncError" in fault["message"] and "weight version 1" in fault["message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("adapter=null", "algorithm.kl.coefficient=0"), "give an adapter"),
        (("publishing={base: original, adapter: merged}",), "adapter=merged sends all weights"),
        (("model.quantization=null", "publishing.base=original"), "there are none"),
    ],
)
def test_what_cannot_be_is_refused(recipe_file, changes, said):
    with pytest.raises(RecipeError, match=said):
        load(recipe_file, (*CHANGES, *changes))
