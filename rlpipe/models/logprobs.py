"""Log-probabilities of given tokens under a causal language model, without holding the distributions.

The model's output head is made to answer, for the length of one forward call, with log-probabilities instead of
logits. It computes them only where they are wanted and, where the vocabulary is large, in chunks that the backward
pass computes again: memory does not grow with batch x length x vocabulary. Calling the model as a whole, and its head
as a module, keeps the hooks of DeepSpeed ZeRO-3 in their places.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LOGITS_PER_CHUNK = 1 << 25
"""128 MiB in float32."""

Score = Callable[[Tensor, Tensor, float], Tensor]
"""[log-probability of the target, entropy] of rows that become logits."""

_LOGIT_MODIFIERS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings with which an architecture changes its head's output; such a model is asked for its logits."""


def token_logprobs(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    temperature: float,
    wanted_BT: Tensor | None = None,
) -> Tensor:
    """log p(token_t | tokens before t) at index t, under softmax(logits / temperature); float32, with gradient.

    Args:
        model: a causal language model or its DeepSpeed engine; called once.
        input_ids_BT: token ids; sequences may be padded on either side.
        attention_mask_BT: 1 on tokens, 0 on padding.
        temperature: what the sampler divides logits by.
        wanted_BT: 1 where the log-probability is needed (for example the response); every token if absent.

    Returns:
        logprobs_BT, 0 at index 0, on padding and where not wanted.
    """
    return logprobs_and_entropy(model, input_ids_BT, attention_mask_BT, temperature, wanted_BT)[0]


def logprobs_and_entropy(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    temperature: float,
    wanted_BT: Tensor | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and entropy_BT in nats of the distribution each token was drawn from.

    The entropy has a gradient only where it is asked for: the backward pass then holds two more arrays of the size of
    the logits.
    """
    wanted = _wanted(attention_mask_BT, wanted_BT)
    score = partial(_score, entropy_gradient=entropy_gradient)
    targets_N = input_ids_BT[:, 1:][wanted]

    def of_hidden(hidden_BTH: Tensor, weight_VH: Tensor) -> Tensor:
        return _spread(_from_hidden(score, hidden_BTH[:, :-1][wanted], weight_VH, targets_N, temperature), wanted)

    head = _plain_head(model)
    if head is None:
        logits_NV = _forward(model, input_ids_BT, attention_mask_BT)[:, :-1][wanted]
        result_BT2 = _spread(_chunked(score, logits_NV, targets_N, temperature, logits_NV.shape[-1]), wanted)
    else:
        with _answering(head, of_hidden):
            result_BT2 = _forward(model, input_ids_BT, attention_mask_BT)
    entropy_BT = result_BT2[..., 1]
    return result_BT2[..., 0], entropy_BT if entropy_gradient else entropy_BT.detach()


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """Positions that count tokens and not padding."""
    return (attention_mask_BT.long().cumsum(-1) - 1).clamp(min=0)


def _forward(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    return model(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=position_ids(attention_mask_BT),
        use_cache=False,
    ).logits


def _wanted(attention_mask_BT: Tensor, wanted_BT: Tensor | None) -> Tensor:
    """Boolean, for the tokens 1.. of each sequence: those that are wanted and have a token before them."""
    has_context = attention_mask_BT[:, 1:].bool() & attention_mask_BT[:, :-1].bool()
    return has_context if wanted_BT is None else has_context & wanted_BT[:, 1:].bool()


def _plain_head(model: nn.Module) -> nn.Linear | None:
    """The output head, if the logits are nothing but its weight times the hidden state."""
    inner = getattr(model, "module", model)
    config = inner.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1.0) for name in _LOGIT_MODIFIERS):
        return None
    head = inner.get_output_embeddings()
    return head if isinstance(head, nn.Linear) and head.bias is None else None


@contextmanager
def _answering(head: nn.Linear, answer: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    previous = head.__dict__.get("forward")
    head.forward = lambda hidden_BTH: answer(hidden_BTH, head.weight)
    try:
        yield
    finally:
        if previous is None:
            del head.forward
        else:
            head.forward = previous


def _from_hidden(score: Score, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    def score_hidden(hidden_nH: Tensor, targets_n: Tensor, temperature: float) -> Tensor:
        return score(F.linear(hidden_nH, weight_VH), targets_n, temperature)

    return _chunked(score_hidden, hidden_NH, targets_N, temperature, weight_VH.shape[0])


def _chunked(score: Score, rows_NX: Tensor, targets_N: Tensor, temperature: float, vocab: int) -> Tensor:
    size = max(1, _LOGITS_PER_CHUNK // vocab)
    if rows_NX.shape[0] <= size:
        return score(rows_NX, targets_N, temperature)
    parts = zip(rows_NX.split(size), targets_N.split(size), strict=True)
    return torch.cat([checkpoint(score, rows, ids, temperature, use_reentrant=False) for rows, ids in parts])


def _score(logits_NV: Tensor, targets_N: Tensor, temperature: float, entropy_gradient: bool) -> Tensor:
    """[log-probability of the target, entropy] per row, in float32."""
    logits_NV = logits_NV.float()
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logsumexp_N = logits_NV.logsumexp(-1)
    logprobs_N = logits_NV.gather(-1, targets_N[:, None])[:, 0] - logsumexp_N
    with nullcontext() if entropy_gradient else torch.no_grad():
        probabilities_NV = (logits_NV - logsumexp_N[:, None]).exp_()
        entropy_N = logsumexp_N - torch.linalg.vecdot(probabilities_NV, logits_NV)
    return torch.stack((logprobs_N, entropy_N), -1)


def _spread(values_N2: Tensor, wanted: Tensor) -> Tensor:
    """Values at the indices of their tokens, 0 elsewhere: [B, T, 2]."""
    batch, tokens = wanted.shape
    spread = values_N2.new_zeros(batch, tokens, 2).masked_scatter(wanted[..., None], values_N2)
    return F.pad(spread, (0, 0, 1, 0))
