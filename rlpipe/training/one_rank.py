"""The training state that several ranks wrote, as one rank goes on from it.

Weights are whole in what DeepSpeed writes up to ZeRO-2, and AdamW's means are cut into as many pieces as there were
ranks: end to end they are those of one rank. Under ZeRO-3 each parameter is cut by itself, and 8-bit means are
quantised in blocks that do not meet at the cuts; both are left to ranks of the same number.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from rlpipe.training.checkpoint import TAG, CheckpointMismatch, tensors_only

_PIECE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_ALIGNED = 2
"""Elements: DeepSpeed fills the flat tensor of a parameter group up to a multiple of this for each rank."""


def as_one_rank(source: Path, target: Path) -> None:
    """Write what `checkpoint.load_state` of one rank takes into `target`, from a role's folder that any number of ranks
    wrote. Raises `CheckpointMismatch` where that cannot be done; the message says why."""
    with tensors_only():
        _write_as_one_rank(source, target)


def _write_as_one_rank(source: Path, target: Path) -> None:
    folder = source / TAG
    if list(folder.glob("*zero_pp_rank_*_model_states.pt")):
        raise CheckpointMismatch(f"{source} is of ZeRO-3, which cuts every parameter into a piece for each rank")
    (target / TAG).mkdir(parents=True)
    model = _read(folder / "mp_rank_00_model_states.pt")
    torch.save(model | {"dp_world_size": 1}, target / TAG / "mp_rank_00_model_states.pt")
    if pieces := sorted(folder.glob("*_optim_states.pt"), key=_rank_of):
        name = _PIECE.sub("zero_pp_rank_0_mp_rank_00_optim_states.pt", pieces[0].name)
        torch.save(_joined([_read(piece) for piece in pieces], source), target / TAG / name)
    [random] = source.glob("random-0-of-*.pt")
    shutil.copyfile(random, target / "random-0-of-1.pt")


def _rank_of(piece: Path) -> int:
    return int(_PIECE.search(piece.name)[1])


def _read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True, map_location="cpu")


def _joined(pieces: list[dict[str, Any]], source: Path) -> dict[str, Any]:
    """What DeepSpeed's optimizer of one rank would have written."""
    states = [piece["optimizer_state_dict"] for piece in pieces]
    first, base = states[0], states[0]["base_optimizer_state"]
    padding = [[state["group_paddings"][group] for state in states] for group in range(len(base["param_groups"]))]
    optimizer = {
        group: {
            name: _end_to_end([s["base_optimizer_state"]["state"][group][name] for s in states], padding[group], source)
            for name in values
        }
        for group, values in base["state"].items()
    }
    groups = range(len(first["single_partition_of_fp32_groups"]))
    weights = [torch.cat([_weights(state, group) for state in states]) for group in groups]
    whole = first | {
        "base_optimizer_state": base | {"state": optimizer},
        "single_partition_of_fp32_groups": weights,
        "group_paddings": [-weight.numel() % _ALIGNED for weight in weights],
        "partition_count": [1 for _ in first["partition_count"]],
    }
    return pieces[0] | {"optimizer_state_dict": whole}


def _weights(state: dict[str, Any], group: int) -> torch.Tensor:
    """A rank's piece without what fills it up. DeepSpeed's ZeRO-1 and 2 leave that out, its bfloat16 optimizer does
    not: the piece is then as long as AdamW's means of it, which are always filled up."""
    piece, filled = state["single_partition_of_fp32_groups"][group], state["group_paddings"][group]
    means = state["base_optimizer_state"]["state"][group].values()
    filled_up = any(torch.is_tensor(mean) and mean.numel() == piece.numel() for mean in means)
    return piece[: piece.numel() - filled] if filled_up else piece


def _end_to_end(parts: list[Any], padding: list[int], source: Path) -> Any:
    """AdamW's mean of a parameter group; its step count is a single number, the same everywhere."""
    if not torch.is_tensor(parts[0]) or parts[0].dim() == 0:
        return parts[0]
    if parts[0].dtype == torch.uint8:
        raise CheckpointMismatch(f"{source} has AdamW's means in 8 bits, in blocks that were cut for each rank")
    flat = torch.cat([part[: part.numel() - filled] for part, filled in zip(parts, padding, strict=True)])
    return torch.nn.functional.pad(flat, (0, -flat.numel() % _ALIGNED))
