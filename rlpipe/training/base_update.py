"""Delta-LoRA in training (Zi et al. 2023, arXiv 2309.02411). Ours: PEFT has none."""

from typing import TYPE_CHECKING

import torch

from rlpipe.models import adapters
from rlpipe.models.load import ModelError
from rlpipe.training.adapter_export import Departure, adapter_state

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer


class BaseUpdate:
    """Around each optimizer step t after the first K = `start_step`, for the weights W [out, in] of each adapted layer:

        W <- W + ratio * scale * (B_t A_t - B_(t-1) A_(t-1))

    Every rank moves its own whole W, by the same. Raises `ModelError` where W is not in float32, which would round away
    what a single step changes, and for layers that are not linear.
    """

    def __init__(self, model: "PeftModel", ratio: float, start_step: int) -> None:
        self._model, self._ratio, self._start = model, ratio, start_step
        self._layers = _linear_layers(model)
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._initial: dict[str, torch.Tensor] | None = None
        self._step = 0

    def before_step(self) -> None:
        """See `masters.AroundSteps`."""
        self._step += 1
        if self._step == self._start + 1:
            self._initial = adapter_state(self._model)
        if self._step > self._start:
            self._before = [tuple(matrix.detach().clone() for matrix in _matrices(layer)) for layer in self._layers]

    @torch.no_grad()
    def after_step(self) -> None:
        """See `masters.AroundSteps`."""
        for layer, (before_A, before_B) in zip(self._layers, self._before, strict=False):
            now_A, now_B = _matrices(layer)
            change = now_B @ now_A - before_B @ before_A
            layer.get_base_layer().weight += self._ratio * layer.scaling[adapters.NAME] * change
        self._before = []

    def departure(self) -> Departure | None:
        """The sum of all steps, from K on: (1 + ratio) B A - ratio * B_K A_K beside the weights as they were."""
        if self._initial is None:
            return None
        return Departure(self._initial, now=1 + self._ratio, then=self._ratio)


def _linear_layers(model: "PeftModel") -> "list[LoraLayer]":
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        if not isinstance(base, torch.nn.Linear):
            raise ModelError(
                f"adapter.target_modules: Delta-LoRA moves linear layers, and one is {type(base).__name__}"
            )
        if base.weight.dtype != torch.float32:
            raise ModelError(
                f"adapter.kind=delta_lora adds small changes to weights, which are {base.weight.dtype} here and would "
                "round them away; set model.dtype=float32, or take adapter.kind=lora"
            )
    return layers


def _matrices(layer: "LoraLayer") -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r]."""
    return layer.lora_A[adapters.NAME].weight, layer.lora_B[adapters.NAME].weight
