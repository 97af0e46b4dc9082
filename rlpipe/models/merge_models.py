"""One model of several of the same architecture, tensor by tensor: no more than the result is ever in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rlpipe.models.agreement import check_architectures, check_vocabularies
from rlpipe.models.combine import Tensors
from rlpipe.models.folders import appearing, copy_files, copy_tokenizer
from rlpipe.models.load import ModelError
from rlpipe.models.quiet import quiet_libraries


def merge_models(folders: Sequence[Path], combine: Callable[[Tensors], torch.Tensor], out: Path) -> None:
    """Writes a Hugging Face folder with the first model's configuration, tokenizer and precision.

    `combine` gets each weight of all models in float32. Raises `ModelError` for models that do not fit together.
    """
    quiet_libraries()
    from huggingface_hub import save_torch_state_dict

    first, *others = folders
    for other in others:
        check_architectures(first, other)
        check_vocabularies(first, other)
    sources = [_Weights(folder) for folder in folders]
    for other in sources[1:]:
        sources[0].check_same_shapes(other)
    with appearing(out) as partial:
        copy_files(first, ["config.json"], partial)
        copy_tokenizer(str(first), partial)
        save_torch_state_dict({name: _combined(name, sources, combine) for name in sources[0].files}, str(partial))


class _Weights:
    """The tensors of a folder by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)
        if not self.files:
            raise ModelError(f"{folder} has no *.safetensors; `rlpipe export {folder} --out DIR` writes them")

    def read(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.files[name], "pt") as tensors:
            return tensors.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        from safetensors import safe_open

        if name not in self.files:
            return None
        with safe_open(self.files[name], "pt") as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    def check_same_shapes(self, other: "_Weights") -> None:
        for name in sorted(self.files.keys() | other.files.keys()):
            ours, theirs = self.shape(name), other.shape(name)
            if ours != theirs:
                raise ModelError(
                    f"the weights differ: {name} is {_told(ours)} in {self.folder} and {_told(theirs)} in "
                    f"{other.folder}"
                )


def _combined(name: str, sources: Sequence[_Weights], combine: Callable[[Tensors], torch.Tensor]) -> torch.Tensor:
    tensors = [source.read(name) for source in sources]
    return combine([tensor.float() for tensor in tensors]).to(tensors[0].dtype)


def _told(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "a scalar"
