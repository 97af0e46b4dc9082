"""Sequence classifiers with one output: reward models.

The score of a sequence is the head's output at its last token that is not padding. transformers tells padding by the
token id, so the configuration must name it, and a sequence must not end with it; where the tokenizer pads with its
end-of-sequence token, the score is read at the token before.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rlpipe.models.load import ModelError, load_transformer
from rlpipe.models.quiet import quiet_libraries
from rlpipe.recipe.model import Model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_classifier(
    spec: Model,
    path: str,
    dtype: "torch.dtype",
    pad_token_id: int | None = None,
    head_seed: int | None = None,
    head_scale: float = 1.0,
) -> "PreTrainedModel":
    """The reward model at `path`, on the CPU.

    With `head_seed`, a causal language model will do, too: its output head gives way to a score head whose weights
    that seed decides alone, whatever the ZeRO stage: N(0, initializer_range), as transformers draws it, times
    `head_scale`. `pad_token_id` is written into the configuration of a model to be trained, and into one that names
    none. Raises `ModelError` where a weight would be random otherwise.
    """
    quiet_libraries()
    from transformers import AutoModelForSequenceClassification

    model, info = load_transformer(AutoModelForSequenceClassification, spec, path, dtype, num_labels=1)
    _check_complete(info, path, may_lack_head=head_seed is not None)
    if "score.weight" in info["missing_keys"]:
        _new_head(model, head_seed, head_scale)
    config = model.config.get_text_config()
    if pad_token_id is not None and (config.pad_token_id is None or head_seed is not None):
        config.pad_token_id = pad_token_id
    return model


def _check_complete(info: dict[str, list], path: str, may_lack_head: bool) -> None:
    absent = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]} - {"score.weight"}))
    if absent:
        raise ModelError(
            f"model.path: {len(absent)} weights of {path} are missing or misshapen (first: {absent[0]}) and would be "
            "random. It does not hold the model that its config.json describes, or not one with a single score."
        )
    if "score.weight" in info["missing_keys"] and not may_lack_head:
        raise ModelError(
            f"{path} is no reward model: it has no score head. Train one from it with `task: reward_model`, and give "
            "the folder that makes."
        )


def _new_head(model: "PreTrainedModel", seed: int, scale: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config()
    drawn = torch.randn(1, config.hidden_size, generator=generator) * config.initializer_range * scale
    with _gathered(model.score.weight), torch.no_grad():
        model.score.weight.copy_(drawn)


def _gathered(parameter: "torch.nn.Parameter") -> AbstractContextManager[None]:
    """ZeRO-3 has split it while it was made; what rank 0 writes into it here, all ranks get."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
