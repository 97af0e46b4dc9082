"""An adapter out of a folder on its way to an engine that may not take it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlpipe.rollout.engine import Receipt
from rlpipe.rollout.fixed_adapter import Bare, FixedAdapter, has_effect, without_effect
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Within
from rlpipe.weights.packing import digest_of, pack, unpack
from rlpipe.weights.verify import WeightSyncError

SOON = Within("publish", 1)
PROBES = [np.array([1, 2, 3], np.int32)]


class Engine:
    """Answers the probes by what it has been published, or always the same."""

    name = "engine 0"

    def __init__(self, takes=True, damages=False, most=99):
        """`most`: adapters that it takes before it keeps the last of them."""
        self._takes, self._damages, self._left = takes, damages, most
        self._weights = 0.0

    def call(self, within, method, *args):
        if method is RolloutWorker.publish:
            version, payload = args
            self._left -= 1
            if self._takes and self._left >= 0:
                self._weights = sum(float(tensor.sum()) for name, tensor in unpack(payload) if ".lora_B." in name)
            digest = "other" if self._damages else digest_of(payload.buckets)
            return SimpleNamespace(result=lambda: Receipt(version, digest, 0.0))
        answers = [np.full(2, self._weights - 1.0, np.float32)]
        return SimpleNamespace(result=lambda: answers)


def adapter(b=0.5):
    tensors = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.full((4, 2), b)}
    return pack(tensors.items(), adapter_config={"r": 2})


def publish(engine, payload, bare, name="models.a"):
    for _ in FixedAdapter(name, 1, payload, bare, SOON).deliver(engine):
        pass


def test_without_effect_b_is_0_and_a_is_as_it_was():
    nothing = without_effect(adapter())
    tensors = dict(unpack(nothing))
    assert not tensors["q.lora_B.weight"].any() and tensors["q.lora_A.weight"].all()
    assert has_effect(adapter()) and not has_effect(nothing)
    assert nothing.digest == digest_of(nothing.buckets) != adapter().digest


def test_an_adapter_that_arrives_changes_the_answers():
    engine, bare = Engine(), Bare(PROBES, without_effect(adapter()))
    publish(engine, without_effect(adapter()), bare)
    publish(engine, adapter(), bare)
    assert bare.answers["engine 0"][0].tolist() == [-1.0, -1.0]


def test_one_that_does_not_is_noticed():
    engine, bare = Engine(takes=False), Bare(PROBES, without_effect(adapter()))
    publish(engine, without_effect(adapter()), bare)
    with pytest.raises(
        WeightSyncError, match=r"engine 0: with the adapter of models\.a it answers 1 probes exactly as"
    ):
        publish(engine, adapter(), bare)


def test_damage_is_noticed():
    with pytest.raises(WeightSyncError, match="damaged on the way"):
        publish(Engine(damages=True), adapter(), Bare(PROBES, without_effect(adapter())))


def test_an_adapter_that_was_never_trained_may_change_nothing():
    engine, bare = Engine(), Bare(PROBES, without_effect(adapter()))
    publish(engine, without_effect(adapter()), bare)
    publish(engine, adapter(b=0.0), bare)


def test_one_that_leaves_the_adapter_before_in_place_is_noticed():
    engine, bare = Engine(most=2), Bare(PROBES, without_effect(adapter()))
    publish(engine, adapter(0.5), bare)
    publish(engine, adapter(0.5), bare)  # the same once more
    with pytest.raises(
        WeightSyncError,
        match=r"engine 0: with the adapter of models\.b it answers 1 probes exactly as with that of models\.a",
    ):
        publish(engine, adapter(0.25), bare, "models.b")
    with pytest.raises(WeightSyncError, match=r"adapter of the base .* as with that of models\.a"):
        publish(engine, without_effect(adapter()), bare, "the base")


def test_adapters_that_differ_follow_each_other():
    engine, bare = Engine(), Bare(PROBES, without_effect(adapter()))
    for payload in (adapter(0.5), adapter(0.25), without_effect(adapter()), adapter(b=0.0), adapter(0.5)):
        publish(engine, payload, bare)


def test_an_engine_that_joins_late_is_asked_without_adapter_first():
    bare, late = Bare(PROBES, without_effect(adapter())), Engine(takes=False)
    publish(Engine(), adapter(), bare)
    late.name = "engine 1"
    with pytest.raises(WeightSyncError, match=r"engine 1: with the adapter of models\.a .* exactly as without any"):
        publish(late, adapter(), bare)
    assert bare.answers.keys() == {"engine 0", "engine 1"}
