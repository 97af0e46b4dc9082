"""A rank's training state in a directory, written and read by DeepSpeed."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlpipe.models.quantized import is_packed
from rlpipe.training.distributed import Rank

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_TAG = "deepspeed"


class CheckpointMismatch(RuntimeError):
    """A checkpoint that this run cannot go on from; the message says why."""


def save_state(engine: "DeepSpeedEngine", directory: Path, rank: Rank) -> None:
    """Collective; into a directory on storage that all ranks share."""
    directory.mkdir(parents=True, exist_ok=True)
    engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False, exclude_frozen_parameters=_has_packed(engine))
    torch.save(_random_state(), directory / f"random-{rank.index}-of-{rank.world}.pt")


def load_state(engine: "DeepSpeedEngine", directory: Path, rank: Rank) -> None:
    """Collective. Raises `CheckpointMismatch` if another number of ranks wrote it."""
    file = directory / f"random-{rank.index}-of-{rank.world}.pt"
    if not file.is_file():
        found = ", ".join(sorted(f.name for f in directory.glob("random-*"))) or "none"
        raise CheckpointMismatch(
            f"{directory} has no {file.name} (found: {found}): go on with the train.ranks that wrote it"
        )
    engine.load_checkpoint(str(directory), tag=_TAG, load_module_strict=not _has_packed(engine))
    _set_random_state(torch.load(file, weights_only=True))


def _has_packed(engine: "DeepSpeedEngine") -> bool:
    """Whether there are 4-bit weights, which are frozen and come out of the model's files again: bitsandbytes writes
    their scales as entries that torch has no place for when it reads them."""
    return any(is_packed(parameter) for parameter in engine.module.parameters())


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
