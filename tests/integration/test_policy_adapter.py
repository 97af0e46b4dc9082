"""A LoRA policy under real DeepSpeed: ZeRO stages and ranks, its own base as the reference, the adapter out."""

import dataclasses

import numpy as np
import pytest
import tiny_models
import torch
from peft import AutoPeftModelForCausalLM
from test_policy import STAGES, TEMPERATURE, assert_same_run, shards, spec, train_alone, weights_of

from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.model import PretrainedModel
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.policy import Policy
from rlpipe.training.reference import Reference, ReferenceSpec

pytestmark = pytest.mark.integration

LORA = LoraAdapter(kind="lora", r=4, lora_alpha=16)
SEQUENCES = [np.arange(6, 30, dtype=np.int32), np.arange(40, 50, dtype=np.int32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics and adapter of three steps of one rank at stage 0."""
    policy = Policy(spec(folder, adapter=LORA), Rank())
    return train_alone(policy), weights_of(policy.export())


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_does(folder, alone, pair, stage, tmp_path):
    pair.build(Policy, spec(folder, stage, adapter=LORA))
    metrics = [merge(pair.call("update", shards(seed, 2))) for seed in range(3)]
    first, second = pair.call("export")
    assert second is None and first.kind == "adapter"
    assert_same_run(metrics, weights_of(first), alone)
    pair.call("save", [str(tmp_path / "model")] * 2)
    pair.call("save_adapter", [str(tmp_path / "adapter")] * 2)
    ours = pair.call("probe", [SEQUENCES] * 2)[0]
    for model in (tiny_models.load(tmp_path / "model"), AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")):
        for tokens, answer in zip(SEQUENCES, ours, strict=True):
            expected = tiny_models.teacher_forced(model, tokens[:1], tokens[1:])
            np.testing.assert_allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_switched_off_it_answers_as_a_reference_of_its_own_would(folder, stage):
    policy = Policy(spec(folder, stage, adapter=LORA), Rank())
    train_alone(policy)
    shard = shards(5, 1)[0]
    reference = Reference(ReferenceSpec(PretrainedModel(path=folder), folder, TEMPERATURE, "float32"), Rank())
    adapted = policy.logprobs(shard)
    np.testing.assert_allclose(policy.reference_logprobs(shard), reference.logprobs(shard), atol=1e-6)
    assert np.abs(adapted - reference.logprobs(shard)).max() > 1e-2
    np.testing.assert_array_equal(policy.logprobs(shard), adapted)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_asking_the_reference_between_updates_changes_nothing(folder, alone, stage):
    policy = Policy(spec(folder, stage, adapter=LORA), Rank())
    metrics = []
    for seed in range(3):
        policy.reference_logprobs(shards(seed, 1)[0])
        metrics.append(merge([policy.update(shards(seed, 1)[0])]))
    assert_same_run(metrics, weights_of(policy.export()), alone)


def test_updates_make_likelier_what_paid(folder):
    policy = Policy(spec(folder, adapter=LORA), Rank())
    shard = shards(0, 1)[0]
    before = policy.logprobs(shard)
    for _ in range(5):
        policy.update(shard)
    gained = policy.logprobs(shard) - before
    assert (gained * shard.batch.advantages_N * shard.batch.weights_N).sum() > 0


def test_a_fraction_of_the_bytes_travels(folder):
    """What the engines get: the adapter, or with `merge_adapter` a full model that answers the same."""
    served = Policy(spec(folder, adapter=LORA), Rank())
    merged = Policy(spec(folder, adapter=LORA, merge_adapter=True), Rank())
    for policy in (served, merged):
        train_alone(policy)
    small, large = served.export(), merged.export()
    assert (small.kind, large.kind) == ("adapter", "full")
    size = [sum(bucket.nbytes for bucket in payload.buckets) for payload in (small, large)]
    assert size[0] < size[1] / 5
    model = tiny_models.load(folder)
    assert {e.name: e.shape for e in large.index} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    model.load_state_dict(weights_of(large), strict=False)
    for tokens, answer in zip(SEQUENCES, served.probe(SEQUENCES), strict=True):
        expected = tiny_models.teacher_forced(model, tokens[:1], tokens[1:])
        np.testing.assert_allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_new_process_goes_on_bit_equal(folder, stage, tmp_path):
    first = Policy(spec(folder, stage, adapter=LORA), Rank())
    train_alone(first, range(2))
    first.save_state(str(tmp_path))
    expected = train_alone(first, range(2, 4)), first.export().digest
    second = Policy(spec(folder, stage, adapter=LORA), Rank())
    second.load_state(str(tmp_path))
    assert (train_alone(second, range(2, 4)), second.export().digest) == expected


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_holds_what_is_trained_and_no_more(folder, stage, tmp_path):
    """8,192 parameters with two means (with ZeRO, and float32 weights once more) of float32; the base has 91,072, and
    under its second name the embedding another 16,768."""
    policy = Policy(spec(folder, stage, adapter=LORA), Rank())
    train_alone(policy, [0])
    policy.save_state(str(tmp_path))
    copies = 4 if stage else 3
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.pt"))
    assert 8192 * 4 * copies < written < 8192 * 4 * copies + 100_000 < 91072 * 4
    with pytest.raises(CheckpointMismatch, match=r"do not train the same parameters: .*lora_A"):
        Policy(spec(folder, stage), Rank()).load_state(str(tmp_path))


def test_bfloat16(folder):
    policy = Policy(dataclasses.replace(spec(folder, 2, adapter=LORA), dtype="bfloat16"), Rank())
    metrics = train_alone(policy)
    assert all(np.isfinite(list(m.values())).all() for m in metrics)
    assert {entry.dtype for entry in policy.export().index} == {"bfloat16"}


def test_gradient_checkpointing_changes_nothing_but_memory(folder, alone):
    policy = Policy(spec(folder, adapter=LORA, gradient_checkpointing=True), Rank())
    layer = policy._engine.model.get_base_model().model.layers[0].input_layernorm
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    metrics = train_alone(policy)
    assert len(calls) == 2 * sum(len(shards(seed, 1)[0].micro_batches) for seed in range(3))
    assert_same_run(metrics, weights_of(policy.export()), alone)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_optimizer_of_the_recipe_steps_and_goes_on_bit_equal(folder, stage, tmp_path):
    """Read from what DeepSpeed steps; its running means are bytes."""
    settings = spec(folder, stage, adapter=LoraAdapter(kind="lora", r=64))
    settings = dataclasses.replace(settings, optimizer=settings.optimizer.model_copy(update={"optim": "adamw_8bit"}))
    first = Policy(settings, Rank())
    train_alone(first, range(2))
    wrapped = first._engine.module.optimizer
    stepped = getattr(wrapped, "optimizer", wrapped)
    assert (type(stepped).__module__, stepped.args.optim_bits) == ("bitsandbytes.optim.adamw", 8)
    assert any(state["state1"].dtype == torch.uint8 for state in stepped.state.values())
    first.save_state(str(tmp_path))
    expected = train_alone(first, range(2, 4)), first.export().digest
    second = Policy(settings, Rank())
    second.load_state(str(tmp_path))
    assert (train_alone(second, range(2, 4)), second.export().digest) == expected
