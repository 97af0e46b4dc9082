"""Whole float32 values and gradients of parameters that a DeepSpeed engine trains, whatever its ZeRO stage.

All of it is collective: every rank calls it for the same parameters in the same order.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from rlpipe.training.export import is_split


class AroundSteps(Protocol):
    """What is to be done around each optimizer step of an engine."""

    def before_step(self) -> None:
        """The gradients are those of the whole batch, not clipped yet."""

    def after_step(self) -> None:
        """The parameters have moved, and the gradients are gone."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold besides the engine's own state, for `torch.save`; the same on all ranks."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, whose tensors are on the CPU."""


def watch_steps(engine: Any, around: AroundSteps) -> None:
    """From now on the engine's optimizer steps are surrounded. DeepSpeed has no hook of its own there, and accelerate
    calls `engine.step` right after the backward pass, where no callback of a trainer comes in between."""
    step: Callable[..., None] = engine.step

    def surrounded(*args: Any, **kwargs: Any) -> None:
        around.before_step()
        step(*args, **kwargs)
        around.after_step()

    engine.step = surrounded


def value(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of the parameter as the optimizer has it."""
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)  # stage 0 has none
    return (parameter if master is None else master).detach().to(torch.float32, copy=True)


def set_value(parameter: torch.nn.Parameter, new: torch.Tensor) -> None:
    """In what the optimizer has, and in what computes."""
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(parameter, new)
    with rewritten(parameter):
        parameter.data.copy_(new)


def rewritten(parameter: torch.nn.Parameter) -> AbstractContextManager[None]:
    """The parameter that computes is whole within the block, and stays what the block makes of it: the same on every
    rank."""
    if not is_split(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of what the next step will take, averaged over the ranks; between the backward pass and the step."""
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter).to(torch.float32, copy=True)


def set_gradient(parameter: torch.nn.Parameter, new: torch.Tensor) -> None:
    """What the next step will take."""
    from deepspeed.utils import safe_set_full_grad

    safe_set_full_grad(parameter, new)
