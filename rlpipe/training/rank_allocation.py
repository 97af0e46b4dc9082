"""AdaLoRA in training (Zhang et al. 2023, arXiv 2303.10512): PEFT's allocator of ranks, on whole float32 tensors."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from rlpipe.models import adapters
from rlpipe.training import masters

if TYPE_CHECKING:
    from peft import PeftModel

_SEEN = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""PEFT's names of the sensitivities of the last step, and of the two running means."""


class RankAllocation:
    """Around each optimizer step: pulls A and B towards orthogonality before it, and afterwards lets PEFT judge the
    singular values and set those to 0 for which there is no budget.

    PEFT adds that pull to the loss of the model's forward pass, which TRL does not use; and what it writes into
    parameters is lost in the next step where ZeRO keeps float32 copies of them.
    """

    def __init__(self, model: "PeftModel") -> None:
        self._tuner = model.base_model
        self._weight = model.peft_config[adapters.NAME].orth_reg_weight
        self._gradients: dict[str, torch.Tensor] = {}
        self._step = 0

    def before_step(self) -> None:
        """Collective. See `masters.AroundSteps`."""
        self._step += 1
        pull = self._pull() if self._weight else {}
        for name, parameter in self._own():
            gradient = masters.gradient(parameter)
            if name in pull:
                masters.set_gradient(parameter, gradient.add_(pull[name]))
            self._gradients[name] = gradient

    def after_step(self) -> None:
        """Collective. See `masters.AroundSteps`."""
        from peft import AdaLoraModel

        copies = {name: torch.nn.Parameter(masters.value(parameter)) for name, parameter in self._own()}
        for name, copy in copies.items():
            copy.grad = self._gradients.pop(name)
        stand_in = SimpleNamespace(
            model=SimpleNamespace(named_parameters=copies.items),
            peft_config=self._tuner.peft_config,
            trainable_adapter_name=adapters.NAME,
            rankallocator=self._tuner.rankallocator,
        )
        AdaLoraModel.update_and_allocate(stand_in, self._step)
        for name, parameter in self._own():
            if ".lora_E." in name:
                masters.set_value(parameter, copies[name].detach())

    def state(self) -> dict[str, Any]:
        """See `masters.AroundSteps`: what PEFT's allocator has seen and decided."""
        pattern = self._tuner.peft_config[adapters.NAME].rank_pattern
        seen = {name: getattr(self._tuner.rankallocator, name) for name in _SEEN}
        return {"step": self._step, "rank_pattern": pattern, "seen": seen}

    def load(self, state: dict[str, Any]) -> None:
        """See `masters.AroundSteps`."""
        self._step = state["step"]
        self._tuner.peft_config[adapters.NAME].rank_pattern = state["rank_pattern"]
        device = next(parameter.device for _, parameter in self._own())
        for what, values in state["seen"].items():
            setattr(self._tuner.rankallocator, what, {name: value.to(device) for name, value in values.items()})

    def _own(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self._tuner.model.named_parameters() if ".lora_" in name)

    def _pull(self) -> dict[str, torch.Tensor]:
        matrices = {name: masters.value(p).requires_grad_() for name, p in self._own() if ".lora_E." not in name}
        (self._weight * orthogonality(matrices.items())).backward()
        return {name: matrix.grad for name, matrix in matrices.items()}


def orthogonality(matrices: Iterable[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """How far A [r, in] and B [out, r] are from orthonormal, in the mean over all of them:

        mean( |A A^T - I|_F, ..., |B^T B - I|_F, ... )

    (eq. 4, with the norms of PEFT's implementation, not squared.)
    """
    squares = [p @ p.T if ".lora_A." in name else p.T @ p for name, p in matrices]
    return torch.stack(
        [torch.linalg.norm(square - torch.eye(len(square), device=square.device)) for square in squares]
    ).mean()
