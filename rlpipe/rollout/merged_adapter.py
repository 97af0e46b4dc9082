"""An adapter served by the transformers engine: merged where it arrives, so that decoding costs what it costs without.

Only the adapter travels. The weights it adds to are kept a second time as they were, and every version is added to
those: taking the version before off again would leave its rounding behind. An adapter of another configuration than the
one before is put on anew.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from rlpipe.models.adapters import NAME
from rlpipe.weights.packing import unpack
from rlpipe.weights.payload import Payload, WeightsRejected

if TYPE_CHECKING:
    from peft import PeftModel


class MergedAdapter:
    """The adapter of a model, which it changes in place."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._adapted: PeftModel | None = None
        self._config: dict[str, Any] | None = None
        self._base: list[tuple[torch.Tensor, torch.Tensor]] = []
        """The weights that the adapter adds to, each beside a copy of what it was."""

    def take(self, payload: Payload) -> None:
        """Serve this version from now on. Raises `WeightsRejected` unless it is an adapter that has the tensors of its
        configuration."""
        from peft import set_peft_model_state_dict

        if payload.kind != "adapter" or payload.adapter_config is None:
            raise WeightsRejected(
                "this engine serves adapters on fixed weights; start it without lora_rank for full ones"
            )
        if self._adapted is not None and payload.adapter_config != self._config:
            self._take_off()
        if self._adapted is None:
            self._adapted = self._prepared(payload)
        self._check_fits(payload)
        self._adapted.unmerge_adapter()
        self._restore()
        set_peft_model_state_dict(self._adapted, dict(unpack(payload)))
        self._adapted.merge_adapter()

    def _take_off(self) -> None:
        """The model as it was before any adapter."""
        self._adapted.unmerge_adapter()
        self._restore()
        self._adapted.unload()
        self._adapted = None

    def _restore(self) -> None:
        for weight, original in self._base:
            weight.copy_(original)

    def _prepared(self, payload: Payload) -> "PeftModel":
        from peft import LoraConfig, PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._config = payload.adapter_config
        adapted = PeftModel(self._model, LoraConfig(**payload.adapter_config), NAME)
        layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
        weights = [layer.get_base_layer().weight for layer in layers]
        self._base = [(weight, weight.detach().clone()) for weight in weights]
        adapted.merge_adapter()  # so that there is one to take off when the first version comes
        return adapted

    def _check_fits(self, payload: Payload) -> None:
        from peft import get_peft_model_state_dict

        ours = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(self._adapted).items()}
        theirs = {entry.name: entry.shape for entry in payload.index}
        if ours != theirs:
            odd = sorted(name for name, _ in ours.items() ^ theirs.items())
            raise WeightsRejected(
                f"the adapter has other tensors than its configuration makes of this model: {odd[0]} and "
                f"{len(odd) - 1} more. Adapter and engine must be of the same base model."
            )
