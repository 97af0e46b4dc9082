"""The policy under real DeepSpeed: ZeRO stages and ranks, weights out, saving, going on."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from online_algorithms import MAX_NEW_TOKENS, weights_of_flat
from online_algorithms import algorithm as online_algorithm
from online_algorithms import settings as algorithm_settings
from tiny_models import VOCABULARY

from rlpipe.data.flow import TokenBatch
from rlpipe.models.logprobs import token_logprobs
from rlpipe.recipe.algorithm import PRESETS
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.training import Optimizer
from rlpipe.runtime.local import free_port
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.training.distributed import Rank
from rlpipe.training.engine import NonFiniteGradient
from rlpipe.training.metrics import Mean, merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches, plan_step
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.reference import Reference, ReferenceSpec
from rlpipe.training.sharding import Sharding
from rlpipe.weights.packing import unpack

pytestmark = pytest.mark.integration

STAGES = [0, 1, 2, 3]
TEMPERATURE = 0.8
# A large epsilon: AdamW turns the rounding noise of gradients that are 0 in exact arithmetic (the bias of k_proj) into
# steps of full size.
OPTIMIZER = Optimizer(
    learning_rate=1e-3, lr_scheduler_type="linear", warmup_steps=1, weight_decay=0.01, adam_epsilon=1e-4
)


def random_batch(seed: int, count: int = 9) -> TokenBatch:
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(5, 30, count)
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)])
    mask_N = np.concatenate([np.arange(n) >= rng.integers(2, 5) for n in lengths_B]).astype(np.float32)
    batch = TokenBatch(
        tokens_N=rng.integers(6, VOCABULARY, offsets_B1[-1]).astype(np.int32),
        offsets_B1=offsets_B1,
        mask_N=mask_N,
        behaviour_logprobs_N=-5 * mask_N,
        advantages_N=rng.normal(size=offsets_B1[-1]).astype(np.float32) * mask_N,
    )
    return dataclasses.replace(batch, weights_N=weights_of_flat(online_algorithm(), batch))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def any_folder(request, tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model"), tied=request.param))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


def spec(folder: str, zero_stage: int = 0, algorithm: str = "grpo", **settings) -> PolicySpec:
    return PolicySpec(
        model=PretrainedModel(path=folder),
        path=folder,
        algorithm=algorithm_settings(algorithm),
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        total_steps=5,
        optimizer=OPTIMIZER,
        dtype="float32",
        sharding=Sharding(zero_stage),
        **settings,
    )


def shards(seed: int, ranks: int):
    # Nine sequences: with two ranks, one has a micro-batch more than the other, which gets an empty one.
    batch = random_batch(seed)
    return plan_step(batch, range(9), ranks, tokens_per_micro_batch=64)


def train_alone(policy: Policy, seeds=range(3)) -> list[dict[str, float]]:
    return [merge([policy.update(shards(seed, 1)[0])]) for seed in seeds]


def weights_of(payload) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unpack(payload)}


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics and weights of three steps of one rank at stage 0."""
    policy = Policy(spec(folder), Rank())
    return train_alone(policy), weights_of(policy.export())


def assert_same_run(metrics, weights, alone, tolerance=2e-6):
    for ours, theirs in zip(metrics, alone[0], strict=True):
        ours, theirs = dict(ours), dict(theirs)
        assert ours.pop("positions_used") <= 1 and theirs.pop("positions_used") <= 1  # depends on the split
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert weights.keys() == alone[1].keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, alone[1][name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_does(folder, alone, pair, stage, tmp_path):
    pair.build(Policy, spec(folder, stage))
    assert any(() in shard.micro_batches for seed in range(3) for shard in shards(seed, 2))
    metrics = [merge(pair.call("update", shards(seed, 2))) for seed in range(3)]
    first, second = pair.call("export")
    assert second is None
    assert_same_run(metrics, weights_of(first), alone)
    _check_saved(pair, first, tmp_path / "model")
    _check_logprobs(pair, tmp_path / "model")
    _check_going_on(pair, tmp_path / "state")


def _check_saved(pair, payload, directory):
    pair.call("save", [str(directory)] * 2)
    saved = dict(tiny_models.load(directory).named_parameters())
    exported = weights_of(payload)
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in exported.items())


def _check_logprobs(pair, directory):
    batch = random_batch(5)
    plan = plan_micro_batches(batch.lengths_B, range(9), 2, 64)
    ours = collect(batch, plan, pair.call("logprobs", make_shards(batch, plan)))
    model = tiny_models.load(directory)
    for b in range(9):
        span = slice(batch.offsets_B1[b], batch.offsets_B1[b + 1])
        ids = torch.from_numpy(batch.tokens_N[span].astype(np.int64))[None]
        with torch.no_grad():
            expected = token_logprobs(model, ids, torch.ones_like(ids), TEMPERATURE)[0].numpy() * batch.mask_N[span]
        np.testing.assert_allclose(ours[span], expected, atol=1e-5)


def _check_going_on(pair, directory):
    pair.call("save_state", [str(directory)] * 2)
    runs = []
    for _ in range(2):
        metrics = [merge(pair.call("update", shards(seed, 2))) for seed in (7, 8)]
        runs.append((metrics, pair.call("export")[0].digest))
        pair.call("load_state", [str(directory)] * 2)
    assert runs[0] == runs[1], "bit-equal"


@pytest.mark.parametrize("stage", STAGES[1:])
def test_every_stage_in_this_process(folder, alone, stage):
    """World size 1 in the calling process, as under --debug."""
    policy = Policy(spec(folder, stage), Rank())
    metrics = train_alone(policy)
    assert_same_run(metrics, weights_of(policy.export()), alone)


def test_a_new_process_goes_on_bit_equal(folder, tmp_path):
    first = Policy(spec(folder, 2), Rank())
    train_alone(first, range(2))
    random.seed(3)
    first.save_state(str(tmp_path))
    expected = train_alone(first, range(2, 5)), first.export().digest
    drawn = random.random(), np.random.random(), torch.rand(()).item()
    second = Policy(spec(folder, 2), Rank())
    second.load_state(str(tmp_path))
    assert (train_alone(second, range(2, 5)), second.export().digest) == expected
    assert (random.random(), np.random.random(), torch.rand(()).item()) == drawn


class Malice:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)


def test_a_checkpoint_runs_no_code(folder, tmp_path):
    policy, trap = Policy(spec(folder, 2), Rank()), tmp_path / "trap"
    policy.save_state(str(tmp_path))
    [file] = tmp_path.glob("deepspeed/*model_states.pt")
    held = torch.load(file, weights_only=False)
    torch.save(held | {"dp_world_size": Malice(trap)}, file)
    with pytest.raises(CheckpointMismatch, match="holds more than training writes, and has not been opened further"):
        policy.load_state(str(tmp_path))
    assert not trap.exists()
    torch.load(file, weights_only=False)  # which is what DeepSpeed would have done
    assert trap.exists()


def test_another_number_of_ranks_cannot_go_on(folder, tmp_path):
    policy = Policy(spec(folder), Rank())
    (tmp_path / "random-0-of-2.pt").touch()
    with pytest.raises(CheckpointMismatch, match=r"random-0-of-1\.pt"):
        policy.load_state(str(tmp_path))


def test_saved_folder_is_complete_and_answers_as_the_policy(any_folder, tmp_path):
    policy = Policy(spec(any_folder), Rank())
    train_alone(policy)
    for _ in range(2):  # the second replaces the first
        policy.save(str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    source, saved = Path(any_folder), tmp_path / "out"
    assert (saved / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert {f.name for f in saved.iterdir()} == {f.name for f in source.iterdir()}
    sequences = [np.arange(6, 30, dtype=np.int32), np.arange(40, 50, dtype=np.int32)]
    model = tiny_models.load(saved)
    for tokens, ours in zip(sequences, policy.probe(sequences), strict=True):
        theirs = tiny_models.teacher_forced(model, tokens[:1], tokens[1:])
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_learning_rate_follows_the_schedule(alone):
    # One warm-up step to 1e-3, then down to 0 over the other four of five steps.
    assert [m["learning_rate"] for m in alone[0]] == pytest.approx([0.5e-3, 1e-3, 0.75e-3])


def test_old_logprobs_make_the_second_update_off_policy(folder):
    policy = Policy(spec(folder), Rank())
    batch = random_batch(0)
    plan = plan_micro_batches(batch.lengths_B, range(9), 1, 64)
    old_N = collect(batch, plan, [policy.logprobs(make_shards(batch, plan)[0])])
    behaviour_N = old_N + 0.01 * batch.mask_N
    with_old = dataclasses.replace(batch, behaviour_logprobs_N=behaviour_N, old_logprobs_N=old_N)
    steps = [merge([policy.update(make_shards(with_old, plan)[0])]) for _ in range(2)]
    assert steps[0]["policy_kl"] == pytest.approx(0, abs=1e-8) and steps[1]["policy_kl"] > 1e-4
    # The mismatch is that of the weights which sampled, whatever the policy has become since.
    assert [s["mismatch/abs"] for s in steps] == pytest.approx([0.01, 0.01], abs=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(folder, name):
    """Two updates on one batch, as after a step of the loop: what paid became likelier."""
    policy = Policy(spec(folder, algorithm=name), Rank())
    batch = random_batch(0)
    plan = plan_micro_batches(batch.lengths_B, range(9), 1, 64)
    old_N = collect(batch, plan, [policy.logprobs(make_shards(batch, plan)[0])])
    batch = dataclasses.replace(
        batch,
        behaviour_logprobs_N=old_N,
        old_logprobs_N=old_N,
        reference_logprobs_N=old_N - 0.1 * batch.mask_N,
        weights_N=weights_of_flat(online_algorithm(name), batch),
    )
    [shard] = make_shards(batch, plan, kl_coefficient=0.05)
    before = policy.export().digest
    first, second = (merge([policy.update(shard)]) for _ in range(2))
    assert all(np.isfinite(value) for metrics in (first, second) for value in metrics.values())
    assert policy.export().digest != before and first["grad_norm"] > 0
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4) and first["clip_fraction"] == 0.0
    gained_N = collect(batch, plan, [policy.logprobs(shard)]) - old_N
    assert second["policy_kl"] > 1e-7 and (gained_N * batch.advantages_N * batch.weights_N).sum() > 0


def test_the_entropy_bonus_raises_the_entropy(folder):
    flat = dataclasses.replace(random_batch(0), advantages_N=np.zeros_like(random_batch(0).advantages_N))
    bonus = algorithm_settings(entropy_coefficient=1.0)
    policy = Policy(dataclasses.replace(spec(folder), algorithm=bonus), Rank())
    entropies = [merge([policy.update(plan_step(flat, range(9), 1, 64)[0])])["entropy"] for _ in range(3)]
    assert entropies == sorted(entropies) and entropies[-1] > entropies[0] + 1e-5


def test_the_reference_answers_as_the_untrained_policy(folder):
    policy = Policy(spec(folder), Rank())
    reference = Reference(ReferenceSpec(PretrainedModel(path=folder), folder, TEMPERATURE, "float32"), Rank())
    shard = shards(0, 1)[0]
    before = policy.logprobs(shard)
    policy.update(shard)
    np.testing.assert_allclose(reference.logprobs(shard), before, atol=1e-6)
    assert np.abs(policy.logprobs(shard) - before).max() > 1e-3


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_not_finite_stops_before_the_weights(folder, stage):
    policy = Policy(spec(folder, stage), Rank())
    digest = policy.export().digest
    batch = random_batch(0)
    batch.advantages_N[batch.mask_N > 0] = np.inf
    with pytest.raises(NonFiniteGradient, match="optimizer step 1"):
        policy.update(plan_step(batch, range(9), 1, 64)[0])
    assert policy.export().digest == digest


def test_gradient_checkpointing_changes_nothing_but_memory(folder, alone):
    policy = Policy(spec(folder, gradient_checkpointing=True), Rank())
    layer = policy._engine.model.model.layers[0].input_layernorm
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    metrics = train_alone(policy)
    micro_batches = sum(len(shards(seed, 1)[0].micro_batches) for seed in range(3))
    assert len(calls) == 2 * micro_batches, "every forward runs again in the backward"
    assert_same_run(metrics, weights_of(policy.export()), alone)


@pytest.mark.parametrize("stage", [0, 2])
def test_bfloat16(folder, stage):
    policy = Policy(dataclasses.replace(spec(folder, stage), dtype="bfloat16"), Rank())
    metrics = train_alone(policy)
    assert all(np.isfinite(list(m.values())).all() for m in metrics)
    assert {entry.dtype for entry in policy.export().index} == {"bfloat16"}


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_that_waits_alone_says_so(index):
    rank = f"Rank({index}, 2, 0, '127.0.0.1', {free_port()})"
    script = f"from rlpipe.training.distributed import Rank, join; join({rank}, timeout_seconds=1.0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert f"TimeoutError: training rank {index} waited 1 s for the other 1 ranks" in done.stderr


def test_metrics_of_ranks_add_up():
    parts = [
        {"loss": Mean(3.0, 2.0), "mismatch/weight": Mean(1.0, 2.0), "mismatch/weight_sq": Mean(1.0, 2.0)},
        {"loss": Mean(1.0, 2.0), "mismatch/weight": Mean(2.0, 2.0), "mismatch/weight_sq": Mean(4.0, 2.0)},
    ]
    assert merge(parts) == pytest.approx({"loss": 1.0, "mismatch/effective_samples": 0.75**2 / 1.25})
