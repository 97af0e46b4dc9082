"""The shapes of a language model's weights, from the values of its `config.json`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose shapes are known here."""


class Unpredictable(ValueError):
    """What is asked for is not known here; the message says what."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer."""

    inputs: int
    outputs: int
    bias: bool

    @property
    def size(self) -> int:
        """Parameters."""
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder of equal layers between an embedding and an output head."""

    hidden: int
    layers: int
    key_value: int
    """Width of the keys of one layer, over all heads."""
    heads: int
    """Query heads of one layer."""
    context: int
    """Longest sequence in tokens."""
    vocabulary: int
    tied: bool
    """The output head is the embedding."""
    layer: dict[str, Linear]
    """The linear layers of one decoder layer, by their names in it."""
    norms: int
    """Parameters of one decoder layer's normalisations."""

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear layer but the output head, by its name in the model."""
        for number in range(self.layers):
            for name, linear in self.layer.items():
                yield f"model.layers.{number}.{name}", linear

    @property
    def query(self) -> int:
        """Width of the queries of one layer, over all heads."""
        return self.layer["self_attn.q_proj"].outputs

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layers."""
        return self.layer["mlp.up_proj"].outputs

    @property
    def layer_size(self) -> int:
        """Parameters of one decoder layer."""
        return sum(linear.size for linear in self.layer.values()) + self.norms

    def tensors(self, scores: bool) -> Iterator[int]:
        """The size of every parameter tensor, as `size` adds them up."""
        yield self.hidden * self.vocabulary
        for _, linear in self.linears():
            yield linear.inputs * linear.outputs
            if linear.bias:
                yield linear.outputs
        per_head = self.norms - 2 * self.hidden  # Qwen3 has norms of queries and keys
        for _ in range(self.layers):
            yield from (self.hidden, self.hidden, *([per_head // 2] * 2 if per_head else ()))
        yield self.hidden
        if scores or not self.tied:
            yield self.hidden if scores else self.hidden * self.vocabulary

    def size(self, scores: bool) -> int:
        """All parameters; with `scores` those of a classifier, with a score head in place of the output head."""
        head = self.hidden if scores else 0 if self.tied else self.hidden * self.vocabulary
        decoder = self.layers * self.layer_size + self.hidden
        return self.hidden * self.vocabulary + decoder + head


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a configuration describes, of the Llama and Qwen families; raises `Unpredictable` for any
    other."""
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise Unpredictable(f"the shapes of {kind} models are not known, only those of {', '.join(KNOWN)}")
    hidden, between, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key_value = heads * head, (config.get("num_key_value_heads") or heads) * head
    everywhere = bool(config.get("attention_bias")) and kind in ("llama", "qwen3")
    inputs, feed_forward = everywhere or kind == "qwen2", bool(config.get("mlp_bias")) and kind == "llama"
    return Architecture(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        key_value=key_value,
        heads=heads,
        context=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings")),
        layer={
            "self_attn.q_proj": Linear(hidden, query, inputs),
            "self_attn.k_proj": Linear(hidden, key_value, inputs),
            "self_attn.v_proj": Linear(hidden, key_value, inputs),
            "self_attn.o_proj": Linear(query, hidden, everywhere),
            "mlp.gate_proj": Linear(hidden, between, feed_forward),
            "mlp.up_proj": Linear(hidden, between, feed_forward),
            "mlp.down_proj": Linear(between, hidden, feed_forward),
        },
        norms=2 * hidden + (2 * head if kind == "qwen3" else 0),
    )
