"""Bytes that a forward pass keeps for the backward pass, and what both need for a moment.

For a decoder layer of the Llama and Qwen families under torch's fused attention, which never holds the [T, T] scores.
Korthikanti et al. 2022 (arXiv 2205.05198, eq. 1 and 2) count the same for GPT; docs/memory.md has both side by side.
"""

from dataclasses import dataclass

from rlpipe.plan.architecture import Architecture

LOGITS_PER_CHUNK = 1 << 25
"""As `rlpipe.models.logprobs` takes the output head apart: elements."""
TRL_ROWS, TRL_COLUMNS = 4096, 32768
"""As TRL 1.16 does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A forward and backward pass of one micro-batch."""

    shapes: Architecture
    positions: int
    """Tokens with padding."""
    width: int
    """Bytes of an element that computes."""
    all_weights: bool
    """Whether the weights themselves learn: then the inputs of their multiplications are kept."""
    rank: int = 0
    """r of LoRA and its kind, on every linear layer; 0 without."""
    checkpointing: bool = False
    repeats_keys: bool = False
    """Whether keys and values are copied for each query head: transformers does that where there is a mask."""


def of_layer(one: Pass) -> int:
    """Kept by one decoder layer. With h the width of the residual stream, q and k those of queries and keys, f that of
    the feed-forward layers, elements for each token:

        norms        2 (x + x^ + y)     x and its scale in float32, x^ only where the norm's weight learns, y the next
                                        layer's input
        attention    q + 2 k + q        queries, keys, values, and what comes out, which is the output layer's input
        feed-forward 4 f                gate, silu(gate), up, and their product
    """
    shapes, learns = one.shapes, one.all_weights
    inputs = learns or one.rank > 0
    keys = shapes.query if one.repeats_keys else shapes.key_value
    norms = 2 * (4 + shapes.hidden * (4 + one.width * (learns + inputs)))
    attention = one.width * (2 * shapes.query + 2 * keys) + 4 * shapes.heads
    feed_forward = one.width * shapes.feed_forward * (3 + inputs)
    low_rank = one.width * one.rank * len(shapes.layer)
    return one.positions * (norms + attention + feed_forward + low_rank)


def kept(one: Pass) -> int:
    """By all layers together and the last norm. With checkpointing a layer keeps its input alone, but for the one whose
    backward pass it is."""
    shapes = one.shapes
    last = one.positions * shapes.hidden * (4 + 2 * one.width)
    if one.checkpointing:
        return one.positions * shapes.hidden * one.width * shapes.layers + of_layer(one) + last
    return of_layer(one) * shapes.layers + last


def momentary(one: Pass) -> int:
    """Of the backward pass of one layer: gradients of what its feed-forward layers made, and of the residual stream."""
    return one.positions * one.width * (3 * one.shapes.feed_forward + 2 * one.shapes.hidden)


def forward_alone(shapes: Architecture, positions: int, width: int) -> int:
    """Of a forward pass that nothing learns from: one layer at a time."""
    return positions * width * (3 * shapes.feed_forward + 4 * shapes.hidden)


def head(shapes: Architecture, rows: int, width: int, backward: bool) -> int:
    """Of `rlpipe.models.logprobs`: logits in float32, their probabilities, and backwards two gradients and the
    exponentials; in chunks where there are many."""
    chunk = min(rows * shapes.vocabulary, LOGITS_PER_CHUNK)
    copies = 4 * (4 if backward else 2) + (2 * width if width == 2 else 0)
    return chunk * copies


def trl_head(shapes: Architecture, rows: int, width: int, learns: bool, on_gpu: bool) -> int:
    """Of TRL's fused head: a tile of logits, the gradient of the hidden states and, where the head learns, its own, all
    in float32. Without Triton (on CPU) a tile is worked on in copies."""
    columns = TRL_COLUMNS if on_gpu else min(shapes.vocabulary, TRL_COLUMNS)
    tile = min(rows, TRL_ROWS) * columns
    tiles = tile * (width if on_gpu else width + 3 * 4)
    return tiles + 4 * rows * shapes.hidden + (4 * shapes.vocabulary * shapes.hidden if learns else 0)
