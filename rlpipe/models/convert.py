"""Weights that `torch.save` wrote, as safetensors. They are opened without running any code that is in them."""

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.models.folders import pickled_weights
from rlpipe.models.load import ModelError

if TYPE_CHECKING:
    import torch

_INDEX, _WHOLE, _ADAPTER = "pytorch_model.bin.index.json", "pytorch_model.bin", "adapter_model.bin"


def convert(folder: Path, out: Path) -> None:
    """Writes the weights of `folder`, a model's or an adapter's, into `out`. Raises `ModelError` for a file that holds
    more than tensors, and for names that transformers and PEFT do not give."""
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    if (folder / _ADAPTER).is_file():
        tensors = {name: tensor.contiguous() for name, tensor in _read(folder / _ADAPTER).items()}
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        return
    tensors = {name: tensor for file in _parts(folder) for name, tensor in _read(file).items()}
    # Of a tied pair the embedding stays: engines look for it.
    save_torch_state_dict(tensors, out, shared_tensors_to_discard=["lm_head.weight"])


def _parts(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(name).name for name in sorted(set(names))]
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    found = ", ".join(pickled_weights(folder)) or "none"
    raise ModelError(f"{folder} has no {_WHOLE} and no {_INDEX} to convert (weight files: {found})")


def _read(file: Path) -> "dict[str, torch.Tensor]":
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{file} is missing, which the index beside it names") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(f"{file} holds more than tensors, or is damaged; it has not been opened further") from error
