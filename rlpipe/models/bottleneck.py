"""Bottleneck layers (Houlsby et al. 2019, arXiv 1902.00751) as a kind of PEFT's, which has none: ours.

To import this module makes PEFT know the kind: its models, configurations and files are PEFT's own from then on.
Axis names: B batch, T token, D width of the model, W width of the bottleneck.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from transformers.activations import ACT2FN

from rlpipe.recipe.bottleneck import BottleneckAdapter, width

KIND = "BOTTLENECK"
"""`peft_type` in its files. A plain text: PEFT's own kinds are members of an enumeration, which are texts as well."""
BEHIND = {"pfeiffer": ["down_proj"], "houlsby": ["o_proj", "down_proj"]}
"""Last layers of the sublayers, in the Llama and Qwen families."""


@dataclass
class BottleneckConfig(PeftConfig):
    """As PEFT writes it into `adapter_config.json`."""

    target_modules: list[str] = field(default_factory=list)
    """Linear layers whose outputs, BTD, the bottlenecks stand behind."""
    reduction_factor: int = 16
    non_linearity: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = KIND


class BottleneckLayer(torch.nn.Module, BaseTunerLayer):
    """A linear layer, and behind it y + W_up f(W_down y + b_down) + b_up. W_up and b_up begin as 0, so that nothing
    changes at first."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("activations",)

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        self.activations: dict[str, torch.nn.Module] = {}
        self._disable_adapters, self.merged_adapters = False, []

    def add(self, name: str, config: BottleneckConfig) -> None:
        """One more bottleneck, called `name`."""
        hidden = self.get_base_layer().out_features
        between = width(config.reduction_factor, hidden)
        self.bottleneck_down[name] = torch.nn.Linear(hidden, between)
        self.bottleneck_up[name] = up = torch.nn.Linear(between, hidden)
        torch.nn.init.zeros_(up.weight)
        torch.nn.init.zeros_(up.bias)
        self.activations[name] = ACT2FN[config.non_linearity]
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y_BTD = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y_BTD
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down = self.bottleneck_down[name]
                between_BTW = self.activations[name](down(self._cast_input_dtype(y_BTD, down.weight.dtype)))
                y_BTD = y_BTD + self.bottleneck_up[name](between_BTW).to(y_BTD.dtype)
        return y_BTD


class BottleneckModel(BaseTuner):
    """A model with bottlenecks."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: torch.nn.Module,
        target_name: str,
        parent: torch.nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.add(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target)
        layer.set_adapter([adapter_name])
        layer.add(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def bottleneck_config(adapter: BottleneckAdapter, task_type: str) -> BottleneckConfig:
    """The adapter as PEFT describes it."""
    return BottleneckConfig(
        task_type=task_type,
        target_modules=BEHIND[adapter.placement],
        reduction_factor=adapter.reduction_factor,
        non_linearity=adapter.non_linearity,
    )


PEFT_TYPE_TO_CONFIG_MAPPING[KIND] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[KIND] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[KIND] = BottleneckModel.prefix
