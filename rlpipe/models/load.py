"""Loading tokenizers and models, with errors that say which recipe line to change."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlpipe.models.attention import resolve_attention
from rlpipe.models.folders import pickled_weights
from rlpipe.models.quiet import quiet_libraries
from rlpipe.recipe.model import Dtype, Model, PretrainedModel, RopeScaling, ScratchModel, quantization_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ModelError(ValueError):
    """A model or tokenizer that cannot be used; the message names the recipe line and the fix."""


def materialise(spec: Model, seed: int, directory: Path) -> str:
    """The path or hub id of the model a task starts from.

    A scratch model is built into `directory`. A model that gets another chat template or a longer context is put there
    too (its tokenizer or configuration changed, its other files as links), so that engines, training and results all
    have the same one. Raises `ModelError` for weights that are no safetensors, before anything else is made or started.
    """
    if isinstance(spec, PretrainedModel):
        refuse_pickled(Path(spec.path).expanduser())
    if isinstance(spec, ScratchModel):
        from rlpipe.models.scratch import build

        build(spec, seed, directory)
    elif spec.chat_template is None and spec.rope_scaling is None:
        return spec.path
    else:
        if spec.chat_template is not None:
            tokenizer = load_tokenizer(spec, spec.path)
            _override_template(tokenizer, Path(spec.chat_template).expanduser())
            tokenizer.save_pretrained(directory)
        if spec.rope_scaling is not None:
            _stretched(load_config(spec, spec.path), spec.rope_scaling).save_pretrained(directory)
        _link_the_rest(local_folder(spec), directory)
    return str(directory)


def load_tokenizer(spec: Model, path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the materialised model at `path`."""
    from transformers import AutoTokenizer

    options = _hub_options(spec)
    tokenizer = naming_the_line(path, "tokenizer", lambda: AutoTokenizer.from_pretrained(path, **options))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(spec: Model, path: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """The materialised model at `path` on the CPU."""
    quiet_libraries()
    from transformers import AutoModelForCausalLM

    model, info = load_transformer(AutoModelForCausalLM, spec, path, dtype)
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"model.path: {len(absent)} weights of {path} are missing or misshapen (first: {absent[0]}) and would be "
            "random. It does not hold the causal language model that its config.json describes."
        )
    return model


def load_transformer(kind: Any, spec: Model, path: str, dtype: "torch.dtype", **options: Any) -> tuple[Any, dict]:
    """A model of an auto class of transformers, and what was missing in the files."""
    from rlpipe.models import quantized

    attention = resolve_attention(spec.attn_implementation, dtype)
    options |= {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True} | _hub_options(spec)
    options |= quantized.options(quantization_of(spec), dtype) | safetensors_only(path)
    model, info = naming_the_line(path, "model", lambda: kind.from_pretrained(path, **options))
    _restore_frequencies(model)
    quantized.keep_trainable(model)
    return model, info


def _restore_frequencies(model: "PreTrainedModel") -> None:
    """Rotary frequencies in float32 again. Where ZeRO-3 splits a model while it is read, DeepSpeed makes bfloat16 of
    all that is computed meanwhile; engines have them in float32, and the further a position, the further off it would
    be."""
    import torch

    for module in model.modules():
        if hasattr(module, "inv_freq") and module.inv_freq.dtype != torch.float32:
            for name, buffer in type(module)(module.config).named_buffers(recurse=False):
                setattr(module, name, buffer.to(module.inv_freq.device))


_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Keys of configurations; the last two are of older kinds."""


def context_length(spec: Model, path: str) -> int:
    """The longest sequence in tokens that the model's configuration allows. Raises `ModelError` if it does not say."""
    config = load_config(spec, path).get_text_config()
    found = next((length for key in _LENGTHS if (length := getattr(config, key, None))), None)
    if found is None:
        raise ModelError(f"model.path: the configuration of {path} does not say how long a sequence may be.")
    return found


def load_config(spec: Model, path: str) -> "PreTrainedConfig":
    """The configuration of the model at `path`."""
    from transformers import AutoConfig

    options = _hub_options(spec)
    return naming_the_line(path, "configuration", lambda: AutoConfig.from_pretrained(path, **options))


def resolve_dtype(dtype: Dtype) -> "torch.dtype":
    """`auto` is bfloat16 where this process has a GPU, and float32, which is faster there, on CPU."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, dtype)


def _hub_options(spec: Model) -> dict[str, Any]:
    if isinstance(spec, ScratchModel):
        return {}
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


def refuse_pickled(folder: Path) -> None:
    """Raises `ModelError` for a folder with weights that may run code when they are opened."""
    if pickled := pickled_weights(folder):
        raise ModelError(
            f"model.path: the weights in {folder} are a pickle ({pickled[0]}), which may run code when it is opened; "
            f"only safetensors are read. {_CONVERT.format(source=folder)}"
        )


_CONVERT = "To convert them without running any code: `rlpipe export {source} --out FOLDER`, then give that FOLDER."


def safetensors_only(path: str) -> dict[str, Any]:
    """What `from_pretrained` is given so that it opens no pickle. Raises `ModelError` where there is nothing else."""
    # Else transformers may ask a service to convert a hub model, and load what comes back from somebody's pull request.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    refuse_pickled(Path(path).expanduser())
    return {"use_safetensors": True}


def naming_the_line(path: str, what: str, load: Callable[[], T]) -> T:
    """What `load` gives; what it raises as a `ModelError` with the recipe line and the fix."""
    if Path(path).expanduser().is_absolute() and not Path(path).expanduser().is_dir():
        raise ModelError(f"model.path: there is no folder {path}.")
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"model.path: cannot load the {what} of {path}: {_reason(error)}\n{_fix(path, str(error))}"
        ) from error


def _reason(error: Exception) -> str:
    """Its first line; all of them where that only begins a list."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]


def _fix(path: str, reason: str) -> str:
    if "trust_remote_code" in reason:
        return (
            "Its Python code has not been run. Read it, and if you trust it, say so in the recipe of every task that "
            "starts from this model: model.trust_remote_code=true. Commands without a recipe never run such code."
        )
    if "use_safetensors=True" in reason:
        return f"Its weights are no safetensors, and nothing else is read. {_CONVERT.format(source=path)}"
    if Path(path).expanduser().is_dir():
        return f"{_FOLDER}; this one lacks something. Give another with model.path=FOLDER."
    return (
        f"There is no folder `{path}` here, so it was taken for a hub id: check the name, model.revision, the network, "
        f"and for gated models `hf auth login`. {_FOLDER}, which needs no network: model.path=FOLDER."
    )


_FOLDER = "A model's folder holds config.json, tokenizer files and weights (*.safetensors)"


def local_folder(spec: PretrainedModel) -> Path:
    """The model's files on this machine; those of a hub id are downloaded."""
    if Path(spec.path).expanduser().is_dir():
        return Path(spec.path).expanduser().resolve()
    from huggingface_hub import snapshot_download

    return Path(naming_the_line(spec.path, "files", lambda: snapshot_download(spec.path, revision=spec.revision)))


def _stretched(config: "PreTrainedConfig", scaling: RopeScaling) -> "PreTrainedConfig":
    """The configuration with a context `scaling.factor` times as long."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if rope is None or rope.get("rope_type", "default") != "default":
        has = "no rotary positions" if rope is None else f"rope_type {rope.get('rope_type')} already"
        raise ModelError(f"model.rope_scaling: the model has {has}; leave the section out, or take another model.")
    original = text.max_position_embeddings
    text.rope_parameters = {**rope, **scaling.model_dump(), "original_max_position_embeddings": original}
    text.max_position_embeddings = int(original * scaling.factor)
    return config


def _link_the_rest(source: Path, directory: Path) -> None:
    for file in source.iterdir():
        if not (directory / file.name).exists():
            (directory / file.name).symlink_to(file)


def _override_template(tokenizer: "PreTrainedTokenizerBase", file: Path) -> None:
    try:
        template = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"model.chat_template: cannot read {file}: {error.strerror}.") from None
    if tokenizer.chat_template is not None and tokenizer.chat_template.strip() != template.strip():
        logger.warning(
            "model.chat_template (%s) differs from the template stored with %s, which the model was trained with: "
            "prompts look unfamiliar to it until it has been fine-tuned on them.",
            file,
            tokenizer.name_or_path,
        )
    tokenizer.chat_template = template
