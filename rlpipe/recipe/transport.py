"""How weights get from the policy to its engines."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rlpipe.recipe.tasks import RlRecipe

Direct = Literal["nccl", "ipc"]
_PLACE: dict[Direct, str] = {"nccl": "split", "ipc": "colocated"}
"""Where each can work: NCCL takes no GPU twice, and memory of another process can only be opened on the same GPU."""


def check_transport(recipe: "RlRecipe") -> None:
    """Raises ValueError for a transport that this recipe leaves no way."""
    wanted = recipe.publishing.transport
    if wanted in ("auto", "object_store"):
        return
    if _PLACE[wanted] != recipe.placement:
        other = "ipc" if recipe.placement == "colocated" else "nccl"
        raise ValueError(
            f"publishing.transport={wanted} is for placement={_PLACE[wanted]}, and here it is {recipe.placement}; set "
            f"publishing.transport to {other}, or leave it out"
        )
    if obstacle := _obstacle(recipe):
        raise ValueError(f"publishing.transport={wanted}: {obstacle}; set publishing.transport to object_store")


def direct_transport(recipe: "RlRecipe") -> Direct | None:
    """How weights go from GPU to GPU, should policy and engines be on GPUs; None where they go over host memory."""
    wanted = recipe.publishing.transport
    if wanted == "auto":
        return None if _obstacle(recipe) else ("ipc" if recipe.placement == "colocated" else "nccl")
    return None if wanted == "object_store" else wanted


def _obstacle(recipe: "RlRecipe") -> str:
    """Why weights cannot go from GPU to GPU; empty where they can."""
    if recipe.rollout.engine != "vllm":
        return f"rollout.engine={recipe.rollout.engine} takes weights from host memory only"
    if recipe.adapter is not None:
        return "adapters, served or merged, go over host memory"
    for key, gpus in (("train", recipe.train.resources.gpus), ("rollout", recipe.rollout.resources.gpus)):
        if gpus != "auto" and gpus < 1:
            return f"policy and engines need whole GPUs, and {key}.resources.gpus={gpus:g} is none"
    return ""
