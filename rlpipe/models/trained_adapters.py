"""Adapters out of folders, onto the model they were trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.models.agreement import check_vocabularies
from rlpipe.models.folders import adapter_settings
from rlpipe.models.load import ModelError, refuse_pickled
from rlpipe.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def recorded_base(folders: Sequence[Path]) -> str:
    """The model that the adapters say they were trained on. Raises `ModelError` if they name different ones."""
    bases = {folder: adapter_settings(folder).get("base_model_name_or_path") for folder in folders}
    first = folders[0]
    for folder, base in bases.items():
        if base != bases[first]:
            raise ModelError(
                f"the adapters have different bases: {first} was trained on {bases[first]}, {folder} on {base}; if "
                "these are the same weights, say where they are: --base FOLDER"
            )
    if not bases[first]:
        raise ModelError(f"{first}/adapter_config.json does not say what it was trained on: --base FOLDER")
    return bases[first]


def put_on(model: "PreTrainedModel", base: Path, folders: Sequence[Path]) -> "PeftModel":
    """The model with all adapters, called `name_of` their place; the first is active.

    Raises `ModelError` for an adapter that does not fit it: other shapes, modules that are not there, tensors that are
    missing, another vocabulary, weights that are no safetensors.
    """
    quiet_libraries()
    from peft import PeftModel

    import rlpipe.models.bottleneck  # noqa: F401  (makes PEFT know the kind)

    for folder in folders:
        refuse_pickled(folder)
        if adapter_settings(folder).get("task_type") not in ("CAUSAL_LM", None):
            raise ModelError(f"{folder} is an adapter for {adapter_settings(folder)['task_type']}, not for CAUSAL_LM")
        if has_tokenizer(folder):
            check_vocabularies(base, folder)
    try:
        adapted = PeftModel.from_pretrained(model, folders[0], adapter_name=name_of(0))
        for number, folder in enumerate(folders[1:], 1):
            adapted.load_adapter(folder, adapter_name=name_of(number))
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"an adapter does not fit {base}: {lines[1 if len(lines) > 1 else 0].strip()}") from error
    for number, folder in enumerate(folders):
        _check_complete(adapted, name_of(number), folder)
    return adapted


def name_of(place: int) -> str:
    """PEFT's name of an adapter. Not a bare number: PEFT takes names off keys, and `layers.0` would lose its own."""
    return f"adapter{place}"


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _check_complete(adapted: "PeftModel", name: str, folder: Path) -> None:
    """PEFT only warns of tensors that are missing, and ignores those it has no place for."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    expected = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False).keys()
    found = load_peft_weights(str(folder), device="cpu").keys()
    odd = sorted(key for key in expected ^ found if "embed_tokens" not in key and "lm_head" not in key)
    if odd:
        what = "lacks" if odd[0] in expected else "has, and the base model has no place for,"
        raise ModelError(f"{folder} does not fit: its file {what} {odd[0]} and {len(odd) - 1} more")
