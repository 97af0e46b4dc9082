"""A value function on a language model's backbone: one number per position."""

import torch
from torch import Tensor, nn


class ValueModel(nn.Module):
    """A backbone without an output head, with or without an adapter on it, and a score head read at every position.

    Called as a whole, so that the hooks of DeepSpeed ZeRO-3 stay in their places.
    """

    def __init__(self, backbone: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.score = score

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """values_BT in float32, in reward units: at index t, of the state in which token t was chosen, which the
        hidden state at t - 1 has seen; 0 at index 0. Sequences are padded on the right, where a causal model does not
        look."""
        hidden_BTH = self.backbone(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        values_BT = self.score(hidden_BTH[:, :-1]).squeeze(-1).float()
        return torch.nn.functional.pad(values_BT, (1, 0))
