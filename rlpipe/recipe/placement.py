"""Whether engines have GPUs of their own, or those of the policy."""

from typing import Annotated, Literal

from pydantic import Field

from rlpipe.recipe.critic import Critic
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.run import Run

Placement = Annotated[
    Literal["split", "colocated"],
    Field(
        description="`split` gives engines and training roles GPUs of their own. `colocated` has the engines live on "
        "the GPUs of the policy's ranks, in processes of their own: they sleep while training runs, whose optimizer "
        "states, gradients and weights lie in host memory while they generate."
    ),
]


def check_colocated(run: Run, train: PolicyTraining, critic: Critic, rollout: Rollout) -> None:
    """Raises ValueError where engines cannot take turns with the policy on its GPUs."""
    if run.max_staleness:
        raise ValueError(
            f"run.max_staleness={run.max_staleness} samples while the policy trains, and with placement=colocated "
            "engines sleep then; set max_staleness to 0, or placement to split"
        )
    if critic.share == "base":
        raise ValueError(
            "critic.share=base: with placement=colocated policy and critic leave the GPU to an engine, each by itself, "
            "and the base model that both stand on would go with the first; set critic.share to policy"
        )
    if rollout.min_engines is not None or rollout.nodes != "pack":
        raise ValueError(
            "rollout.min_engines and rollout.nodes are for engines with places of their own, and with "
            "placement=colocated they are where the policy is; leave both out"
        )
    served = rollout.engines * rollout.tensor_parallel
    if served != train.ranks:
        raise ValueError(
            f"placement=colocated puts one part of an engine on the GPU of each of the policy's ranks: "
            f"rollout.engines={rollout.engines} x rollout.tensor_parallel={rollout.tensor_parallel} is {served}, and "
            f"train.ranks={train.ranks}; make them equal"
        )
    if rollout.resources.gpus != "auto":
        raise ValueError(
            f"rollout.resources.gpus={rollout.resources.gpus:g}: with placement=colocated engines reserve no GPUs, as "
            "they are on those of the policy; leave it out (train.resources.gpus says what is reserved)"
        )
    if train.resources.gpus not in ("auto", 0, 1):
        raise ValueError(
            f"train.resources.gpus={train.resources.gpus:g}: with placement=colocated each rank shares one whole GPU "
            "with an engine; leave it out (0 keeps both on the CPU)"
        )
