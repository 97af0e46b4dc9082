"""The embedded default: a small Qwen2 model with random weights and a character-level tokenizer with chat template."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.models.quiet import quiet_libraries
from rlpipe.recipe.model import ScratchModel

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

PAD, END, SYSTEM, USER, ASSISTANT, TOOL = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, TOOL)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user', 'tool'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% else %}"
    "{{ raise_exception('unknown role ' + message['role'] + '; expected system, user, assistant or tool') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""ChatML with one token per role mark, so that a turn of the small model costs two tokens and not eight."""


def build(spec: ScratchModel, seed: int, directory: Path) -> None:
    """Write the model (float32 safetensors) and its tokenizer as a Hugging Face folder."""
    quiet_libraries()
    tokenizer = build_tokenizer(spec.max_position_embeddings)
    model = build_model(spec, seed, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_tokenizer(model_max_length: int = 256) -> "Qwen2Tokenizer":
    """One token per byte, hence one per ASCII character: Qwen2's byte-level BPE with no merges.

    Any text in Unicode's NFC form survives encoding and decoding unchanged. The class is Qwen2's own because
    transformers loads every tokenizer beside a Qwen2 model with it, whatever class was saved.
    """
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))},
        merges=[],
        unk_token=PAD,  # never used: every byte has a token; Qwen2's default would add one the model has no row for
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT, TOOL],
        chat_template=CHAT_TEMPLATE,
        model_max_length=model_max_length,
        padding_side="left",
    )


def build_model(spec: ScratchModel, seed: int, vocab_size: int, pad: int, eos: int) -> "Qwen2ForCausalLM":
    """A Qwen2ForCausalLM in float32, its weights decided by `seed` alone."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.intermediate_size,
        initializer_range=spec.initializer_range,
        max_position_embeddings=spec.max_position_embeddings,
        tie_word_embeddings=spec.tie_word_embeddings,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=eos,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    # Sampling defaults stay those of the distribution: no top-k, top-p or temperature of its own.
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=eos)
    return model


def parameter_count(spec: ScratchModel, vocab_size: int) -> int:
    """Parameters of the model `spec` describes, tied embeddings counted once."""
    hidden, key_value = spec.hidden_size, spec.hidden_size // spec.heads * spec.kv_heads
    attention = (
        2 * hidden * hidden + 2 * hidden * key_value + hidden + 2 * key_value
    )  # q, o, k, v and the q, k, v biases
    feed_forward = 3 * hidden * spec.intermediate_size
    embeddings = vocab_size * hidden * (1 if spec.tie_word_embeddings else 2)
    return embeddings + spec.layers * (attention + feed_forward + 2 * hidden) + hidden
