"""Bytes of model states: the literature's numbers, and DeepSpeed's."""

import pytest

from rlpipe.plan.activations import Pass, kept, of_layer
from rlpipe.plan.architecture import architecture
from rlpipe.plan.known_models import known
from rlpipe.plan.states import Spread, optimizer_bytes, states
from rlpipe.plan.usage import added, total
from rlpipe.plan.weights import packed_bytes, weights
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.quantization import Quantization

BILLION = 10**9
PARTS = ("weights", "master weights", "optimizer", "gradients")


def spread(stage: int, ranks: int, trained: int, width: int = 2, **more) -> Spread:
    return Spread(
        trained=trained, frozen=0, width=width, ranks=ranks, stage=stage, bucket=1, on_gpu=True, **more
    )  # fmt: skip


def model_states(one: Spread) -> int:
    """Weights, gradients and optimizer at the end of the backward pass; buffers left out."""
    held = states(one)
    parts = added(held.resident, held.backward)
    return sum(parts.get(part, 0) for part in PARTS)


def test_sixteen_bytes_a_parameter():
    """ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1): (2 + 2 + K) bytes, K = 12 for Adam: weights and
    gradients in 16 bits; float32 weights and two means. In float32 there is no second set of weights: also 16."""
    k = optimizer_bytes(1, "adamw_torch") + 4
    assert 2 + 2 + k == 16
    assert model_states(spread(0, 1, BILLION, width=4)) == 16 * BILLION


@pytest.mark.parametrize(
    ("stage", "ranks", "table"),
    [(1, 64, 31.4), (2, 64, 16.6), (3, 64, 1.88), (1, 1024, 30.1), (2, 1024, 15.1), (3, 1024, 0.12)],
)
def test_the_table_of_zero(stage, ranks, table):
    """Table 1 of the paper, 7.5 B parameters, in GB: 120 without ZeRO. It counts gradients in 16 bits, and DeepSpeed
    adds them up in float32: a whole set more in stage 1, and twice the share in stages 2 and 3."""
    psi = 7.5 * BILLION
    in_table = {
        1: 4 * psi + 12 * psi / ranks,
        2: 2 * psi + 14 * psi / ranks,
        3: 16 * psi / ranks,
    }[stage]
    assert in_table / BILLION == pytest.approx(table, abs=0.06)
    float32_gradients = {1: 4 * psi, 2: 2 * psi / ranks, 3: 2 * psi / ranks}[stage]
    assert model_states(spread(stage, ranks, int(psi))) == pytest.approx(in_table + float32_gradients, rel=1e-6)


def test_eight_bits():
    """Dettmers et al. 2022 (arXiv 2110.02861): 2 bytes a parameter in place of 8, and a scale for each block of 256."""
    assert optimizer_bytes(256, "adamw_8bit") == 2 * 256 + 2 * 4
    assert optimizer_bytes(BILLION, "paged_adamw_8bit") < 0.255 * optimizer_bytes(BILLION, "adamw_torch")


def test_four_bits():
    """QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3): double quantisation takes scales from 0.5 bits a
    weight to 8 / 64 + 32 / (64 * 256) = 0.127."""
    count = 64 * 256
    once, twice = (
        8 * packed_bytes([count], Quantization(bnb_4bit_use_double_quant=on)) / count for on in (False, True)
    )
    assert once == 4.5
    assert twice == pytest.approx(4.127, abs=1e-3)


def test_offloading_moves_what_it_says():
    here, there = (states(spread(2, 4, BILLION, offload_optimizer=on)) for on in (False, True))
    moved = 12 * BILLION // 4
    assert total(here.resident) - total(there.resident) == moved
    assert there.offloaded["master weights"] + there.offloaded["optimizer"] == moved
    split = states(spread(3, 4, BILLION, offload_optimizer=True, offload_param=True))
    assert "optimizer" not in split.resident
    assert split.offloaded["weights"] == 2 * BILLION // 4


def test_zero_alone_costs_more_than_nothing():
    """In float32, stage 1 on one rank has a second set of weights."""
    plain, zero = (total(states(spread(stage, 1, 1000, width=4)).resident) for stage in (0, 1))
    assert zero - plain == 4 * 1000


def test_activations_as_korthikanti_counts_them():
    """Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) count for a GPT layer in 16 bits s b h (34 + 5 a s / h)
    bytes: attention 11 and its scores 5 a s / h, feed-forward 19, norms 4. Fused attention keeps no scores, and without
    dropout there are no masks (1 each): 10 + 18 + 4.

    A layer of Llama 2 7B has the 10 of attention, and besides 128 bytes a token of fused attention, and 8 of the norms;
    in its feed-forward layers three matrices where GPT has two, f = 11008 wide; and norms that transformers computes in
    float32: 4 + 2 in place of 2.
    """
    llama = architecture(known("meta-llama/Llama-2-7b-hf"))
    s, h, f = 4096, 4096, 11008
    attention, norms = 10 * s * h, 2 * (4 + 2) * s * h
    feed_forward = s * (2 * h + 2 * 4 * f)
    one = Pass(shapes=llama, positions=s, width=2, all_weights=True)
    assert of_layer(one) == attention + feed_forward + norms + s * (4 * 32 + 2 * 4)
    gpt = 34 - 2
    assert gpt == attention / (s * h) + 18 + 4


def test_checkpointing_keeps_an_input_a_layer():
    """Korthikanti et al., section 5: 2 s b h bytes a layer in 16 bits; and one layer whole while it is made again."""
    llama = architecture(known("meta-llama/Llama-2-7b-hf"))
    whole, few = (
        Pass(shapes=llama, positions=1000, width=2, all_weights=True, checkpointing=on) for on in (False, True)
    )
    last = 1000 * 4096 * 8
    assert kept(few) == 32 * 1000 * 4096 * 2 + of_layer(few) + last
    assert kept(whole) == 32 * of_layer(whole) + last


def test_lora_of_llama():
    """r (in + out) for each layer: 39,976,960 for Llama 2 7B at r = 16 on all linear layers, as PEFT prints it."""
    llama = architecture(known("meta-llama/Llama-2-7b-hf"))
    held = weights(llama, LoraAdapter(kind="lora", r=16), None)
    assert held.trained == 39_976_960
    assert held.frozen == 6_738_415_616
    packed = weights(llama, LoraAdapter(kind="lora", r=16), Quantization())
    assert packed.frozen == 6_738_415_616 - 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert packed.packed == pytest.approx(4.127 / 8 * 32 * (4 * 4096**2 + 3 * 4096 * 11008), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494032768),
        ("Qwen/Qwen2.5-7B", 7.615616512),
        ("Qwen/Qwen3-8B", 8.190735360),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.030261248),
        ("meta-llama/Llama-3.1-70B", 70.553706496),
        ("mistralai/Mistral-7B-v0.1", 7.241732096),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.100048384),
    ],
)
def test_published_models(name, billions):
    """As their model cards and safetensors say."""
    shapes = architecture(known(name))
    assert shapes.size(scores=False) == round(billions * BILLION)
    assert sum(shapes.tensors(scores=False)) == shapes.size(scores=False)
