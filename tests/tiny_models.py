"""Small models with pronounced opinions, for tests of engines and weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlpipe.data.flow import GroupRequest, Sampling
from rlpipe.models.classifier import load_classifier
from rlpipe.models.scratch import build_model, build_tokenizer
from rlpipe.recipe.model import PretrainedModel, ScratchModel
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Payload

if TYPE_CHECKING:
    from peft import PeftModel

# On models this small a second thread costs more than it gives.
torch.set_num_threads(1)

VOCABULARY = 262
END = 1


def save_model(directory: Path, seed: int = 0, tied: bool = True) -> Path:
    """A random Qwen2 folder whose distributions are far from uniform, so that other weights give other answers."""
    spec = ScratchModel(
        scratch="qwen2", hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=128, tie_word_embeddings=tied
    )
    tokenizer = build_tokenizer(spec.max_position_embeddings)
    model = build_model(spec, seed, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    scramble(model, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_reward_model(directory: Path, model: Path) -> Path:
    """A classifier with the body of the model at `model`, and with its tokenizer."""
    spec = PretrainedModel(path=str(model))
    load_classifier(spec, str(model), torch.float32, 0, head_seed=1).save_pretrained(directory)
    for file in (*model.glob("*token*"), *model.glob("*.jinja")):
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def scramble(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Other weights of the same size, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.12 if parameter.ndim == 2 else 1.0 + 0.2 * noise)
    return model


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")


def request(
    group: int,
    samples: int = 4,
    prompt_length: int = 9,
    max_new_tokens: int = 12,
    temperature: float = 1.0,
    stop_token_ids: tuple[int, ...] = (),
) -> GroupRequest:
    """Group number `group`: its prompt and seeds depend on nothing but the arguments."""
    rng = np.random.default_rng(group)
    prompt = rng.integers(6, VOCABULARY, prompt_length).astype(np.int32)
    seeds = tuple(int(seed) for seed in rng.integers(0, 2**62, samples))
    return GroupRequest(f"g{group}", f"p{group}", prompt, seeds, Sampling(max_new_tokens, temperature, stop_token_ids))


@torch.no_grad()
def teacher_forced(
    model: PreTrainedModel, prompt: np.ndarray, response: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Log-probabilities of the response's tokens, from one plain forward over the whole sequence."""
    tokens = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logprobs = (model(tokens).logits[0, len(prompt) - 1 : -1].float() / temperature).log_softmax(-1)
    return logprobs.gather(-1, tokens[0, len(prompt) :, None])[:, 0].numpy()


def adapter_payload(adapted: "PeftModel", seed: int, folder: Path) -> Payload:
    """The adapter with other weights of the same size, which a seed decides, as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    return pack(load_file(folder / "adapter_model.safetensors").items(), adapter_config=config)
