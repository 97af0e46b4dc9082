"""Delta-LoRA in training (Zi et al. 2023, arXiv 2309.02411). Ours: PEFT has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlpipe.models import adapters
from rlpipe.models.load import ModelError
from rlpipe.training import masters
from rlpipe.training.adapter_export import Departure, adapter_state
from rlpipe.training.export import whole

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer


class BaseUpdate:
    """Around each optimizer step t after the first K = `start_step`, for the weights W [out, in] of each adapted layer:

        W <- W + ratio * scale * (B_t A_t - B_(t-1) A_(t-1))

    Every rank moves its own whole W, or with ZeRO-3 its share of it, by the same. Raises `ModelError` where W
    is not in float32, which would round away what a single step changes, and for layers that are not linear.
    """

    def __init__(self, model: "PeftModel", ratio: float, start_step: int) -> None:
        self._model, self._ratio, self._start = model, ratio, start_step
        self._layers = _linear_layers(model)
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._initial: dict[str, torch.Tensor] | None = None
        self._step = 0

    def before_step(self) -> None:
        """Collective. See `masters.AroundSteps`."""
        self._step += 1
        if self._step == self._start + 1:
            self._initial = adapter_state(self._model)
        if self._step > self._start:
            self._before = [_matrices(layer) for layer in self._layers]

    @torch.no_grad()
    def after_step(self) -> None:
        """Collective. See `masters.AroundSteps`."""
        for layer, (before_A, before_B) in zip(self._layers, self._before, strict=False):
            now_A, now_B = _matrices(layer)
            change = self._ratio * layer.scaling[adapters.NAME] * (now_B @ now_A - before_B @ before_A)
            with _changing(layer) as weight:
                weight += change
        self._before = []

    def departure(self) -> Departure | None:
        """The sum of all steps, from K on: (1 + ratio) B A - ratio * B_K A_K beside the weights as they were."""
        if self._initial is None:
            return None
        return Departure(self._initial, now=1 + self._ratio, then=self._ratio)

    def state(self) -> dict[str, Any]:
        """Collective. See `masters.AroundSteps`. It holds the weights themselves, which no adapter's checkpoint does:
        a sum of steps does not come out bit for bit as one product."""
        weights = []
        for layer in self._layers:
            weight = layer.get_base_layer().weight
            with whole([weight]):
                weights.append(weight.detach().to("cpu", copy=True))
        return {"step": self._step, "initial": self._initial, "weights": weights}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Collective. See `masters.AroundSteps`."""
        self._step, self._initial = state["step"], state["initial"]
        for layer, kept in zip(self._layers, state["weights"], strict=True):
            with _changing(layer) as weight:
                weight.copy_(kept)


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
    """Copies of A [r, in] and B [out, r]."""
    return masters.value(layer.lora_A[adapters.NAME].weight), masters.value(layer.lora_B[adapters.NAME].weight)


@contextmanager
def _changing(layer: "LoraLayer") -> Iterator[torch.Tensor]:
    """The layer's whole W [out, in], of which every rank keeps what the block makes of it."""
    parameter = layer.get_base_layer().weight
    with masters.rewritten(parameter):
        yield parameter.data
