"""A value function on a language model's backbone: one number per position."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ValueModel(nn.Module):
    """The backbone and score head of a sequence classifier, read at every position.

    Called as a whole, so that the hooks of DeepSpeed ZeRO-3 stay in their places.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.config = classifier.config
        self.backbone = classifier.base_model
        self.score = classifier.score

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """values_BT in float32, in reward units: at index t, of the state in which token t was chosen, which the
        hidden state at t - 1 has seen; 0 at index 0. Sequences are padded on the right, where a causal model does not
        look."""
        hidden_BTH = self.backbone(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        values_BT = self.score(hidden_BTH[:, :-1]).squeeze(-1).float()
        return torch.nn.functional.pad(values_BT, (1, 0))
