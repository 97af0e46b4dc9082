"""A rank's training state in a directory, written and read by DeepSpeed.

What is frozen, as under an adapter, is not in it: it is where the model was loaded from. Its files, pickles, are opened
without running any code.
"""

import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpipe.training.distributed import Rank

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

TAG = "deepspeed"
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: `torch.load` does as with `weights_only=True`, whatever its caller says."""
_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Its opposite; torch raises where both are set."""


class CheckpointMismatch(RuntimeError):
    """A checkpoint that this run cannot go on from; the message says why."""


def save_state(engine: "DeepSpeedEngine", directory: Path, rank: Rank) -> None:
    """Collective; into a directory on storage that all ranks share."""
    directory.mkdir(parents=True, exist_ok=True)
    with _leaving_out_frozen(engine.module):
        engine.save_checkpoint(str(directory), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    torch.save(_random_state(), directory / f"random-{rank.index}-of-{rank.world}.pt")


def load_state(engine: "DeepSpeedEngine", directory: Path, rank: Rank) -> None:
    """Collective, into an engine of the model that the frozen weights come from. Raises `CheckpointMismatch` if another
    number of ranks wrote it, or a role that trains other parameters."""
    file = directory / f"random-{rank.index}-of-{rank.world}.pt"
    if not file.is_file():
        found = ", ".join(sorted(f.name for f in directory.glob("random-*"))) or "none"
        raise CheckpointMismatch(
            f"{directory} has no {file.name} (found: {found}): go on with the train.ranks that wrote it"
        )
    with tensors_only():
        engine.load_checkpoint(str(directory), tag=TAG, custom_load_fn=_load_trained)
    _set_random_state(torch.load(file, weights_only=True))


@contextmanager
def tensors_only() -> Iterator[None]:
    """Within the block `torch.load` opens tensors, plain values and what DeepSpeed keeps beside them, and nothing else:
    DeepSpeed itself would open any pickle. Raises `CheckpointMismatch` for a file that holds more."""
    before = {name: os.environ.pop(name) for name in (_TENSORS_ONLY, _ANYTHING) if name in os.environ}
    os.environ[_TENSORS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(_kept_by_deepspeed()):
            yield
    except pickle.UnpicklingError as error:
        raise CheckpointMismatch(
            "a file of the checkpoint holds more than training writes, and has not been opened further: somebody has "
            f"changed it, or another version of DeepSpeed wrote it ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    finally:
        del os.environ[_TENSORS_ONLY]
        os.environ.update(before)


def _kept_by_deepspeed() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def _leaving_out_frozen(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model's `state_dict` has no frozen parameters. DeepSpeed leaves them out by their first name
    alone: the second one of a tied embedding would stay, and what a quantised weight has beside itself."""

    def leave_out(module: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: object) -> None:
        for key in [key for key in state if _is_of(key.removeprefix(prefix), frozen)]:
            del state[key]

    frozen = _frozen(model)
    handle = model.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def _load_trained(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    missing, unexpected = dst.load_state_dict(src, strict=False)
    frozen = _frozen(dst)
    odd = unexpected + [key for key in missing if not _is_of(key, frozen)]
    if odd:
        raise CheckpointMismatch(
            f"the checkpoint and this role do not train the same parameters: {odd[0]} and {len(odd) - 1} more are only "
            "in one of them. Go on with the model and adapter that wrote it"
        )


def _frozen(model: torch.nn.Module) -> set[str]:
    """By every name."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _is_of(key: str, names: set[str]) -> bool:
    """Whether an entry of a state is one of these parameters, or belongs to one: `weight.absmax`,
    `weight.quant_state.bitsandbytes__nf4`."""
    words = key.split(".")
    return any(".".join(words[:count]) in names for count in range(1, len(words) + 1))


def _random_state() -> dict[str, Any]:
    """Of Python, NumPy and torch, in types that torch loads without running code."""
    kind, keys, *place = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *place),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
