"""Time of a step, worked out by hand."""

import pytest

from rlpipe.plan.architecture import architecture
from rlpipe.plan.engines import Generator
from rlpipe.plan.hardware import Rates
from rlpipe.plan.known_models import known
from rlpipe.plan.lengths import Lengths
from rlpipe.plan.publishing import Sending, publishing
from rlpipe.plan.seconds import Work, forward_flops, generation, optimizer, reduction, update
from rlpipe.plan.weights import weights
from rlpipe.recipe.adapter import LoraAdapter

LLAMA = architecture(known("meta-llama/Llama-2-7b-hf"))
MULTIPLIED = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
RATES = Rates(tflops=100.0, utilization=0.5, bandwidth=1000.0, network=10.0, host=20.0)


def work(adapter=None, ranks=1, checkpointing=False) -> Work:
    return Work(LLAMA, weights(LLAMA, adapter, None), 2, ranks, checkpointing)


def test_two_operations_for_each_weight_and_token():
    """Kaplan et al. 2020 (arXiv 2001.08361, table 1): 2 N + 2 n_layer n_ctx d_attn for a forward pass."""
    assert forward_flops(LLAMA, 1, 0) == 2 * MULTIPLIED
    assert forward_flops(LLAMA, 10, 2048) == 10 * (2 * MULTIPLIED + 2 * 32 * 2048 * 4096)


@pytest.mark.parametrize(
    ("adapter", "checkpointing", "passes"),
    [(None, False, 3), (None, True, 4), (LoraAdapter(kind="lora"), False, 2), (LoraAdapter(kind="lora"), True, 3)],
)
def test_forward_and_backward(adapter, checkpointing, passes):
    one = update(work(adapter, checkpointing=checkpointing), 1000, 0, RATES)
    assert one == pytest.approx(passes * 1000 * 2 * MULTIPLIED / 50e12)


def test_ranks_share_the_work_and_send_gradients():
    four = work(ranks=4)
    assert update(four, 1000, 0, RATES) == pytest.approx(update(work(), 1000, 0, RATES) / 4)
    assert reduction(work(), RATES) == 0
    # 2 (N - 1) / N of 2 bytes a parameter, 10 GB/s
    assert reduction(four, RATES) == pytest.approx(1.5 * 2 * 6_738_415_616 / 10e9)
    assert optimizer(four, RATES) == pytest.approx(28 * 6_738_415_616 / 4 / 1000e9)


def test_decoding_reads_weights_and_cache():
    made = Generator(
        shapes=LLAMA, parameters=6_738_415_616, width=2, vllm=True, parts=1, max_num_seqs=8, whole=150, utilization=0.9,
        gpu_bytes=80 * 2**30, cache_gib=1.0, sleeps=False, keeps_base=False,
    )  # fmt: skip
    found = generation(made, engines=1, prompts=2, group=8, lengths=Lengths(100, 50), rates=RATES)
    # 16 samples, 8 at once: two rounds of 50 tokens. A token reads 13.5 GB of weights and 8 caches of 125 tokens in the
    # mean, 2 x 32 layers x 4096 x 2 bytes each.
    read = 2 * 6_738_415_616 + 8 * 125 * 2 * 32 * 4096 * 2
    assert found["decoding"] == pytest.approx(2 * 50 * read / 1000e9)
    assert found["prefill"] == pytest.approx(2 * forward_flops(LLAMA, 100, 100) / 50e12)


@pytest.mark.parametrize(
    ("way", "split", "seconds"),
    [
        # 16 GB: 1.6 s over the network, 0.8 s over a link to the host, 0.016 s through a GPU's memory once.
        ("nccl", False, 0.016 + 4 * 1.6),
        (
            "nccl",
            True,
            (1.2 + 0.016) + 4 * (1.2 + 1.6),
        ),  # 12 GB of the other three ranks, for the checksum and each time
        ("ipc", False, 0.016 + 4 * 0.016),  # all engines side by side
        ("ipc", True, (1.2 + 0.016) + 4 * (1.2 + 4 * 0.016)),
        (None, False, 2 * 0.8 + 4 * 1.6),
        (None, True, 1.2 + 2 * 0.8 + 4 * 1.6),
    ],
)
def test_weights_take_their_way_to_the_engines(way, split, seconds):
    sending = Sending(nbytes=16 * 10**9, way=way, engines=4, ranks=4, split=split, on_gpu=True)
    assert publishing(sending, RATES) == pytest.approx(seconds)


def test_without_a_gpu_nothing_goes_over_its_link():
    sending = Sending(nbytes=10**9, way=None, engines=2, ranks=1, split=False, on_gpu=False)
    assert publishing(sending, RATES) == pytest.approx(0.2)
