"""What a layer keeps for its backward pass, as autograd has it: every byte."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlpipe.models.adapters import adapt
from rlpipe.models.logprobs import logprobs_and_entropy
from rlpipe.plan.activations import Pass, of_layer
from rlpipe.plan.architecture import architecture
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.training.prepare import prepare

SEQUENCES, LENGTH, RANK = 2, 16, 4


def config(layers: int, key_values: int) -> Qwen2Config:
    made = Qwen2Config(
        vocab_size=300,
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_values,
        intermediate_size=384,
        max_position_embeddings=64,
    )
    made._attn_implementation = "sdpa"
    return made


def saved(layers: int, key_values: int, dtype: torch.dtype, rank: int, checkpointing: bool) -> int:
    """Bytes of the tensors that a forward pass saves, parameters left out, each storage once."""
    model = Qwen2ForCausalLM(config(layers, key_values))
    if rank:
        model = adapt(model, LoraAdapter(kind="lora", r=rank), seed=0)
    model = model.to(dtype)
    prepare(model, checkpointing)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}  # holding each tensor, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.randint(0, 300, (SEQUENCES, LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs_and_entropy(model, ids, torch.ones_like(ids), 1.0)
    return sum(count for count, _ in found.values())


@pytest.mark.parametrize("key_values", [4, 2])
@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_more(dtype, rank, key_values):
    more = saved(3, key_values, dtype, rank, False) - saved(2, key_values, dtype, rank, False)
    one = Pass(
        shapes=architecture(config(1, key_values).to_dict()),
        positions=SEQUENCES * LENGTH,
        width=dtype.itemsize,
        all_weights=not rank,
        rank=rank,
    )
    assert of_layer(one) == more


def test_a_layer_more_with_checkpointing():
    """Its input, and nothing else."""
    more = saved(3, 2, torch.float32, 0, True) - saved(2, 2, torch.float32, 0, True)
    assert more == SEQUENCES * LENGTH * 128 * 4
